"""How a process measures a model: accuracy and ASR, then each evaluator; and how the results are recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.errors import InputError
from datasets.feed.loader import Batch, eval_batches
from datasets.index.pairs import Pairs
from orchestrator.experiment.check import further_sets
from orchestrator.store import METRICS, checked, digest_of, read_json, write_arrays, write_json, write_lines
from orchestrator.training.job import Job, decoded_views, load_model, making, measured_as, start
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material, add_values, unchanged
from trainers.evaluate.zeroshot import Aim, ZeroShotASR

if TYPE_CHECKING:
    from trainers.encoder import Encoder

MEASURED = "measured.json"
"""In a training's folder: which measurements were made during the training."""
ANALYSIS = "analysis"
"""Folder of a stage for the arrays of its figures, one file for each epoch."""


def evaluate(job: Job, encoder: Encoder) -> dict[str, float]:
    """Zero-shot accuracy and attack success of a model, with counts and intervals."""
    world = start(job.cpus, job.gpus)
    encoder.place(world.device)
    return measure_of(job, world)(encoder, 0, last=True)


def measure_given(job: Job, weights: str) -> Encoder:
    """Measure a given model and write its line of metrics into the job's folder; returns the model."""
    world, folder = start(job.cpus, job.gpus), Path(job.folder)
    with making(job, world), measured_as(weights):
        encoder = load_model(job.experiment, weights).place(world.device)
        began = time.monotonic()
        metrics = measure_of(job, world, folder)(encoder, 0, last=True)
        write_lines(folder / METRICS, [{"epoch": 0, "step": 0, "seconds": time.monotonic() - began, "metrics": metrics}])
    return encoder


def measure_stored(job: Job, checkpoints: list[tuple[int, str]], evaluator: Evaluator | None) -> None:
    """Write a line of metrics for each (epoch, checkpoint): of this evaluator, or of accuracy and ASR."""
    world, folder = start(job.cpus, job.gpus), Path(job.folder)
    with making(job, world):
        measure = measure_of(job, world, folder, (evaluator,))
        lines = []
        for epoch, weights in checkpoints:
            began = time.monotonic()
            with measured_as(weights):
                metrics = measure(load_model(job.experiment, weights).place(world.device), epoch)
            lines.append({"epoch": epoch, "step": 0, "seconds": time.monotonic() - began, "metrics": metrics})
        write_lines(folder / METRICS, lines)


def measure_of(
    job: Job, world: World, folder: Path | None = None, only: tuple[Evaluator | None, ...] | None = None
) -> Callable[..., dict[str, float]]:
    """The function that measures a model after an epoch: accuracy and ASR (None), then each evaluator, or `only` these. Arrays that
    evaluators return, and the measurements' digests, are written into the stage's `folder`, if there is one. Evaluators that are not due
    are left out, unless the model is the `last`.
    """
    experiment, inputs = job.experiment, job.inputs
    spec = experiment.evaluate
    recipe = experiment.recipe(seed=spec.seed)

    def share(pairs: Pairs, index: str) -> Callable[..., Iterator[Batch]]:
        views = decoded_views(job, pairs, index)
        return lambda recipe=recipe: eval_batches(pairs, recipe, spec.batch_size, world.rank, world.size, views)

    test = share(inputs.test(), inputs.test_index)
    material = Material(
        test=test,
        test_with=lambda trigger: test(replace(recipe, trigger=trigger, others=())),
        made={need: checked(folder) for need, folder in job.made},
        sets={one: share(made.pairs(), made.index) for one, made in zip(further_sets(experiment), inputs.further)},
        classes={one: (made.class_names, made.templates) for one, made in zip(further_sets(experiment), inputs.further)},
        target=inputs.targets[0],
        class_names=inputs.class_names,
        templates=inputs.templates,
        pairs=inputs.pairs(),
        recipe=recipe,
        batch_size=spec.batch_size,
        world=world,
    )
    aims = tuple(
        Aim(name=attack.name, target=target, trigger=attack.trigger, seed=spec.seed, text_only=attack.mode == "text_only")
        for attack, target in zip(experiment.poisons, inputs.targets, strict=True)
    )
    material = replace(material, aims=aims)
    zero_shot = ZeroShotASR(class_names=inputs.class_names, templates=inputs.templates, aims=aims)

    stage = experiment.clean if job.cleanset else experiment.pretrain
    epochs = getattr(stage, "epochs", 0)  # a given model has no epochs

    def measure(encoder: Encoder, epoch: int, last: bool = False) -> dict[str, float]:
        values: dict[str, Any] = {}
        names: list[list[str]] = []
        for evaluator in (one or zero_shot for one in ((None, *spec.evaluators) if only is None else only)):
            if only is None and not last and not evaluator.due(epoch, epochs):
                names.append([])
                continue
            before = set(values)
            with unchanged(encoder, evaluator):
                found = evaluator.measure(encoder, evaluator.open(material), world)
            add_values(values, evaluator, found)
            names.append(sorted(values.keys() - before))
        arrays = {name: values.pop(name) for name in list(values) if isinstance(values[name], np.ndarray)}
        if folder is not None and world.main:
            if arrays:
                write_arrays(folder / ANALYSIS / f"epoch_{epoch:04d}.npz", arrays)
            if job.measures:
                _remember(folder / MEASURED, dict(zip(job.measures, names, strict=True)), epoch)
        return values

    return measure


def _remember(path: Path, names: dict[str, list[str]], epoch: int) -> None:
    """Record what was measured at this epoch, and which measurements of an earlier attempt ended. InputError names the file where an
    earlier attempt's record was lost or damaged.
    """
    known = read_measured(path)
    if known is None and (epoch > 0 or path.exists()):
        raise InputError(f"{path} is not as it was written, or missing: delete {path.parent} to begin the stage anew.")
    known = known or {}
    noted = {key: {**entry, "until": entry.get("until", epoch)} if key not in names else dict(entry) for key, entry in known.items()}
    for key, own in names.items():
        entry = noted.setdefault(key, {"names": own, "from": epoch})
        entry["names"] = sorted({*entry["names"], *own})
    if noted != known:
        write_json(path, {"measured": noted, "digest": digest_of(noted)})


def read_measured(path: Path) -> dict[str, Any] | None:
    """Digest → what was measured while a model trained: {"names", "from" which epoch, "until" which, where it was not to the end}.

    None where the file is missing or was changed.
    """
    found = read_json(path)
    whole = isinstance(found, dict) and isinstance(found.get("measured"), dict) and found.get("digest") == digest_of(found["measured"])
    return found["measured"] if whole else None
