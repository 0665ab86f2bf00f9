"""A matrix by its name, the stages of its cells, and the cells as the store has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from datasets.attack.poison import Poison
from datasets.component import Component, components
from datasets.errors import InputError, its_type
from datasets.synthetic import World
from orchestrator.experiment.fingerprint import described
from orchestrator.experiment.matrix import NONE, Matrix, Model, metric_name
from orchestrator.experiment.override import from_text, has, override_all
from orchestrator.experiment.spec import Experiment
from orchestrator.results.cells import Cell, Found, Repetition, cell_of
from orchestrator.results.names import value_text
from orchestrator.results.outcome import StageResult, TrialResult
from orchestrator.results.points import ASR, Point, points_of
from orchestrator.stages.base import Stage, walk
from orchestrator.stages.graph import cleaned_by, stages, trained_by
from orchestrator.store import Artefact, Store, read_failure
from orchestrator.sweep.loading import module_of
from orchestrator.sweep.plan import Plan, make_plan
from orchestrator.sweep.stored import judge, read_stage


def load_matrix(name: str, overrides: dict[str, str] | None = None, miniature: bool = False, seeds: Sequence[int] | None = None) -> Matrix:
    """The `MATRIX` of a module or file, or its `MINIATURE`, with the command line's overrides in its base and in what defences change.

    `seeds` take the place of its own, those of the core too. InputError for a field that neither the base nor a defence has.
    """
    module = module_of(name)
    wanted = "MINIATURE" if miniature else "MATRIX"
    matrix = getattr(module, wanted, None)
    if not isinstance(matrix, Matrix):
        found = f"{name} has no {wanted}" if matrix is None else f"in {name} {wanted} is {its_type(matrix)}"
        raise InputError(f"{found}; accepted: {wanted} = Matrix(...). See sweeps/matrix.py for an example.")
    for path, text in (overrides or {}).items():
        matrix = _overridden(matrix, path, text)
    if seeds:
        matrix = replace(matrix, seeds=tuple(seeds), core=None)
    return replace(matrix, doc=matrix.doc or (module.__doc__ or "").strip())


def _overridden(matrix: Matrix, path: str, text: str) -> Matrix:
    """The matrix with the field set in its base, and in each component that a defence puts there."""
    if path.partition(".")[0] in ("poison", "attacks") or path == "pretrain.seed":
        raise InputError(f"--{path}: the matrix {matrix.name} has rows of its own; change them in its file"
                         + (" or give --seeds." if path == "pretrain.seed" else "."))  # fmt: skip
    done, defences = has(matrix.base, path), {}
    for name, defence in matrix.defences.items():
        if path in defence.space or any(varied.startswith(f"{path}.") for varied in (*defence.changes, *defence.space)):
            raise InputError(f"--{path}: the defence {name} sets it itself; change that in the matrix's file.")
        changes = dict(defence.changes)
        for above, value in defence.changes.items():
            below = path.removeprefix(f"{above}.")
            if path == above:
                raise InputError(f"--{path}: the defence {name} sets it itself; change that in the matrix's file.")
            if below != path and isinstance(value, Component) and has(value, below):
                changes[above], done = override_all(value, {below: from_text(value, below, text)}), True
        defences[name] = replace(defence, changes=changes)
    if has(matrix.base, path) or not done:  # where no defence has it either, this says which fields there are
        matrix = replace(matrix, base=override_all(matrix.base, {path: from_text(matrix.base, path, text)}))
    return replace(matrix, defences=defences)


def plans(matrix: Matrix) -> dict[str, Plan]:
    """The plan of each column, all its models included. InputError names the column that does not fit."""
    made = {}
    for defence in matrix.columns:
        try:
            made[defence] = make_plan(matrix.sweep(defence))
        except InputError as error:
            raise InputError(f"column {defence} of the matrix {matrix.name}: {error}") from error
    return made


def took(matrix: Matrix, store: Store) -> list[Model]:
    """The undefended models whose attack took, of those that are trained."""
    return [model for model in matrix.models(NONE) if model[0] != matrix.clean_row and (_gate(matrix, model, store) or {}).get("passed")]


def _gate(matrix: Matrix, model: Model, store: Store) -> dict[str, Any] | None:
    return judge(store, trained_by(matrix.experiments(NONE, model)[0]), matrix.gate)


@dataclass(frozen=True)
class _Read:
    """What the store holds of the trials of one defence on one model."""

    run: Repetition
    added: tuple[tuple[Artefact, ...], ...]
    """Of each finished trial the artefacts that the undefended model does not need."""
    start: Artefact | None
    """Of the undefended model."""


def _read(matrix: Matrix, defence: str, model: Model, store: Store) -> _Read:
    undefended = matrix.experiments(NONE, model)[0]
    source = trained_by(undefended)
    start = read_stage(store, source, {}, StageResult)
    point: Point | None = next(reversed(points_of(start)), None) if start and start.status == "finished" else None
    found = store.find(source.kind, source.fingerprint)
    if defence == NONE:
        return _Read(Repetition(start=point, undefended=True), (), found)
    trials, told, added, failed = [], [], [], False
    shared = {stage.fingerprint for stage in walk(*stages(undefended).values())}
    for experiment, values in zip(matrix.experiments(defence, model), matrix.settings(defence)):
        cleaned = experiment.clean is not None
        stage = cleaned_by(experiment) if cleaned else trained_by(experiment)
        trial = read_stage(store, stage, described(experiment), TrialResult if cleaned else StageResult)
        if trial is None or trial.status != "finished":
            if trial is None or read_failure(trial.folder) is None:
                return _Read(Repetition(start=None), (), found)  # a choice among some of the settings is none among all
            failed = True
            continue
        trials.append(trial)
        told.append(", ".join(f"{path.rpartition('.')[2]} {_value(value)}" for path, value in values.items()))
        added.append(tuple(_artefacts(stages(experiment), shared, store)))
    compared = point if trials or failed else None
    return _Read(Repetition(start=compared, trials=trials, told=told), tuple(added), found)


def _value(value: Any) -> str:
    return value.label if isinstance(value, Component) else value_text(value)


def _artefacts(made: dict[str, Stage], shared: set[str], store: Store) -> list[Artefact]:
    own = [store.find(stage.kind, stage.fingerprint) for stage in walk(*made.values()) if stage.fingerprint not in shared]
    return [artefact for artefact in own if artefact]


def _cost(read: Sequence[_Read], hardware: str) -> dict[str, Any]:
    """Means over the seeds: of one setting, of all that were tried, and of the undefended training."""
    searches, single = [], []
    for one in read:
        each = [math.fsum(artefact.manifest["seconds"] for artefact in added) for added in one.added]
        once = {artefact.fingerprint: artefact.manifest["seconds"] for added in one.added for artefact in added}
        single += each
        searches += [math.fsum(once.values())] if each else []
    pretraining = [one.start.manifest["seconds"] for one in read if one.start]
    undefended = all(one.run.undefended for one in read)
    none = 0.0 if undefended and pretraining else None
    return {
        "seconds": fmean(single) if single else none,
        "search_seconds": fmean(searches) if searches else none,
        "pretraining_seconds": fmean(pretraining) if pretraining else None,
        "hardware": hardware,
    }


def cell(matrix: Matrix, row: str, defence: str, store: Store, hardware: str = "") -> Cell | None:
    """The cell as the store has it now; None where it holds nothing of it."""
    seeds = matrix.seeds_of(row, defence)
    read = [_read(matrix, defence, (row, seed), store) for seed in seeds]
    if not any(one.start for one in read):
        return None
    attack, clean = matrix.attacks[row], []
    if attack and matrix.clean_row:
        there = matrix.seeds_of(matrix.clean_row, defence)
        clean = [_read(matrix, defence, (matrix.clean_row, seed), store).run if seed in there else Repetition(start=None) for seed in seeds]
    gates = [_gate(matrix, (row, seed), store) for seed in seeds] if attack else []
    artefacts = [artefact for one in read for artefact in (one.start, *(a for added in one.added for a in added)) if artefact]
    newest = max(artefacts, key=lambda artefact: artefact.manifest["created"]).manifest
    experiment = matrix.experiments(defence, (row, seeds[0]))[0]
    found = Found(
        facts={
            "matrix": matrix.name,
            "attack": _attack(row, attack),
            "defence": _defence(matrix, defence, experiment),
            "model": getattr(experiment.pretrain.model, "name", experiment.pretrain.model.label),
            "data": matrix.data or _data(experiment),
        },
        seeds=seeds, runs=[one.run for one in read], gates=gates, clean=clean,
        clean_metric=f"asr/{metric_name(row)}/top1" if attack else ASR, rules=(matrix.oracle, matrix.blind), cost=_cost(read, hardware),
        commit=newest["commit"], date=newest["created"],
    )  # fmt: skip
    made = cell_of(found)
    refused = matrix.gate.action == "stop" and made["gate"] and not any(made["gate"]["took"])
    if made["measured"] is None and not refused and defence != NONE:
        return None  # not begun, which is no result
    return made


def _attack(row: str, attack: Poison | None) -> dict[str, Any]:
    if attack is None:
        return {"name": row, "trigger": "", "target": "", "count": 0, "rate": None, "mode": "", "config": {}}
    own = {"target": attack.target, "count": attack.count, "rate": attack.rate, "mode": attack.mode}
    return {"name": row, "trigger": type(attack.trigger).__name__, **own, "config": described(attack)}


def _defence(matrix: Matrix, defence: str, experiment: Experiment) -> dict[str, Any]:
    column = matrix.columns[defence]
    kinds = [type(one).__name__ for value in column.changes.values() for one in list(components(value))[:1] if isinstance(value, Component)]
    if "Clean" in kinds and experiment.clean is not None:
        kinds[kinds.index("Clean")] = type(experiment.clean.method).__name__
    config = {"changes": {path: described(value) for path, value in column.changes.items()},
              "space": {path: [described(value) for value in values] for path, values in column.grids.items()}}  # fmt: skip
    return {"name": defence, "class": " + ".join(kinds), "config": config, "trials": column.trials if defence != NONE else 0}


def _data(experiment: Experiment) -> str:
    source = experiment.data.source
    if isinstance(source, World):
        return f"procedural world, {source.train} pairs"
    return str(getattr(source, "urls", "") or type(source).__name__)
