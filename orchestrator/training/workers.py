"""What one training process does: open its inputs, build the model, hand both to `trainers`, and write the results.

Runs in a Ray Train worker, in a Tune trial or in the driver; it answers only through files in the stage's folder.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.feed.cache import Decoded
from datasets.feed.loader import LocalFeed
from datasets.index.order import Drawn
from datasets.index.pairs import Pairs
from datasets.seeding import hash64
from orchestrator.console.log import log, say
from orchestrator.experiment.check import blank
from orchestrator.experiment.spec import Pretrain
from orchestrator.store import METRICS, checked, read_lines, write_lines
from orchestrator.training.job import Job, decoded_views, load_model, making, start, whole_pictures
from orchestrator.training.measuring import measure_of
from orchestrator.training.returned import check_kept, check_returned, differs, signature
from trainers import checkpoint, distributed
from trainers.checkpoint import Keep
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.choice import chosen_epochs
from trainers.evaluate.probe import probe
from trainers.loop import Report, fit
from trainers.methods.base import Method, Phase, Run
from trainers.methods.epoch import EpochPlan
from trainers.objectives.base import Objective
from trainers.schedule import Training

PROGRESS = "progress.json"


def pretrain(job: Job) -> None:
    """Pre-train in this process, one of `World.current().size`."""
    world = start(job.cpus, job.gpus)
    with making(job, world):
        spec, pairs = job.experiment.training, job.inputs.pairs()

        def original() -> Encoder:
            return load_model(job.experiment, job.checkpoint) if job.checkpoint else spec.model.build(spec.seed, say)

        _by_method(job, world, spec.objective, original(), original, pairs, _surroundings(job, world, None))


def clean(job: Job, report: Report | None = None) -> None:
    """Clean the model of `job.checkpoint` in this process; `report` gets each new line of metrics."""
    world = start(job.cpus, job.gpus)
    with making(job, world):
        spec = job.experiment.clean
        assert spec is not None
        pairs = job.inputs.pairs(job.cleanset)
        views = decoded_views(job, pairs, job.cleanset)  # only for a cleaning: the pictures of a pre-training may not fit on the disk
        encoder = load_model(job.experiment, job.checkpoint)
        few = replace(job, compute=replace(job.compute, loader_workers=0))  # batches of decoded pictures need no reading processes
        begun = distributed.from_main(world.main and checkpoint.newest(Path(job.folder)) is not None, world)
        before = {} if begun else probe(encoder, _feed(few, world, pairs, spec, True, views), spec, world)
        around = _surroundings(job, world, report)
        measure = around["measure"]

        def measured(model: Encoder, epoch: int, last: bool = False) -> dict[str, float]:
            return measure(model, epoch, last) | (before if epoch == 0 else {})

        around["measure"] = measured

        def original() -> Encoder:
            return load_model(job.experiment, job.checkpoint)

        _by_method(job, world, spec.method, encoder, original, pairs, around, views)


def _by_method(
    job: Job, world: World, method: Method | Objective, encoder: Encoder, original: Callable[[], Encoder], pairs: Pairs,
    around: dict[str, Any], views: Decoded | None = None,
) -> None:  # fmt: skip
    """Train the encoder by a method, and keep the model that it returns; `original` makes the encoder that training began with."""
    spec, folder, called, wanted = _spec(job), Path(job.folder), type(method).__name__, signature(encoder)
    recipe = job.experiment.recipe()
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
            model, objective, phase.training, feed, first_epoch=phase.first, phase=phase.name, aside=phase.aside,
            begin_epoch=begin_epoch if phase.begin_epoch else None, progress=lambda step, _, rate: progress(step, whole, rate), **around,
        )  # fmt: skip
        ended.append(time.monotonic())

    run = Run(
        trainer=train,
        training=spec,
        fresh=lambda: blank(job.experiment.pretrain.model).build(hash64(spec.seed, "fresh")),  # not the pre-training's first weights
        keys=lambda: pairs.keys().to_pylist(),
        pairs=lambda: whole_pictures(pairs, recipe, world, views),
        made={need: checked(folder) for need, folder in job.made},
        folder=folder,
        world=world,
        attacks=job.experiment.poisons,
        victims_captions=pairs.victims_captions,
    )
    if isinstance(method, Objective):
        run.fit(encoder, method)
        return
    for part in method.parts():
        part.check(len(pairs))
        part.check_training(spec, len(pairs))
    began = time.monotonic()
    returned = method.train(encoder, run)
    check_returned(returned, called, wanted)
    if 0 < run.done < spec.epochs:
        raise InputError(f"{called}.train trained for {run.done} of the {spec.epochs} epochs of {spec.slug}: its last run.fit is to have "
                         "all that are left.")
    if not ended:  # nothing was trained: epoch 0 is the given model
        values = around["measure"](_placed(job, original(), world), 0)
        if world.main:
            checkpoint.clear(folder)
            around["restore"]([])
            around["report"]({"epoch": 0, "step": 0, "seconds": 0.0, "metrics": values})
    _keep_returned(job, world, returned, called, around["measure"], time.monotonic() - (ended[-1] if ended else began))


def _spec(job: Job) -> Training:
    """The fields of the job's training."""
    spec = job.experiment.clean if job.cleanset else job.experiment.training
    assert spec is not None
    return spec


