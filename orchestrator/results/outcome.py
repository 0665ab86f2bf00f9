"""What a sweep produced, read back from the store: plain values that the tracker and the report share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from orchestrator.results.claims import Claim
    from orchestrator.results.published import Published


@dataclass(kw_only=True)
class StageResult:
    """One training stage: its configuration and one line of metrics an epoch."""

    stage: str
    """`pretrain` or `clean`."""
    name: str
    fingerprint: str
    folder: Path
    """The artefact's folder, or the working folder of an unfinished stage."""
    arrays: tuple[Path, ...] = ()
    """Folders that may hold the arrays for its figures, the latest measurement first."""
    config: dict[str, Any]
    """The configuration of its experiment, nested, with the labels of its components."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl: {"epoch", "step", "seconds", "metrics": {...}}, shares in percent."""
    seconds: float = 0.0
    status: str = "finished"
    """finished | running | stopped | failed"""
    error: str | None = None
    failure: str = ""
    """Kind of the failure, one of `orchestrator.failures`; empty if it has not failed, or the kind was not recorded."""
    commit: str = ""
    called: str = ""
    """The name of its objective or method in the study (`kinds.names`); empty until it is set."""
    role: str = ""
    """Purpose of a training without the poison: prior, labeller, or both."""


@dataclass(kw_only=True)
class TrialResult(StageResult):
    """One cleaning of one pre-trained model."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted path into the experiment → the value this trial tried."""
    pretrain: str = ""
    """Fingerprint of the pre-training it starts from."""


@dataclass(frozen=True, kw_only=True)
class StageState:
    """One stage of the sweep, of any kind, and its state."""

    kind: str
    name: str
    fingerprint: str
    state: str
    """finished | begun | to do"""
    seconds: float = 0.0


@dataclass(kw_only=True)
class Study:
    """A sweep and all its results."""

    name: str
    doc: str
    fingerprint: str
    config: dict[str, Any]
    priors: list[StageResult] = field(default_factory=list)
    """Trainings on the pairs without the poison. They are logged, but the gate does not judge them, and they are not shown as uncleaned
    models."""
    pretrains: list[StageResult] = field(default_factory=list)
    trials: list[TrialResult] = field(default_factory=list)
    poison: dict[str, Any] = field(default_factory=dict)
    """Trigger, target, counts, drops by reason, visibility."""
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fingerprint of a pre-training → verdict of the attack gate."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Sample sheet: {"key", "clean": PNG bytes, "triggered": PNG bytes, "caption_before", "caption_after"}."""
    stages: list[StageState] = field(default_factory=list)
    """Every stage of the sweep, in the order in which they run; empty while it runs."""
    dropped: list[dict[str, Any]] = field(default_factory=list)
    """The pairs that were dropped, once for all stages that train on the rest: {"of": `pre-training` or `cleaning`, "name", "fingerprint",
    and the counts of the stage's summary}."""
    missing: int = 0
    """Trials of the grid that have not begun, except those of models whose attack failed the gate."""
    series: str = ""
    """Dotted path of the hyper-parameter on a figure's horizontal axis."""
    published: "Published | None" = None
    """Published results that are drawn beside these."""
    claims: "tuple[Claim, ...]" = ()
    """The claims that its report judges."""
    data_hash: str = ""
    commit: str = ""

    def frame(self) -> "pandas.DataFrame":
        """Every epoch of every training as a row (`results.frames.points`). The functions for this frame are in that module."""
        from orchestrator.results.frames import points

        return points(self)
