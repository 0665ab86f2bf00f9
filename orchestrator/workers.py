"""What one training process does: open its inputs, build the model, hand both to `trainers`, and write what came of it.

Runs in a Ray Train worker, in a Tune trial or in the driver; the only traffic back is files in the stage's folder.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.cache import Decoded, cache_folder, decoded
from datasets.component import Component
from datasets.errors import InputError
from datasets.loader import Batch, LocalFeed, Recipe, ahead, eval_batches, make_batch
from datasets.pairs import Pairs
from datasets.seeding import hash64
from orchestrator import failures
from orchestrator.experiment import blank, further_sets
from orchestrator.returned import check_kept, check_returned, differs, signature
from orchestrator.spec import Compute, Experiment
from orchestrator.stages.inputs import Inputs
from orchestrator.store import (
    FAILED,
    MANIFEST,
    METRICS,
    NOTES,
    checked,
    digest_of,
    read_json,
    read_lines,
    write_arrays,
    write_json,
    write_lines,
)
from trainers import checkpoint, distributed
from trainers.checkpoint import Keep
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material, add_values, unchanged
from trainers.evaluate.choice import Epoch, chosen_epochs
from trainers.evaluate.probe import probe
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.loop import Report, fit
from trainers.methods.base import Method, Phase, Run
from trainers.methods.epoch import EpochPlan
from trainers.model import Encoder, Model
from trainers.objectives.base import Objective
from trainers.schedule import Training
from trainers.weights import aside, load_weights

PROGRESS = "progress.json"
WHOLE = 256
"""Pictures that are embedded or labelled at a time."""
MEASURED = "measured.json"
"""In a training's folder: what was measured along with it."""
ANALYSIS = "analysis"
"""Folder of a stage for the arrays behind its pictures, a file an epoch."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training stage, ready to run anywhere."""

    experiment: Experiment
    inputs: Inputs
    folder: str
    """The stage's working folder."""
    compute: Compute
    stage: str
    """What messages call it."""
    checkpoint: str = ""
    """Folder of the checkpoint that a cleaning, or a pre-training with a prior, starts from."""
    cleanset: str = ""
    """Rows file of the cleaning set."""
    made: tuple[tuple[Component, str], ...] = ()
    """(need, folder of what was made for it) of evaluators and method."""
    measures: tuple[str, ...] = ()
    """What each measurement is known by: of accuracy and ASR, then of each evaluator."""
    uncleaned: Epoch | None = None
    """What was measured of the model that a cleaning starts from."""
    cpus: float = 1.0
    """Cores of this process."""
    gpus: float = 0.0
    """GPUs of this process; 0 runs on the CPU, whatever the machine has."""


def pretrain(job: Job) -> None:
    """Pre-train in this process, one of `World.current().size`."""
    world = _start(job)
    with _failures(job, world):
        spec, pairs, say = job.experiment.training, job.inputs.pairs(), _note(job)

        def start(say: Callable[[str], None] = aside) -> Encoder:
            return load_model(job.experiment, job.checkpoint, say) if job.checkpoint else spec.model.build(spec.seed, say)

        _by_method(job, world, spec.objective, start(say), start, pairs, _surroundings(job, world, None))


def clean(job: Job, report: Report | None = None) -> None:
    """Clean the model of `job.checkpoint` in this process; `report` gets each new line of metrics."""
    world = _start(job)
    with _failures(job, world):
        spec = job.experiment.clean
        assert spec is not None
        pairs = job.inputs.pairs(job.cleanset)
        views = _decoded(job, pairs, job.cleanset, _note(job))  # not for a pre-training, which may be larger than the disk
        encoder = load_model(job.experiment, job.checkpoint, _note(job))
        few = replace(job, compute=replace(job.compute, loader_workers=0))  # batches are not worth starting processes for
        begun = distributed.from_main(world.main and checkpoint.newest(Path(job.folder)) is not None, world)
        before = {} if begun else probe(encoder, _feed(few, world, pairs, spec, True, views), spec, world)
        around = _surroundings(job, world, report)
        measure = around["measure"]

        def measured(model: Encoder, epoch: int, last: bool = False) -> dict[str, float]:
            return measure(model, epoch, last) | (before if epoch == 0 else {})

        around["measure"] = measured

        def start() -> Encoder:
            return load_model(job.experiment, job.checkpoint)

        _by_method(job, world, spec.method, encoder, start, pairs, around, views)


