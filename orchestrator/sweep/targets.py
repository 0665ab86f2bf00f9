"""Which experiment of a sweep is meant: `poison` needs one, `evaluate` and `analyse` the one that a checkpoint is measured by.

For a checkpoint of the store, the stage that made it tells; for any other, overrides must tell wherever it makes a difference.
"""

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator.console.log import log, note
from orchestrator.experiment.fingerprint import canonical, encode
from orchestrator.experiment.override import get, override_all
from orchestrator.experiment.spec import Experiment, Sweep
from orchestrator.manifest import read_manifest
from orchestrator.stages.base import Stage
from orchestrator.stages.graph import stages
from orchestrator.store import MANIFEST, Store, read_json
from orchestrator.sweep.loading import narrowed, overridden
from orchestrator.sweep.plan import Plan, make_plan, trial_experiment
from orchestrator.sweep.records import remembered_trials

OWN = ("data", "views", "poison", "evaluate", "pretrain.model")
"""Fields on which a measurement depends that uses the experiment's own sets."""
GIVEN = ("views", "poison.trigger", "poison.target", "evaluate.seed", "pretrain.model")
"""Fields on which a measurement depends that uses sets named by the user."""
POISONED = ("data", "views", "poison", "evaluate")
"""Fields on which poisoned shards depend."""
MADE = ("pretrain", "clean", "prior", "labeller")
"""Roles of the stages that hold checkpoints."""


def experiment_of(sweep: Sweep, overrides: dict[str, str], matters: tuple[str, ...]) -> Experiment:
    """The sweep's experiment with the overrides; InputError if its experiments differ in a field of `matters`."""
    wanted = [experiment for _, experiment in make_plan(narrowed(sweep, overrides)).upstream]
    matters = _fields(wanted, matters)
    if _alike(wanted, matters):
        return wanted[0]
    raise InputError(f"the sweep {sweep.name} varies {_choice(wanted, matters)}.")


def experiments_of(
    sweep: Sweep, overrides: dict[str, str], checkpoints: Sequence[str], matters: tuple[str, ...], store: str
) -> dict[str, Experiment]:
    """Checkpoint → the experiment of the sweep to measure it by, the overrides in place.

    Where the fields that matter are the same in all of the sweep's experiments, that is any of them. Else it is the one whose stage made
    the checkpoint, and the user is told. InputError where there is none and the overrides do not choose. The user is also told where a
    model was trained with another trigger or target than it is measured with.
    """
    chosen: dict[tuple[str, ...], Experiment] = {}
    found = {}
    for checkpoint in checkpoints:
        if "/" in checkpoint and not os.path.exists(checkpoint):  # also if the name is too long for a file
            raise InputError(f"--checkpoint {checkpoint} does not exist; give an epoch folder, a file or a tag of open_clip's.")
        made = origin(checkpoint)
        if made not in chosen:
            chosen[made] = _experiment(sweep, overrides, checkpoint, matters, Store(store))
        found[checkpoint] = chosen[made]
        trained = _poison_of(checkpoint)
        measured = [encode(attack, "poison") for attack in found[checkpoint].poisons]
        if trained and len(trained) != len(measured):
            note(f"{checkpoint} was trained with {len(trained)} attacks and is measured with {len(measured)}.")
        for one, other in zip(trained, measured):
            for field in ("trigger", "target"):
                if canonical(one[field]) != canonical(other[field]):
                    note(f"{checkpoint} was trained with {field} {one[field]} and is measured with {other[field]}.")
    return found


def _poison_of(checkpoint: str) -> list[dict[str, Any]]:
    """The attacks that a checkpoint of a store was trained with, by the manifests of its stages; empty if they do not say."""
    for folder in _folders(checkpoint):
        manifest = _manifest(folder)
        for before in ("pretrain", "poison"):  # for a cleaning, the pre-training first
            if before in manifest.get("inputs", {}):
                made = Store(folder.parent.parent).find(before, manifest["inputs"][before])
                manifest = made.manifest if made else {}
        if manifest.get("stage") == "poison":
            return manifest["config"].get("attacks") or [manifest["config"]["poison"]]
    return []


