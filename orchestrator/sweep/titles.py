"""Titles of the stages of a sweep or a store: "MMCL, seed 1", "CleanCLIP, lr 0.001 on MMCL, seed 1"."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.experiment.fingerprint import described
from orchestrator.results.kinds import names
from orchestrator.results.names import tell_apart
from orchestrator.results.outcome import StageResult, TrialResult
from orchestrator.stages.graph import cleaned_by, trained_by
from orchestrator.sweep.plan import Plan


def titles(found: Sequence[StageResult]) -> dict[str, str]:
    """Fingerprint → the label of the stage's objective or method, and what tells it from the others with this label. For a cleaning these
    are the others of the same pre-training, whose title is added.
    """
    sources = [stage for stage in found if not isinstance(stage, TrialResult)]
    trials = [stage for stage in found if isinstance(stage, TrialResult)]
    told = dict(_told([(stage, stage.config) for stage in sources]))
    for trial, title in _told([(trial, _cleaning(trial.config)) for trial in trials]):
        told[trial] = title
    on = {trial.fingerprint: told.get(trial.pretrain, trial.pretrain[:6]) for trial in trials}
    return {fingerprint: f"{title} on {on[fingerprint]}" if fingerprint in on else title for fingerprint, title in told.items()}


def plan_titles(plan: Plan) -> dict[str, str]:
    """The titles of the pre-trainings and cleanings that a plan knows before the run."""
    found: dict[str, StageResult] = {}
    for _, experiment in [*plan.upstream, *(plan.grid or ())]:
        source = trained_by(experiment)
        if source.fingerprint not in found:
            config = {key: value for key, value in described(experiment).items() if key != "clean"}
            found[source.fingerprint] = StageResult(
                stage=source.kind, name=source.name, fingerprint=source.fingerprint, folder=Path(), config=config
            )
        if plan.grid is not None and (stage := cleaned_by(experiment)).fingerprint not in found:
            found[stage.fingerprint] = TrialResult(
                stage=stage.kind, name=stage.name, fingerprint=stage.fingerprint, folder=Path(), config=described(experiment),
                pretrain=source.fingerprint,
            )  # fmt: skip
    return titles(list(found.values()))


def _cleaning(config: dict[str, Any]) -> dict[str, Any]:
    """The part of an experiment's or a manifest's configuration that describes the cleaning."""
    return config.get("clean") or config


def _told(found: Sequence[tuple[StageResult, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    called = names([stage for stage, _ in found])
    groups: dict[tuple[str, str], list[tuple[StageResult, dict[str, Any]]]] = {}
    for stage, config in found:
        source = stage.pretrain if isinstance(stage, TrialResult) else ""
        groups.setdefault((called[stage.fingerprint], source), []).append((stage, config))
    for (name, _), alike in groups.items():
        for (stage, _), text in zip(alike, tell_apart([config for _, config in alike])):
            yield stage.fingerprint, f"{name}, {text}" if text else name
