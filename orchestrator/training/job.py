"""What one process needs to make a stage: its input, how it reads pictures and weights, and how it records a failure."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Component
from datasets.errors import InputError
from datasets.feed.cache import Decoded, cache_folder, decoded
from datasets.feed.decode import ahead
from datasets.feed.loader import Recipe, make_batch
from datasets.index.pairs import Pairs
from orchestrator import failures
from orchestrator.console import log
from orchestrator.experiment.check import blank
from orchestrator.experiment.spec import Compute, Experiment
from orchestrator.store import FAILED, MANIFEST, NOTES, checked, read_json, write_json
from orchestrator.training.inputs import Inputs
from trainers.distributed import World
from trainers.evaluate.choice import Epoch
from trainers.model import Model

if TYPE_CHECKING:
    from trainers.encoder import Encoder

WHOLE = 256
"""How many pictures are embedded or labelled at a time."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training stage, ready to run anywhere."""

    experiment: Experiment
    inputs: Inputs
    folder: str
    """The stage's working folder."""
    compute: Compute
    stage: str
    """Its name in messages."""
    checkpoint: str = ""
    """Folder of the checkpoint that a cleaning, or a pre-training with a prior, starts from."""
    cleanset: str = ""
    """Rows file of the cleaning set."""
    made: tuple[tuple[Component, str], ...] = ()
    """(need, folder of what was made for it) of evaluators and method."""
    measures: tuple[str, ...] = ()
    """Digests of the measurements: of accuracy and ASR, then of each evaluator."""
    uncleaned: Epoch | None = None
    """The metrics of the model that a cleaning starts from."""
    cpus: float = 1.0
    """Cores of this process."""
    gpus: float = 0.0
    """GPUs of this process; 0: it runs on the CPU, even if the machine has a GPU."""


def start(cpus: float, gpus: float) -> World:
    """This process's place among the ranks, after setting the cores and GPUs that it may use."""
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    world = World.current()
    if not gpus:
        return replace(world, device=torch.device("cpu"))
    torch.cuda.empty_cache()  # left by the trial that this process ran before
    return world


@contextmanager
def making(job: Job, world: World) -> Iterator[None]:
    """Make the job's stage in this process: what is said carries its title and rank, and what fails is known to the driver.

    Notes and warnings lie in the stage's folder, from which the driver says them. What would fail the same way again is written down
    there too, so that no retry is wasted on it.
    """
    path = Path(job.folder) / FAILED
    if path.exists():
        raise RuntimeError("another worker of this stage failed")

    def to_driver(line: str) -> None:
        with open(Path(job.folder) / NOTES, "a") as handle:
            handle.write(line + "\n")

    with log.making(job.stage, world.rank), log.hearing(to_driver, log.NOTE):
        log.log.debug("begins on %s, one of %d", world.device, world.size)
        try:
            yield
        except Exception as error:
            kind = failures.kind_of(error)
            if kind in (failures.INPUT, failures.DIVERGED, failures.OUT_OF_MEMORY, failures.DISK_FULL):
                write_json(path, {"kind": kind, "error": str(error) or type(error).__name__, "rank": world.rank})
            log.log.debug("failed", exc_info=True)
            raise


def decoded_views(job: Job, pairs: Pairs, file: str) -> Decoded | None:
    """The decoded pictures of an artefact's pairs on this machine; None if they are not kept. `file` is any file of the artefact."""
    manifest = read_json(Path(file).with_name(MANIFEST))
    try:
        folder = cache_folder(job.compute.cache)
    except (InputError, OSError) as error:
        log.note(f"no decoded pictures are kept: {error}")
        return None
    if folder is None or manifest is None:
        return None
    return decoded(pairs, job.experiment.views.size, folder, manifest["fingerprint"], threads=max(1, int(job.cpus)), say=log.say)


def load_model(experiment: Experiment, weights: str) -> Encoder:
    """The experiment's model with the weights of a checkpoint: an epoch folder, a file, or a pretrained tag of open_clip.

    The log says what was assumed because the checkpoint does not state it.
    """
    from trainers.weights.load import load_weights

    model = experiment.pretrain.model
    if isinstance(model, Model) and not os.path.exists(weights) and "/" not in weights:
        return replace(model, pretrained=weights).build(0, log.say)
    encoder = blank(model).build(0)
    load_weights(encoder, checked(weights), say=log.say)
    return encoder


@contextmanager
def measured_as(checkpoint: str) -> Iterator[None]:
    """InputError that names the checkpoint if its model computes values that are not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise InputError(f"checkpoint {checkpoint} cannot be measured: {error}") from error


def whole_pictures(pairs: Pairs, recipe: Recipe, world: World, views: Decoded | None = None) -> Iterator[dict[str, Any]]:
    """This rank's share of batches that hold every training pair once, not augmented: `Run.pairs`."""
    plain = replace(recipe, views=replace(recipe.views, crop=None, flip=False))

    def make(number: int) -> dict[str, Any]:
        position_B = np.arange(number * WHOLE, min(len(pairs), (number + 1) * WHOLE))
        batch = make_batch(pairs.records(position_B), 0, plain, None if views is None else views[position_B])
        return {"number": number, **batch}

    return ahead(make, range(world.rank, math.ceil(len(pairs) / WHOLE), world.size))
