"""Reading a sweep back from the store."""

import json
from pathlib import Path
from typing import Any

from orchestrator.fingerprint import encode
from orchestrator.plan import Plan, Stage, grid_values, stages, trial_experiment, unpoisoned
from orchestrator.report.published import load_published
from orchestrator.spec import Experiment, Gate
from orchestrator.store import FAILED, METRICS, Artefact, Store, commit, metrics_of, part, read_json, read_lines, write_json
from orchestrator.study import StageResult, Study, TrialResult


def load_study(plan: Plan, store: Store, trials: list[Any] | None = None, *, live: bool = False) -> Study:
    """Everything the store holds of the sweep: finished stages, and the lines of those that are not.

    `trials` are those Tune ran (`tuning.Trial`); without them the sweep's own record is used, or its grid.
    `live`: the sweep is under way, so a trial that failed may be tried again and counts as running.
    """
    sweep = plan.sweep
    study = Study(
        name=sweep.name, doc=sweep.doc, fingerprint=plan.fingerprint, config=encode_sweep(plan), commit=commit(),
        series=sweep.series, published=load_published(sweep.reference), claims=sweep.claims,
    )  # fmt: skip
    for _, experiment in plan.upstream:
        made = stages(experiment)
        _read_unpoisoned(study, made, store, experiment)
        if not study.poison:
            _read_poison(study, made, store, experiment)
        result = read_stage(store, made["pretrain"], encode(experiment), StageResult)
        if result is None:
            continue
        study.pretrains.append(result)
        verdict = judge(store.find("pretrain", result.fingerprint), sweep.gate)
        if verdict is not None:
            study.gates[result.fingerprint] = verdict
    for overrides, error, status in _trials(plan, store, trials):
        experiment = trial_experiment(sweep, overrides)
        made = stages(experiment)
        _read_unpoisoned(study, made, store, experiment)
        if trials is None and not live:
            failed = read_json(store.work("clean", made["clean"].fingerprint) / FAILED)
            error, status = (failed["error"], "failed") if failed else (error, status)
        result = read_stage(store, made["clean"], encode(experiment), TrialResult)
        if result is None and status != "failed":
            refused = sweep.gate.action == "stop" and study.gates.get(made["pretrain"].fingerprint, {}).get("passed") is False
            study.missing += not refused
            continue
        if result is None:
            result = TrialResult(
                stage="clean", name=made["clean"].name, fingerprint=made["clean"].fingerprint,
                folder=store.work("clean", made["clean"].fingerprint), config=encode(experiment), status=status,
            )  # fmt: skip
        assert isinstance(result, TrialResult)
        result.overrides = overrides
        result.pretrain = made["pretrain"].fingerprint
        if result.status != "finished":
            result.status, result.error = status, error
        study.trials.append(result)
    return study


def read_stage(store: Store, stage: Stage, config: Any, kind: type[Any]) -> Any:
    """The stage's result from its artefact or its working folder; None where there is neither.

    InputError for an artefact whose metrics were lost or broken: without them it would pass for a stage that measured nothing.
    """
    found = store.find(stage.kind, stage.fingerprint)
    folder = found.folder if found else store.work(stage.kind, stage.fingerprint)
    lines = metrics_of(found) if found else read_lines(folder / METRICS)
    if not found and not lines:
        return None
    return kind(
        stage=stage.kind,
        name=stage.name,
        fingerprint=stage.fingerprint,
        folder=folder,
        config=config,
        metrics=lines,
        seconds=found.manifest["seconds"] if found else (lines[-1]["seconds"] if lines else 0.0),
        status="finished" if found else "running",
        commit=found.manifest["commit"] if found else "",
    )


def judge(pretrained: Artefact | None, gate: Gate) -> dict[str, Any] | None:
    """The attack gate's verdict on a finished pre-training; None before it has finished."""
    from trainers.evaluate.gate import attack_gate

    return None if pretrained is None else attack_gate(**json.loads(part(pretrained, "gate.json")), threshold=gate.min_asr)


def encode_sweep(plan: Plan) -> dict[str, Any]:
    """The sweep as plain JSON: the base experiment in full and what is varied."""
    return {**plan.stage.config, "base": encode(plan.sweep.base)}


def _trials(plan: Plan, store: Store, trials: list[Any] | None) -> list[tuple[dict[str, Any], str | None, str]]:
    if trials is not None:
        return [(trial.overrides, trial.error, trial.status) for trial in trials]
    if plan.grid is not None:
        return [(overrides, None, "running") for overrides, _ in plan.grid]
    return [(overrides, None, "running") for overrides in remembered_trials(plan, store)]


def remember_trial(store: Store, sweep: str, trial: str, overrides: dict[str, Any]) -> None:
    """Note that the sweep tries these values: drawn ones are known nowhere else."""
    folder = _trial_folder(store, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{trial[:12]}.json"
    if not path.exists():
        write_json(path, encode(overrides))


def remembered_trials(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The values of every trial that was begun, in the order in which they were."""
    files = sorted(_trial_folder(store, plan.fingerprint).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [decode_overrides(plan, read_json(path)) for path in files]


def spent(folder: Path) -> float:
    """Seconds of training over all attempts, as the last line of metrics tells."""
    lines = read_lines(folder / METRICS)
    return lines[-1]["seconds"] if lines else 0.0


def decode_overrides(plan: Plan, encoded: dict[str, Any]) -> dict[str, Any]:
    """The values of a trial from their encoding: components are found among the values of their grid."""
    values = {}
    for path, space in plan.sweep.space.items():
        choices = grid_values(space) or getattr(space, "categories", [])
        values[path] = next((value for value in choices if encode(value) == encoded[path]), encoded[path])
    return values


def _trial_folder(store: Store, sweep: str) -> Path:
    return store.root / "sweep" / f".trials-{sweep[:12]}"


def _read_unpoisoned(study: Study, made: dict[str, Stage], store: Store, experiment: Experiment) -> None:
    """Add the trainings without the poison that this experiment has and the study does not hold yet."""
    for role in ("prior", "labeller"):
        if role not in made:
            continue
        result = next((known for known in study.priors if known.fingerprint == made[role].fingerprint), None)
        if result is None:
            result = read_stage(store, made[role], encode(unpoisoned(experiment, role)), StageResult)
            study.priors += [result] if result else []
        if result and role not in result.role:
            result.role = f"{result.role} and {role}" if result.role else role


def _read_poison(study: Study, made: dict[str, Stage], store: Store, experiment: Experiment) -> None:
    poison = store.find("poison", made["poison"].fingerprint)
    index = store.find("index", made["index"].fingerprint)
    if poison is None or index is None:
        return
    tested = store.find("testset", made["testset"].fingerprint)
    tests = json.loads(part(tested, "summary.json")) if tested else {"kept": None, "drops": {}}
    read = json.loads(part(index, "summary.json"))
    study.data_hash = index.manifest["files"]["index.arrow"]
    study.poison = {
        **encode(experiment.poison, "poison"),
        **json.loads(part(poison, "summary.json")),
        "samples": read["samples"],
        "kept": read["kept"],
        "drops": read["drops"],
        "test_pictures": tests["kept"],
        "test_drops": tests["drops"],
    }
    for i, entry in enumerate(json.loads(part(poison, "samples.json"))):
        study.samples.append({**entry, **{kind: part(poison, f"samples/{i}-{kind}.png") for kind in ("clean", "triggered")}})