def _by_method(
    job: Job, world: World, method: Method | Objective, encoder: Encoder, start: Callable[[], Encoder], pairs: Pairs,
    around: dict[str, Any], views: Decoded | None = None,
) -> None:  # fmt: skip
    """Train the encoder by a method, and keep what it returns; `start` makes the encoder that it began with."""
    spec, folder, called, wanted = _spec(job), Path(job.folder), type(method).__name__, signature(encoder)
    poison = job.experiment.poison
    recipe = Recipe(views=job.experiment.views, trigger=poison.trigger, jpeg_quality=poison.jpeg_quality)
    whole = spec.epochs * (len(pairs) // spec.batch_size)
    ended: list[float] = []  # when each phase did
    progress = around.pop("progress")

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        def begin_epoch(model: Encoder, epoch: int) -> EpochPlan:
            assert phase.begin_epoch is not None
            decided = phase.begin_epoch(model, epoch)
            if not isinstance(decided, EpochPlan):
                raise InputError(f"begin_epoch of {called} returned {type(decided).__name__}; accepted: trainers.methods.epoch.EpochPlan.")
            decided.check(len(pairs), len(pairs) // spec.batch_size * spec.batch_size)
            return decided

        feed = _feed(job, world, pairs, spec, objective.two_views, views, phase.first + phase.training.epochs)
        fit(
            model, objective, phase.training, feed, first_epoch=phase.first, phase=phase.name,
            begin_epoch=begin_epoch if phase.begin_epoch else None, progress=lambda step, _, rate: progress(step, whole, rate), **around,
        )  # fmt: skip
        ended.append(time.monotonic())

    run = Run(
        trainer=train,
        training=spec,
        fresh=lambda: blank(job.experiment.pretrain.model).build(hash64(spec.seed, "fresh")),  # never the pre-training's own start
        keys=lambda: pairs.keys().to_pylist(),
        pairs=lambda: whole_pictures(pairs, recipe, world, views),
        made={need: checked(folder) for need, folder in job.made},
        folder=folder,
        world=world,
    )
    if isinstance(method, Objective):
        run.fit(encoder, method)
        return
    began = time.monotonic()
    returned = method.train(encoder, run)
    check_returned(returned, called, wanted)
    if 0 < run.done < spec.epochs:
        raise InputError(f"{called}.train trained for {run.done} of the {spec.epochs} epochs of {spec.slug}: its last run.fit is to have "
                         "all that are left.")
    if not ended:  # nothing was trained: what is measured first is the model as it was given
        values = around["measure"](_placed(job, start(), world), 0)
        if world.main:
            checkpoint.clear(folder)
            around["restore"]([])
            around["report"]({"epoch": 0, "step": 0, "seconds": 0.0, "metrics": values})
    _keep_returned(job, world, returned, called, around["measure"], time.monotonic() - (ended[-1] if ended else began))


def _spec(job: Job) -> Training:
    """The fields of the training that the job is."""
    spec = job.experiment.clean if job.cleanset else job.experiment.training
    assert spec is not None
    return spec


def _keep_returned(
    job: Job, world: World, returned: Encoder, method: str, measure: Callable[..., dict[str, float]], seconds: float
) -> None:
    """Save and measure what a method returned, where it is not what training ended with, as one epoch more.

    It is measured as it is read back, so that the line is that of the checkpoint and of nothing else. Tune is told of it once the
    stage is sealed. InputError naming the method where what is read back is another model.
    """
    folder, line, saved = Path(job.folder), None, None
    if world.main:
        saved = checkpoint.newest(folder)
        if saved is None or differs(returned, saved):
            last = read_lines(folder / METRICS)[-1]
            line = {"epoch": last["epoch"] + 1, "step": last["step"], "seconds": last["seconds"] + seconds, "returned": True}
            saved = checkpoint.save_returned(folder, returned, line["epoch"])
    line, saved = distributed.from_main((line, saved), world)
    again = load_model(job.experiment, str(saved))
    if world.main:
        check_kept(returned, again, method)
    if line is None:
        return
    metrics = measure(_placed(job, again, world), line["epoch"], last=True)
    if world.main:
        _append(folder / METRICS, {**line, "metrics": metrics}, None)
        keep = _keep(job)
        wanted = keep(read_lines(folder / METRICS)) if callable(keep) else ()
        kept = [checkpoint.epoch_folder(folder, epoch).name for epoch in (*wanted, line["epoch"])]
        for other in folder.glob("epoch_*") if keep != "all" else ():
            if other.name not in kept:
                checkpoint.remove(other)


def _placed(job: Job, encoder: Encoder, world: World) -> Encoder:
    """The model as the job trains and measures it."""
    spec = _spec(job)
    return encoder.place(world.device, precision=spec.precision, channels_last=spec.channels_last)


def whole_pictures(pairs: Pairs, recipe: Recipe, world: World, views: Decoded | None = None) -> Iterator[dict[str, Any]]:
    """This rank's share of batches that hold every pair once, as trained on but not augmented: `Run.pairs`."""
    plain = replace(recipe, views=replace(recipe.views, crop=None, flip=False))

    def make(number: int) -> dict[str, Any]:
        position_B = np.arange(number * WHOLE, min(len(pairs), (number + 1) * WHOLE))
        batch = make_batch(pairs.records(position_B), 0, plain, None if views is None else views[position_B])
        return {"number": number, **batch}

    return ahead(make, range(world.rank, math.ceil(len(pairs) / WHOLE), world.size))


def load_model(experiment: Experiment, weights: str, say: Callable[[str], None] = aside) -> Encoder:
    """The experiment's model with the weights of a checkpoint: an epoch folder, a file, or a pretrained tag of open_clip.

    `say` is told what the checkpoint does not tell of itself.
    """
    model = experiment.pretrain.model
    if isinstance(model, Model) and not os.path.exists(weights) and "/" not in weights:
        return replace(model, pretrained=weights).build(0, say)
    encoder = blank(model).build(0)
    load_weights(encoder, checked(weights), say=say)
    return encoder


@contextmanager
def measured_as(checkpoint: str) -> Iterator[None]:
    """InputError that names the checkpoint where what its model computes is not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(f"checkpoint {checkpoint} cannot be measured: {error}") from error


def evaluate(job: Job, encoder: Encoder) -> dict[str, float]:
    """Zero-shot accuracy and attack success of a model, with counts and intervals."""
    world = _start(job)
    encoder.place(world.device)
    return _measure(job, world, lambda line: print(line, file=sys.stderr))(encoder, 0, last=True)


def measure_given(job: Job, weights: str) -> Encoder:
    """The given model, after its line of metrics is written into the job's folder."""
    world, folder = _start(job), Path(job.folder)
    with _failures(job, world), measured_as(weights):
        encoder = load_model(job.experiment, weights, _note(job)).place(world.device)
        began = time.monotonic()
        metrics = _measure(job, world, _note(job), folder)(encoder, 0, last=True)
        write_lines(folder / METRICS, [{"epoch": 0, "step": 0, "seconds": time.monotonic() - began, "metrics": metrics}])
    return encoder


def measure_stored(job: Job, checkpoints: list[tuple[int, str]], evaluator: Evaluator | None) -> None:
    """Write a line of metrics for each (epoch, checkpoint): of this evaluator, or of accuracy and ASR."""
    world, folder = _start(job), Path(job.folder)
    with _failures(job, world):
        measure = _measure(job, world, _note(job), folder, (evaluator,))
        lines = []
        for epoch, weights in checkpoints:
            began = time.monotonic()
            with measured_as(weights):
                metrics = measure(load_model(job.experiment, weights, _note(job)).place(world.device), epoch)
            lines.append({"epoch": epoch, "step": 0, "seconds": time.monotonic() - began, "metrics": metrics})
        write_lines(folder / METRICS, lines)


@contextmanager
def _failures(job: Job, world: World) -> Iterator[None]:
    """Write down what would fail the same way again, so that the driver can say it and no retry is wasted on it."""
    path = Path(job.folder) / FAILED
    if path.exists():
        raise RuntimeError("another worker of this stage failed")
    try:
        yield
    except Exception as error:
        kind = failures.kind_of(error)
        if kind in (failures.INPUT, failures.DIVERGED, failures.OUT_OF_MEMORY, failures.DISK_FULL):
            write_json(path, {"kind": kind, "error": str(error) or type(error).__name__, "rank": world.rank})
        raise


def _start(job: Job) -> World:
    return start(job.cpus, job.gpus)


def start(cpus: float, gpus: float) -> World:
    """Where this process stands, with the cores and GPUs that it may use."""
    torch.set_num_threads(max(1, int(cpus)))
    world = World.current()
    if not gpus:
        return replace(world, device=torch.device("cpu"))
    torch.cuda.empty_cache()  # of the trial that this process ran before
    return world


def _surroundings(job: Job, world: World, report: Report | None) -> dict[str, Any]:
    """What `fit` and a cleaning run are told about this process: where to save, how to measure, whom to tell."""
    folder = Path(job.folder)
    batch_size = _spec(job).batch_size
    return {
        "folder": folder,
        "world": world,
        "measure": _measure(job, world, _note(job), folder),
        "report": lambda line: _append(folder / METRICS, line, report),
        "restore": lambda lines: _restore(folder / METRICS, lines, report),
        "note": _note(job),
        "progress": lambda step, total, rate: _progress(folder / PROGRESS, step, total, rate, batch_size),
        "keep": _keep(job) if job.cleanset else "all",
        "states": 1 if job.cleanset else 2,  # a pre-training may be long: where its last checkpoint is damaged, the one before serves
        "ledger": folder / "ledger.jsonl" if os.environ.get("CLEANSWEEP_LEDGER") else None,
    }


def _keep(job: Job) -> Keep:
    """What stays of a cleaning's checkpoints: where it is "chosen", the epochs that the report's rules pick of those so far."""
    if job.compute.keep != "chosen":
        return job.compute.keep
    return partial(chosen_epochs, start=job.uncleaned)


def _feed(
    job: Job, world: World, pairs: Pairs, training: Training, two_views: bool, views: Decoded | None = None, epochs: int | None = None
) -> Any:
    """The batches of a training up to the end of so many epochs, by default of all."""
    recipe = Recipe(
        views=job.experiment.views,
        trigger=job.experiment.poison.trigger,
        jpeg_quality=job.experiment.poison.jpeg_quality,
        seed=training.seed,
        two_views=two_views,
        eda=job.experiment.eda,
    )
    if len(pairs) < training.batch_size:
        raise InputError(f"batch_size is {training.batch_size}, but there are only {len(pairs)} pairs to train on.")
    steps = (epochs or training.epochs) * (len(pairs) // training.batch_size)
    common: dict[str, Any] = {"batch_size": training.batch_size, "steps": steps, "rank": world.rank, "world": world.size}
    if job.compute.feed == "ray" and not job.cleanset:
        from orchestrator.streaming import RayFeed

        return RayFeed(pairs, recipe, cpus=job.compute.feed_cpus, **common)
    return LocalFeed(pairs, recipe, workers=job.compute.loader_workers, decoded=views, **common)


def _note(job: Job) -> Callable[[str], None]:
    """Says a line through the driver, which follows the stage's folder."""

    def say(line: str) -> None:
        with open(Path(job.folder) / NOTES, "a") as handle:
            handle.write(line + "\n")

    return say


def _decoded(job: Job, pairs: Pairs, file: str, say: Callable[[str], None]) -> Decoded | None:
    """The decoded pictures of an artefact's pairs on this machine; None where they are not kept. `file` is one of the artefact."""
    manifest = read_json(Path(file).with_name(MANIFEST))
    try:
        folder = cache_folder(job.compute.cache)
    except (InputError, OSError) as error:
        say(f"NOTE no decoded pictures are kept: {error}")
        return None
    if folder is None or manifest is None:
        return None
    return decoded(pairs, job.experiment.views.size, folder, manifest["fingerprint"], threads=max(1, int(job.cpus)), say=say)


def _measure(
    job: Job, world: World, say: Callable[[str], None], folder: Path | None = None, only: tuple[Evaluator | None, ...] | None = None
) -> Callable[..., dict[str, float]]:
    """What measures a model after an epoch: accuracy and ASR (None), then each evaluator, or `only` these.

    Arrays that evaluators give, and what each is known by, are written into the stage's `folder`, where there is one. What is not due
    is left out, unless it is told that the model is the `last`.
    """
    experiment, inputs = job.experiment, job.inputs
    spec = experiment.evaluate
    poison = experiment.poison
    recipe = Recipe(views=experiment.views, trigger=poison.trigger, jpeg_quality=poison.jpeg_quality, seed=spec.seed)

    def share(pairs: Pairs, index: str) -> Callable[[], Iterator[Batch]]:
        views = _decoded(job, pairs, index, say)
        return lambda: eval_batches(pairs, recipe, spec.batch_size, world.rank, world.size, views)

    material = Material(
        test=share(inputs.test(), inputs.test_index),
        made={need: checked(folder) for need, folder in job.made},
        sets={one: share(made.pairs(), made.index) for one, made in zip(further_sets(experiment), inputs.further)},
        target=inputs.target,
        class_names=inputs.class_names,
        pairs=inputs.pairs(),
        recipe=recipe,
        batch_size=spec.batch_size,
        world=world,
    )
    zero_shot = ZeroShotASR(class_names=inputs.class_names, templates=inputs.templates, target=inputs.target)

    stage = experiment.clean if job.cleanset else experiment.pretrain
    epochs = getattr(stage, "epochs", 0)  # a given model has none

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
    """Note what was measured at this epoch, and that what an earlier attempt measured is not any more.

    InputError names the file where an earlier attempt's was lost or damaged.
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

    None where the file is missing or not as it was written.
    """
    found = read_json(path)
    whole = isinstance(found, dict) and isinstance(found.get("measured"), dict) and found.get("digest") == digest_of(found["measured"])
    return found["measured"] if whole else None


def _append(path: Path, line: dict[str, Any], report: Report | None) -> None:
    """Add a line of metrics unless this epoch has one already: an attempt that died after writing it repeats it exactly."""
    lines = read_lines(path)
    if line["epoch"] not in {entry["epoch"] for entry in lines}:
        write_lines(path, [*lines, line])
    if report is not None:
        report(line)


def _restore(path: Path, lines: list[dict[str, Any]], report: Report | None) -> None:
    """Bring the lines of metrics to where the checkpoint is that training goes on from, whatever an earlier attempt left there."""
    if lines or path.exists():
        write_lines(path, lines)
    for line in lines if report is not None else []:
        report(line)  # type: ignore[misc]


def _progress(path: Path, step: int, total: int, rate: float, batch_size: int) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"step": step, "total": total, "rate": rate, "batch_size": batch_size}))
    aside.replace(path)