def _keep_returned(
    job: Job, world: World, returned: Encoder, method: str, measure: Callable[..., dict[str, float]], seconds: float
) -> None:
    """Save and measure the model that a method returned as one more epoch, if it is not the one that training ended with.

    The model that is measured is read back from the checkpoint, so that the line describes exactly that. Tune hears of it once the stage is
    sealed. InputError naming the method where the model that is read back differs.
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
    """Move the model to the job's device and precision."""
    spec = _spec(job)
    return encoder.place(world.device, precision=spec.precision, channels_last=spec.channels_last)


def _surroundings(job: Job, world: World, report: Report | None) -> dict[str, Any]:
    """The arguments of `fit` that depend on this process: where to save, how to measure, and the callback for metrics."""
    folder = Path(job.folder)
    batch_size = _spec(job).batch_size
    return {
        "folder": folder,
        "world": world,
        "measure": measure_of(job, world, folder),
        "report": lambda line: _append(folder / METRICS, line, report),
        "restore": lambda lines: _restore(folder / METRICS, lines, report),
        "note": say,
        "progress": lambda step, total, rate: _progress(folder / PROGRESS, step, total, rate, batch_size),
        "keep": _keep(job) if job.cleanset else "all",
        "states": 1 if job.cleanset else 2,  # a pre-training may be long: if its last checkpoint is damaged, the one before is used
        "ledger": folder / "ledger.jsonl" if os.environ.get("CLEANSWEEP_LEDGER") else None,
    }


def _keep(job: Job) -> Keep:
    """Which checkpoints of a cleaning are kept: with "chosen", those of the epochs that the report's rules pick so far."""
    if job.compute.keep != "chosen":
        return job.compute.keep
    return partial(chosen_epochs, start=job.uncleaned)


def _feed(
    job: Job, world: World, pairs: Pairs, training: Training, two_views: bool, views: Decoded | None = None, epochs: int | None = None
) -> Any:
    """The batches of a training for this many epochs; by default for all of its epochs."""
    order = training.order if isinstance(training, Pretrain) else Drawn()
    recipe = job.experiment.recipe(seed=training.seed, two_views=two_views, eda=job.experiment.eda, order=order)
    if len(pairs) < training.batch_size:
        raise InputError(f"batch_size is {training.batch_size}, but there are only {len(pairs)} pairs to train on.")
    steps = (epochs or training.epochs) * (len(pairs) // training.batch_size)
    common: dict[str, Any] = {"batch_size": training.batch_size, "steps": steps, "rank": world.rank, "world": world.size}
    if job.compute.feed == "ray" and not job.cleanset:
        from orchestrator.cluster.streaming import RayFeed

        return RayFeed(pairs, recipe, cpus=job.compute.feed_cpus, **common)
    return LocalFeed(pairs, recipe, workers=job.compute.loader_workers, decoded=views, **common)


def _append(path: Path, line: dict[str, Any], report: Report | None) -> None:
    """Add a line of metrics unless this epoch has one: after an attempt that died once it had written the line, the same line comes
    again."""
    lines = read_lines(path)
    log.debug("epoch %d, step %d: %s", line["epoch"], line["step"], line["metrics"])
    if line["epoch"] not in {entry["epoch"] for entry in lines}:
        write_lines(path, [*lines, line])
    if report is not None:
        report(line)


def _restore(path: Path, lines: list[dict[str, Any]], report: Report | None) -> None:
    """Reset the lines of metrics to those of the checkpoint that training continues from, whatever an earlier attempt left there."""
    if lines or path.exists():
        write_lines(path, lines)
    for line in lines if report is not None else []:
        report(line)  # type: ignore[misc]


def _progress(path: Path, step: int, total: int, rate: float, batch_size: int) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"step": step, "total": total, "rate": rate, "batch_size": batch_size}))
    aside.replace(path)
