"""An epoch of SafeCLIP's last phase against an epoch of MMCL+SSL: what scoring every pair and splitting them adds.

Both sides train the same model with the same views, two of each picture and caption, on the same pairs, read from shards as a
pre-training reads them. Ours embeds every pair once more beforehand, fits the mixture and writes the epoch's plan. Each side saves
one checkpoint; nothing is evaluated.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.pairs import Pairs
from datasets.triggers.patch import Patch
from orchestrator.training.job import whole_pictures
from tests.bench.cache import paired
from tests.bench.measure import Meter, Row, alternate, scratch
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.loop import fit
from trainers.methods.base import Phase, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.safeclip import SafeCLIP
from trainers.model import TinyCLIP
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import MMCLSSL
from trainers.schedule import Training

BATCH = 64
SIZES = {"full": 2048, "quick": 256}
RECIPE = Recipe(views=Views(size=32), trigger=Patch(size=6))
TRAINING = Training(epochs=7, batch_size=BATCH, lr=1e-4, warmup_steps=0)
SHAPES = {"pictures of 32 × 32 px": (32, 32), "pictures of 400 × 300 px": (300, 400)}


def measured(work: Callable[[], object], samples: int) -> dict[str, float]:
    """Seconds and CPU-seconds for 1,000 pairs."""
    with Meter() as used:
        work()
    return {"wall": 1000 * used.wall / samples, "cpu": 1000 * used.cpu / samples}


def an_epoch(pairs: Pairs, folder: Path, objective: Objective, phase: Phase | None = None, model: Encoder | None = None) -> None:
    """One epoch with an objective, from fresh weights; the first of a phase where one is given."""
    steps = len(pairs) // BATCH
    feed = LocalFeed(pairs, replace(RECIPE, two_views=True), batch_size=BATCH, steps=steps)

    def begin_epoch(model: Encoder, epoch: int) -> EpochPlan:
        assert phase is not None and phase.begin_epoch is not None
        return phase.begin_epoch(model, epoch + phase.first)

    fit(model or TinyCLIP().build(0), objective, replace(TRAINING, epochs=1), feed, folder, begin_epoch=begin_epoch if phase else None)


def safeclip(pairs: Pairs, folder: Path) -> None:
    """The first epoch of SafeCLIP's last phase, without the phases before it."""

    def train(model: Encoder, objective: Objective, phase: Phase) -> None:
        if phase.begin_epoch is not None:
            an_epoch(pairs, folder, objective, phase, model)

    run = Run(trainer=train, training=TRAINING, fresh=TinyCLIP().build, pairs=lambda: whole_pictures(pairs, RECIPE, World()), folder=folder)
    SafeCLIP(first_share=0.5).train(TinyCLIP().build(0), run)


def compared(pairs: Pairs, folder: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Figures of both sides by name."""
    numbers = itertools.count()

    def ours() -> dict[str, float]:
        return measured(lambda: safeclip(pairs, folder / f"run{next(numbers)}"), len(pairs))

    def theirs() -> dict[str, float]:
        return measured(lambda: an_epoch(pairs, folder / f"run{next(numbers)}", MMCLSSL()), len(pairs))

    ours(), theirs()  # modules are imported, shards lie in memory
    return alternate(ours, theirs, rounds)


def run(size: str, rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    with scratch() as folder:
        for name, shape in SHAPES.items():
            print(f" {name}", flush=True)
            ours, theirs = compared(paired(folder / f"{shape[0]}", SIZES[size], shape), folder / f"{shape[0]}", rounds)
            mark = 1.25 if shape == (32, 32) else None  # with large pictures decoding them twice is most of it
            what, detail = f"an epoch, {name}", {"ours": ours, "theirs": theirs}
            rows.append(Row(what, "CPU-s/1,000 pairs", ours["cpu"], theirs["cpu"], mark=mark, at_least=False, detail=detail))
            rows.append(Row("the same, wall", "s/1,000 pairs", ours["wall"], theirs["wall"]))
    return rows
