"""Base of all claims: the component that judges a study, the trials that it compares, and its verdict.

A claim is a class of its own, beside the sweeps that name it in `Sweep.claims`. It looks for classes and settings, never for a label. Its
verdict is `shown`, `not shown` (tried, but the criterion is not met; the reason says why), `not tried`, or `not judged` (its own code
failed).

A `Bench` holds the trials of one method on one pre-training. It also lists the objections that hold against any claim: fewer than three
seeds, a failed attack gate, unfinished trials, a seed without a point, a seed of which half of the trials or more diverged. A trial is
finished when it has run to its last epoch, or when it diverged: that is a result of its setting, and the reason mentions it. A trial that
failed otherwise, or that a scheduler stopped, is unfinished.
"""

import math
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from datasets.component import Component
from datasets.errors import InputError
from orchestrator.experiment.fingerprint import described
from orchestrator.results.cautions import diverged, ends
from orchestrator.results.kinds import Node, is_a, method_node, objective_node
from orchestrator.results.names import number_of, seeds_of, tell_apart, value_at
from orchestrator.results.outcome import Study, TrialResult
from orchestrator.results.points import GIVEN, Panel, before_cleaning, cleaned_points, panels, repetitions
from orchestrator.results.selection import Row, Rule, choices

SEEDS = 3
"""Least number of seeds for a claim."""
VERDICTS = ("shown", "not shown", "not tried", "not judged")
Asked = type[Component] | Callable[[Node], bool]
"""What a claim looks for: a class with any settings, or a function that tests a component of a configuration."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one claim for one pre-training and cleaning set, from one sweep or from several joined ones."""

    claim: str = ""
    """The claim's name. `judged` fills in this field and the next three."""
    text: str = ""
    criterion: str = ""
    published: str = ""
    verdict: str
    """shown | not shown | not tried | not judged (its own code failed)"""
    reason: str
    where: str = ""
    seeds: int = 0
    images: int | None = None
    """Pictures in the evaluation set."""
    measure: str = ""
    """The estimated quantity."""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval over seeds (Student)."""
    seen: str = ""
    """Further observations, which the criterion does not use."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise InputError(f"Verdict.verdict is {self.verdict!r}; accepted: {', '.join(VERDICTS)}.")


@dataclass(frozen=True, kw_only=True)
class Claim(Component, ABC):
    """A statement that a study may show, by a criterion that is fixed in advance."""

    text: ClassVar[str] = ""
    """The statement that is claimed."""
    criterion: ClassVar[str] = ""
    """When the claim counts as shown."""
    needed: ClassVar[str] = ""
    """What must be tried for it; this is the reason given if the claim was not tried."""
    published: ClassVar[str] = ""
    """The published finding, if there is one."""

    @abstractmethod
    def judge(self, study: Study) -> Iterable[Verdict]:
        """A verdict for each pre-training and cleaning set that was tried; none if nothing was. Several sweeps come joined into one
        study."""


def judged(claims: Sequence[Claim], studies: Sequence[Study]) -> list[Verdict]:
    """The verdicts on several sweeps together: trials of one pre-training are compared, whichever sweep ran them.

    A claim whose own code fails is not judged, and the reason says how it failed.
    """
    study, verdicts = joined(studies), []
    for claim, name in called(claims).items():
        try:
            mine = list(claim.judge(study)) or [Verdict(verdict="not tried", reason=claim.needed)]
            verdicts += [replace(v, claim=name, text=claim.text, criterion=claim.criterion, published=claim.published) for v in mine]
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"Its code failed: {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"
            verdicts.append(Verdict(claim=name, text=claim.text, criterion=claim.criterion, verdict="not judged", reason=reason))
    return verdicts


def called(claims: Sequence[Claim]) -> dict[Claim, str]:
    """Each claim, once, by its label; claims with the same label are told apart by their classes or settings."""
    alike: dict[str, list[Claim]] = {}
    for claim in dict.fromkeys(claims):
        alike.setdefault(claim.label, []).append(claim)
    distinction = {claim: words for mine in alike.values() for claim, words in zip(mine, tell_apart([described(claim) for claim in mine]))}
    return {claim: f"{claim.label} ({distinction[claim]})" if distinction[claim] else claim.label for claim in dict.fromkeys(claims)}


