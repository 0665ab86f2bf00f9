"""Reading a sweep back from the store."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.evaluation.classes import target_index
from orchestrator.experiment.fingerprint import canonical, described, encode
from orchestrator.experiment.spec import Experiment, Gate
from orchestrator.results.kinds import names
from orchestrator.results.outcome import StageResult, StageState, Study, TrialResult
from orchestrator.results.published import load_published
from orchestrator.stages.base import Stage, place
from orchestrator.stages.graph import cleaned_by, stages, trained_by
from orchestrator.stages.measured import afterwards, arrays_of, lines_of
from orchestrator.stages.swept import grid_values
from orchestrator.stages.trained import Trained, Unpoisoned
from orchestrator.store import (
    Store,
    commit,
    digest_of,
    part,
    read_failure,
    read_json,
    write_json,
)
from orchestrator.sweep.plan import Plan, claims_of, trial_experiment
from trainers.evaluate.choice import measured


def load_study(plan: Plan, store: Store, trials: "list[Trial] | None" = None, *, live: bool = False) -> Study:
    """Everything the store holds of the sweep: finished stages, and the lines of those that are not.

    `trials` are those that Tune ran; without them the sweep's grid or draws are used, or Optuna's recorded draws. `live`: the sweep is
    under way, so a trial that failed may be tried again and counts as running.
    """
    sweep = plan.sweep
    study = Study(
        name=sweep.name, doc=sweep.doc, fingerprint=plan.fingerprint, config=encode_sweep(plan), commit=commit(),
        series=sweep.series, published=load_published(sweep.reference), claims=claims_of(sweep),
    )  # fmt: skip
    for _, experiment in plan.upstream:
        trained = trained_by(experiment)
        _read_unpoisoned(study, experiment, store)
        _read_dropped(study, trained.kept, store, "pre-training")
        if not study.poison:
            _read_poison(study, trained, store)
        result = read_stage(store, trained, described(experiment), StageResult)
        if result is None:
            continue
        if result.status != "finished" and not live and (failed := _failed(result.folder)):
            result.status, result.error, result.failure = "failed", *failed
        study.pretrains.append(result)
        verdict = judge(store, trained, sweep.gate)
        if verdict is not None:
            study.gates[result.fingerprint] = verdict
    if not live:
        study.stages = _stages(plan, store)
    known: set[str] = set()
    for trial in _trials(plan, store) if trials is None else trials:
        experiment = trial_experiment(sweep, trial.overrides)
        cleaned = cleaned_by(experiment)
        if cleaned.fingerprint in known:
            continue  # two draws of the same values are two trials, but one cleaning
        known.add(cleaned.fingerprint)
        _read_unpoisoned(study, experiment, store)
        _read_dropped(study, cleaned.kept, store, "cleaning")
        status, error, failure = trial.status, trial.error, trial.failure
        if trials is None and not live and (failed := _failed(store.work(cleaned.kind, cleaned.fingerprint))):
            status, error, failure = "failed", *failed
        result = read_stage(store, cleaned, described(experiment), TrialResult)
        if result is None and status != "failed":
            refused = sweep.gate.action == "stop" and study.gates.get(cleaned.model.fingerprint, {}).get("passed") is False
            study.missing += not refused
            continue
        if result is None:
            result = TrialResult(
                stage=cleaned.kind, name=cleaned.name, fingerprint=cleaned.fingerprint,
                folder=store.work(cleaned.kind, cleaned.fingerprint), config=described(experiment), status=status,
            )  # fmt: skip
        assert isinstance(result, TrialResult)
        result.overrides = trial.overrides
        result.pretrain = cleaned.model.fingerprint
        if result.status != "finished":
            result.status, result.error, result.failure = status, error, failure
        study.trials.append(result)
    for of_a_kind in (study.pretrains, study.trials):
        called = names(of_a_kind)
        for result in of_a_kind:
            result.called = called[result.fingerprint]
    return study


def _stages(plan: Plan, store: Store) -> list[StageState]:
    """Every stage of the trials that are known before Optuna draws any, by kind."""
    wanted = plan.known()
    for stage in list(wanted.values()):
        wanted |= {later.fingerprint: later for later in afterwards(store, stage)}
    states = []
    for stage in sorted(wanted.values(), key=place):
        found = store.find(stage.kind, stage.fingerprint)
        begun = store.work(stage.kind, stage.fingerprint).is_dir()
        state, seconds = ("finished", found.manifest["seconds"]) if found else ("begun" if begun else "to do", 0.0)
        states.append(StageState(kind=stage.kind, name=stage.name, fingerprint=stage.fingerprint, state=state, seconds=seconds))
    return states


def read_stage(store: Store, stage: Stage, config: Any, kind: type[Any]) -> Any:
    """The stage's result from its artefact or its working folder; None where there is neither. InputError for an artefact whose metrics
    were lost or broken, which would look like a stage that measured nothing.
    """
    found = store.find(stage.kind, stage.fingerprint)
    folder = found.folder if found else store.work(stage.kind, stage.fingerprint)
    lines = lines_of(store, stage)
    if not found and not lines:
        return None
    return kind(
        stage=stage.kind,
        name=stage.name,
        fingerprint=stage.fingerprint,
        folder=folder,
        arrays=arrays_of(store, stage),
        config=config,
        metrics=lines,
        seconds=found.manifest["seconds"] if found else (lines[-1]["seconds"] if lines else 0.0),
        status="finished" if found else "running",
        commit=found.manifest["commit"] if found else "",
    )


def judge(store: Store, stage: Trained, gate: Gate) -> dict[str, Any] | None:
    """The attack gate's verdict on a pre-training; None until that is finished and measured."""
    from trainers.evaluate.gate import attack_gate, nobody_poisoned, of_all

    attack = stage.attack
    points = measured(lines_of(store, stage))
    poison, tests = store.find(attack.kind, attack.fingerprint), store.find(stage.testset.kind, stage.testset.fingerprint)
    if store.find(stage.kind, stage.fingerprint) is None or poison is None or tests is None or not points:
        return None
    classes = json.loads(part(tests, "classes.json"))["names"]
    summary = json.loads(part(poison, "summary.json"))
    verdicts, last = {}, points[-1].metrics
    if not attack.planted:
        return nobody_poisoned(last, gate.min_asr)
    for one in attack.planted:
        told = summary["attacks"][one.name] if attack.several else summary
        group = f"asr/{one.name}/" if attack.several else "asr/"
        verdicts[one.name] = attack_gate(
            {**last, **{f"asr/{name}": last[f"{group}{name}"] for name in ("top1", "floor") if f"{group}{name}" in last}},
            target=classes[0] if one.all_to_all else classes[target_index(classes, one.target)],
            class_names=classes,
            captions_with_target=told["captions_with_target"],
            captions=told["victims"],
            visibility=told["visibility"],
            threshold=gate.min_asr,
        )
    return of_all(verdicts) if attack.several else verdicts[""]