def _folders(checkpoint: str) -> tuple[Path, ...]:
    """Folders that may hold the manifest of its stage: a checkpoint is a file, the folder of an epoch, or that of the stage."""
    path = Path(checkpoint).resolve()
    return (path, *path.parents)[:3]


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a training in this folder; empty if there is none. InputError if it is damaged."""
    found = read_json(folder / MANIFEST)
    return read_manifest(folder) if isinstance(found, dict) and found.get("stage") in ("pretrain", "clean") else {}


def origin(checkpoint: str) -> tuple[str, ...]:
    """Fingerprints, or their first digits, of the stage in whose folder the checkpoint lies and of the pre-training before it."""
    for folder in _folders(checkpoint):
        if manifest := _manifest(folder):
            before = manifest["inputs"].get("pretrain")
            return (manifest["fingerprint"], before) if before else (manifest["fingerprint"],)
        work = re.fullmatch(r"\.work-([0-9a-f]{12})", folder.name)
        if work and folder.parent.name in ("pretrain", "clean"):
            return (work[1],)
    return ()


def own_stage(plan: Plan, store: Store, checkpoint: str) -> Stage | None:
    """The stage of the sweep in whose folder the checkpoint lies; None: another one made it."""
    made = origin(checkpoint)
    for experiment in _experiments(plan, store) if made else ():
        for role, stage in stages(experiment).items():
            if role in MADE and stage.fingerprint == made[0]:
                return stage
    return None


def _experiment(
    sweep: Sweep, overrides: dict[str, str], checkpoint: str, matters: tuple[str, ...], store: Store
) -> Experiment:
    wanted = [experiment for _, experiment in make_plan(narrowed(sweep, overrides)).upstream]
    matters = _fields(wanted, matters)
    if _alike(wanted, matters):
        return wanted[0]
    made, trouble = origin(checkpoint), ""
    # An override may be one that the sweep ran with, or one for this measurement alone.
    for count in range(len(overrides), -1, -1) if made else ():
        for ran_with in combinations(overrides, count):
            try:
                plan = make_plan(overridden(sweep, {path: overrides[path] for path in ran_with}, sweep.name))
            except InputError:
                continue  # the sweep cannot have run with only these
            try:
                among = _experiments(plan, store)
                makers = _makers(among, made)
            except InputError as error:
                trouble = trouble or f" (What its stages are made from cannot be read: {error})"
                continue
            if makers and _alike(makers, matters):
                later = {path: _value(wanted, path, overrides[path]) for path in overrides if path not in ran_with}
                changed = "".join(f", with --{path} {overrides[path]}" for path in later)
                log.info(f"{checkpoint}: {_told(makers, among)}{changed}")
                return override_all(makers[0], later)
    raise InputError(
        f"--checkpoint {checkpoint} does not tell which experiment of the sweep {sweep.name} to measure it by, which varies "
        f"{_choice(wanted, matters)}.{trouble}"
    )


def _choice(wanted: list[Experiment], matters: tuple[str, ...]) -> str:
    """How the experiments differ, and how to choose among them."""
    varied = {path: _texts(wanted, path) for path in _varied(wanted, matters)}
    listed = " and ".join(f"{path} ({', '.join(texts)})" for path, texts in varied.items())
    example = " ".join(f"--{path} {shlex.quote(texts[0])}" for path, texts in varied.items())
    return f"{listed}: choose one, e.g. {example}"


def _experiments(plan: Plan, store: Store) -> list[Experiment]:
    """All experiments of the sweep; if its cleanings are drawn, those that were begun."""
    drawn = [] if plan.sweep.base.clean is None else remembered_trials(plan, store)
    trials = [trial_experiment(plan.sweep, overrides) for overrides in drawn]
    return [experiment for _, experiment in plan.grid or plan.upstream] + trials


def _fields(experiments: list[Experiment], paths: tuple[str, ...]) -> tuple[str, ...]:
    """The paths, with `attacks` in place of the fields of `poison` if the experiments have several attacks."""
    if all(experiment.poison is not None for experiment in experiments):
        return paths
    return tuple(dict.fromkeys("attacks" if path.split(".")[0] == "poison" else path for path in paths))


def _alike(experiments: list[Experiment], matters: tuple[str, ...]) -> bool:
    return len({tuple(get(experiment, path) for path in matters) for experiment in experiments}) == 1


def _makers(experiments: list[Experiment], made: tuple[str, ...]) -> list[Experiment]:
    """The experiments that have the stage of the checkpoint, or else the pre-training before it."""
    for digits in made:
        found = [
            experiment
            for experiment in experiments
            if any(role in MADE and stage.fingerprint.startswith(digits) for role, stage in stages(experiment).items())
        ]
        if found:
            return found
    return []


def _value(experiments: list[Experiment], path: str, text: str) -> Any:
    """The value that the override sets at the path; InputError if its text can mean several values."""
    values = {get(experiment, path) for experiment in experiments}
    if len(values) > 1:
        raise InputError(f"--{path} {text} names several that differ; name their fields too.")
    return values.pop()


def _told(makers: list[Experiment], among: list[Experiment]) -> str:
    """How the experiments of a checkpoint differ from the sweep's others: `poison.count 400, pretrain.seed 1`."""
    above = tuple(field.name for field in dataclasses.fields(Experiment) if field.name != "clean")
    return ", ".join(f"{path} {' or '.join(_texts(makers, path))}" for path in _varied(among, above))


def _varied(experiments: list[Experiment], paths: tuple[str, ...]) -> list[str]:
    """The paths, at or below the given ones, in which the experiments differ. Components of one class are compared field by field."""
    found = []
    for path in paths:
        values = [get(experiment, path) for experiment in experiments]
        if isinstance(values[0], Component) and len({type(value) for value in values}) == 1:
            found += _varied(experiments, tuple(f"{path}.{field.name}" for field in dataclasses.fields(values[0])))
        elif len(set(values)) > 1:
            found.append(path)
    return found


def _texts(experiments: list[Experiment], path: str) -> list[str]:
    """The texts that an override at the path can have."""
    values = (get(experiment, path) for experiment in experiments)
    return list(dict.fromkeys(type(value).__name__ if isinstance(value, Component) else str(value) for value in values))