def as_json(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as plain values; numbers that are not finite become null."""
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(verdict).items()} for verdict in found]


def joined(studies: Sequence[Study]) -> Study:
    """One study of all their stages, each once. Series are dropped, so that a method's best is sought over all its settings."""
    pretrains = {stage.fingerprint: stage for study in studies for stage in study.pretrains}
    trials: dict[str, TrialResult] = {}
    for trial in (trial for study in studies for trial in study.trials):
        known = trials.get(trial.fingerprint, trial)  # one sweep may vary what another fixes
        trials[trial.fingerprint] = replace(trial, overrides={**known.overrides, **trial.overrides})
    gates = {key: gate for study in studies for key, gate in study.gates.items()}
    spaces = {trial.fingerprint: study.config.get("space") for study in studies for trial in study.trials}
    return Study(
        name=" + ".join(study.name for study in studies), doc="", fingerprint="", config={"spaces": spaces},
        pretrains=list(pretrains.values()), trials=list(trials.values()), gates=gates, missing=sum(s.missing for s in studies),
    )  # fmt: skip


# ---- what is compared ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The trials of one method on one pre-training with one cleaning set, without the seeds whose attack did not take."""

    study: Study
    panel: Panel
    trials: tuple[TrialResult, ...]
    left: tuple[str, ...]
    """Objections to any claim: seeds that were left out or have no point, and unfinished trials."""
    diverged: tuple[str, ...]
    """A sentence about diverged trials, which count as tried."""
    cleaning: str
    """The cleaning set in words: ", cleaned with 600 pairs of which 5 are poisons"."""

    def row(self, rule: Rule) -> Row:
        """The rule's choice for each seed."""
        return Row(panel=self.panel, method="", rule=rule, choices=choices(self.study, self.trials, rule), trials=self.trials)

    def against(self, row: Row) -> list[str]:
        """Objections to any claim that is judged by this row."""
        few = [f"fewer than {SEEDS} seeds" if row.choices else "no seed was measured"] if len(row.choices) < SEEDS else []
        return few + list(self.left)

    def like(self, other: "Bench") -> bool:
        """Whether the two cleaning sets differ only in their poisons."""
        paths = [path for path in GIVEN if path != "clean.poisons"]
        return [_given(self.trials[0], path) for path in paths] == [_given(other.trials[0], path) for path in paths]

    def partner(self, others: Sequence["Bench"]) -> "Bench | None":
        """The bench with the same cleaning whose pre-training differs only in its objective, or in fields that belong to the objective."""
        candidates = [other for other in others if other.like(self)]
        for path in ("pretrain.objective", "pretrain"):  # a larger batch may belong to an objective
            story = before_cleaning(self.panel.pretrains[0].config, path)
            alike = [other for other in candidates if before_cleaning(other.panel.pretrains[0].config, path) == story]
            if len(alike) == 1:
                return alike[0]
        return None


def benches(study: Study, objective: Asked, method: Asked, poisons: int = 0) -> list[Bench]:
    """A bench for each pre-training with this objective and each cleaning set with this number of poisons, if the method was tried
    there."""
    result = []
    for panel in panels(study):
        groups: dict[tuple[str, ...], list[TrialResult]] = {}
        for trial in study.trials if _is(objective_node(panel.pretrains[0]), objective) else ():
            wanted = panel.holds(trial) and _is(method_node(trial), method)
            if wanted and int(value_at(trial, "clean.poisons") or 0) == poisons:
                groups.setdefault(tuple(_given(trial, path) for path in GIVEN), []).append(trial)
        for trials in groups.values():
            failed = {t.pretrain for t in trials if not (study.gates.get(t.pretrain) or {}).get("passed")}
            kept = tuple(trial for trial in trials if trial.pretrain not in failed)
            of = number_of(len({t.pretrain for t in trials}), "model")
            left = [f"the attack gate was not passed by {len(failed)} of {of}"] if failed else []
            left += _unfinished(study, kept)
            models, repeated = _attacks(study, kept), set(repetitions(study, kept).values())
            if models < SEEDS <= len(repeated):
                few = number_of(models, "pre-training")
                left.append(f"the {len(repeated)} seeds are of {few}: of the cleaning or the evaluation, not of the attack")
            broken = sum(map(diverged, kept))
            note = (f"{broken} of {len(kept)} trials diverged and count as tried",) if broken else ()
            pairs = value_at(trials[0], "clean.pairs")
            cleaning = f", cleaned with {pairs} pairs" if pairs else ""
            cleaning += f" of which {poisons} are poisons" if poisons else ""
            result.append(
                Bench(study=study, panel=panel, trials=kept or tuple(trials), left=tuple(left), diverged=note, cleaning=cleaning)
            )
    return result


def at_end(study: Study, row: Row) -> str:
    """The chosen settings that lie at an end of the values that were tried, as text; empty if none does."""
    return "; ".join(dict.fromkeys(end.setting for choice in row.reached for end in ends(study, row, choice)))


def verdict_of(
    bench: Bench, row: Row, *, against: Sequence[str], fine: str, measure: str, measured: tuple[float, float, float] | None,
    seen: str = "", diverged: Sequence[str] = (),
) -> Verdict:  # fmt: skip
    """The verdict: shown if there are no objections (`against`), and then `fine` is the reason. `measured`: (estimate, low, high) of
    `measure`."""
    points = [choice.point or choice.start for choice in row.choices]
    images = points[0].metrics.get("zeroshot/n") if points else None
    mean, low, high = measured or (None, None, None)
    reason = "; ".join(dict.fromkeys([*(against or [fine]), *bench.diverged, *diverged]))
    return Verdict(
        verdict="not shown" if against else "shown", reason=f"{reason[0].upper()}{reason[1:]}.", where=bench.panel.label + bench.cleaning,
        seeds=len(row.choices), images=int(images) if images else None, measure=measure, estimate=mean, low=low, high=high, seen=seen,
    )  # fmt: skip


def _unfinished(study: Study, trials: Sequence[TrialResult]) -> Iterator[str]:
    """One objection for each way in which these trials are incomplete."""
    status = Counter(trial.status for trial in trials if not diverged(trial))
    if running := status["running"] + study.missing:
        yield f"{running} trials have not finished"
    if status["failed"]:
        yield f"{status['failed']} of {len(trials)} trials failed"
    if status["stopped"]:
        yield f"{status['stopped']} of {len(trials)} trials were stopped by the scheduler"
    seeds, by_seed = repetitions(study, trials), dict[tuple[str, str], list[TrialResult]]()
    for trial in trials:
        by_seed.setdefault((trial.pretrain, seeds[trial.fingerprint]), []).append(trial)
    if empty := sum(not any(map(cleaned_points, group)) for group in by_seed.values()):
        yield f"no point was measured in {empty} of {number_of(len(by_seed), 'seed')}"
    if half := sum(2 * sum(map(diverged, group)) >= len(group) for group in by_seed.values()):
        yield f"half of the trials or more diverged in {half} of {number_of(len(by_seed), 'seed')}"


def _attacks(study: Study, trials: Sequence[TrialResult]) -> int:
    """How many pre-trainings the trials start from; those that differ only in a seed of the evaluation count once."""
    started = {trial.pretrain for trial in trials}
    seeds = [seeds_of(stage.config) for stage in study.pretrains if stage.fingerprint in started]
    return len({tuple(sorted((p, v) for p, v in fields.items() if not p.startswith(("evaluate.", "clean.")))) for fields in seeds})


def _given(trial: TrialResult, path: str) -> str:
    return str(value_at(trial, path) or "")


def _is(node: Node, asked: Asked) -> bool:
    return is_a(node, asked) if isinstance(asked, type) else bool(asked(node))