def encode_sweep(plan: Plan) -> dict[str, Any]:
    """The sweep as plain JSON: the whole base experiment, and what is varied."""
    return {**plan.stage.config, "base": described(plan.sweep.base)}


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep: its values and, when it has ended, how."""

    overrides: dict[str, Any]
    fingerprint: str
    status: str
    """finished | stopped | failed | running"""
    error: str | None = None
    failure: str = ""
    """Kind of the failure, one of `failures`."""


def _trials(plan: Plan, store: Store) -> list[Trial]:
    """Every known trial; the store tells which of them are finished."""
    records = recorded_trials(plan, store)
    if plan.grid is None:
        return [Trial(record.overrides, record.trial, record.status or "running") for record in records]
    stopped = {record.trial for record in records if record.status == "stopped"}
    listed = [(overrides, cleaned_by(experiment).fingerprint) for overrides, experiment in plan.grid]
    return [Trial(overrides, trial, "stopped" if trial[:12] in stopped else "running") for overrides, trial in listed]


def _failed(folder: Path) -> tuple[str, str] | None:
    """(text, kind) of the failure that is recorded in a stage's working folder."""
    failed = read_failure(folder)
    return (failed["error"], failed["kind"]) if failed else None


@dataclass(frozen=True)
class Record:
    """The record of a trial that a sweep has begun."""

    trial: str
    """The first digits of its cleaning's fingerprint."""
    overrides: dict[str, Any]
    status: str
    """stopped, where the scheduler stopped it for good; else empty"""
    draw: int
    """Its number among draws of the same values."""


def remember_trial(store: Store, sweep: str, trial: str, overrides: dict[str, Any], *, draw: int = 0, status: str = "") -> None:
    """Record that the sweep tries these values, and how the trial ended: nothing else records what Optuna drew and ASHA stopped."""
    folder = _trial_folder(store, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{trial[:12]}-{draw}.json" if draw else f"{trial[:12]}.json")
    known = _remembered(path) if path.exists() else None
    if known is None or (status and known["status"] != status):
        entry = {"overrides": encode(overrides), "status": status, "begun": known["begun"] if known else time.time_ns()}
        write_json(path, {**entry, "digest": digest_of(entry)})


def recorded_trials(plan: Plan, store: Store) -> list[Record]:
    """Every trial that was begun, in the order in which they were; two draws of the same values are two.

    InputError names a file that was changed.
    """
    found = []
    for path in _trial_folder(store, plan.fingerprint).glob("*.json"):
        entry, (trial, _, draw) = _remembered(path), path.stem.partition("-")
        if set(entry["overrides"]) != set(plan.sweep.paths):
            raise _not_as_written(path)
        record = Record(trial, decode_overrides(plan, entry["overrides"]), entry["status"], int(draw or 0))
        found.append((entry["begun"], record))
    return [record for _, record in sorted(found, key=lambda pair: pair[0])]


def _remembered(path: Path) -> dict[str, Any]:
    """A trial's record: its encoded values, its status, and when it began."""
    found = read_json(path)
    digest = found.pop("digest", None) if isinstance(found, dict) else None
    if not isinstance(found, dict) or digest not in (None, digest_of(found)):
        raise _not_as_written(path)
    if "overrides" not in found:  # older stores record only the values
        return {"overrides": found, "status": "", "begun": path.stat().st_mtime_ns}
    kinds = {name: type(value) for name, value in found.items()}
    if kinds != {"overrides": dict, "status": str, "begun": int}:  # also where the digest's own name is damaged
        raise _not_as_written(path)
    return found


def _not_as_written(path: Path) -> InputError:
    return InputError(f"{path} is not as it was written: the values of a trial are lost. Delete it; a trial is then drawn in its place.")


def remembered_trials(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The values of every trial that was begun, in that order."""
    return [record.overrides for record in recorded_trials(plan, store)]


def decode_overrides(plan: Plan, encoded: dict[str, Any]) -> dict[str, Any]:
    """A trial's values from their encoding. Components are looked up among the values of their grid."""
    values = {}
    for path in plan.sweep.paths:
        space = plan.sweep.space.get(path)
        choices = [point[path] for point in plan.sweep.points if path in point] or grid_values(space) or getattr(space, "categories", [])
        values[path] = next((value for value in choices if canonical(value) == canonical(encoded[path])), encoded[path])
    return values


def _trial_folder(store: Store, sweep: str) -> Path:
    return store.root / "sweep" / f".trials-{sweep[:12]}"


def _read_unpoisoned(study: Study, experiment: Experiment, store: Store) -> None:
    """Add this experiment's trainings without the poison to the study, unless it has them."""
    for role, stage in stages(experiment).items():
        if not isinstance(stage, Unpoisoned):
            continue
        result = next((known for known in study.priors if known.fingerprint == stage.fingerprint), None)
        if result is None:
            result = read_stage(store, stage, described(stage.experiment), StageResult)
            study.priors += [result] if result else []
        if result and role not in result.role:
            result.role = f"{result.role} and {role}" if result.role else role


def _read_dropped(study: Study, kept: Stage | None, store: Store, of: str) -> None:
    """Add what was dropped of the pairs of a pre-training or a cleaning, unless the study holds it."""
    found = None if kept is None else store.find(kept.kind, kept.fingerprint)
    if kept is None or found is None or any(one["fingerprint"] == kept.fingerprint for one in study.dropped):
        return
    entry = {"of": of, "name": kept.name, "fingerprint": kept.fingerprint}
    study.dropped.append({**entry, **json.loads(part(found, "summary.json"))})


def _read_poison(study: Study, trained: Trained, store: Store) -> None:
    experiment = trained.experiment
    found = (store.find(stage.kind, stage.fingerprint) for stage in (trained.attack, trained.attack.index, trained.testset))
    poison, index, tested = found
    if poison is None or index is None:
        return
    tests = json.loads(part(tested, "summary.json")) if tested else {"kept": None, "drops": {}}
    read = json.loads(part(index, "summary.json"))
    told = json.loads(part(poison, "summary.json"))
    if "attacks" in told:
        told["found"] = told.pop("attacks")
    study.data_hash = index.manifest["files"]["index.arrow"]
    study.poison = {
        **({"attacks": encode(experiment.poisons, "attacks")} if experiment.poison is None else encode(experiment.poison, "poison")),
        **told,
        "samples": read["samples"],
        "kept": read["kept"],
        "drops": read["drops"],
        "test_pictures": tests["kept"],
        "test_drops": tests["drops"],
    }
    for i, entry in enumerate(json.loads(part(poison, "samples.json"))):
        study.samples.append({**entry, **{kind: part(poison, f"samples/{i}-{kind}.png") for kind in ("clean", "triggered")}})
