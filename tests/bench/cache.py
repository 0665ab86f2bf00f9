"""Cleaning epochs from the decoded cache, against decoding the pictures in every epoch.

Both sides are the same feed over the same pairs in the same order, in this process; the consumer throws batches away, but in
the last rows, where a tiny CLIP trains on them. JPEGs of 400 × 300 pixels and quality 85, as CC3M's are, written on the spot.
Figures are of whole epochs; making the cache lies outside the clock but in the rows that say so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from functools import partial
from pathlib import Path

from datasets.feed.cache import decoded
from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, scratch
from trainers.loop import fit
from trainers.model import TinyCLIP
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import MMCL, MMCLSSL
from trainers.schedule import Training

BATCH, EPOCHS = 64, 2
CLEANING = 10
"""Epochs of a cleaning over which the making of its cache is spread."""
SIZES = {"full": 2048, "quick": 128}


def paired(folder: Path, samples: int, shape: tuple[int, int] = (300, 400)) -> Pairs:
    """Pairs of the written shards, of pictures of that height and width."""
    shards = write_shards(folder / "data", samples, max(100, samples // 4), shape=shape, quality=85)
    source = Source(urls=str(shards), verify="none")
    write_index([source.index_shard(n, url) for n, url in enumerate(source.shards())], folder / "index.arrow")
    return Pairs(folder / "index.arrow", source.shards())


def rates(used: Meter, samples: int) -> dict[str, float]:
    return {"per_cpu": samples / used.cpu, "rate": samples / used.wall}


def epochs(pairs: Pairs, recipe: Recipe, cache: Path | None) -> dict[str, float]:
    """Samples a CPU-second and a second of EPOCHS epochs."""
    store = None if cache is None else decoded(pairs, recipe.views.size, cache, "bench")
    assert cache is None or store is not None, "there is no room for the cache"
    steps = EPOCHS * (len(pairs) // BATCH)
    feed = LocalFeed(pairs, recipe, batch_size=BATCH, steps=steps, decoded=store)
    with Meter() as used, contextlib.closing(feed.batches()) as batches:
        for _ in batches:
            pass
    return rates(used, steps * BATCH)


def making(pairs: Pairs, size: int, folder: Path) -> dict[str, float]:
    """Pictures a CPU-second and a second into a new cache."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with Meter() as used:
        store = decoded(pairs, size, folder, "bench")
    assert store is not None
    return rates(used, len(pairs))


def training(pairs: Pairs, objective: Objective, cache: Path | None, folder: Path) -> dict[str, float]:
    """The same over one epoch, with the steps of a tiny CLIP behind them and its checkpoint included."""
    recipe = Recipe(views=Views(size=32), trigger=Patch(size=6), two_views=objective.two_views)
    store = None if cache is None else decoded(pairs, 32, cache, "bench")
    steps = len(pairs) // BATCH
    feed = LocalFeed(pairs, recipe, batch_size=BATCH, steps=steps, decoded=store)
    encoder = TinyCLIP(vision_width=8).build(0)
    with Meter() as used:
        fit(encoder, objective, Training(epochs=1, batch_size=BATCH, lr=1e-4, warmup_steps=0), feed, folder)
    return rates(used, steps * BATCH)


def run(size: str, rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with scratch() as folder:
        pairs, cache = paired(folder, SIZES[size]), folder / "cache"
        cache.mkdir()
        numbers = itertools.count()
        found = {}
        for side, two in ((224, False), (224, True), (32, True)):
            recipe = Recipe(views=Views(size=side), trigger=Patch(size=6), two_views=two)
            epochs(pairs, recipe, cache)  # the cache is made, and shards and cache lie in memory
            print(f" {side} px, {'two views' if two else 'one view'}", flush=True)
            found[side, two] = alternate(partial(epochs, pairs, recipe, cache), partial(epochs, pairs, recipe, None), rounds)
        made = [making(pairs, 224, folder / "making") for _ in range(rounds)]
        trained = {}
        for objective in (MMCL(), MMCLSSL()):
            print(f" training with {objective.label}", flush=True)
            with_step = lambda store, objective=objective: training(pairs, objective, store, folder / f"run{next(numbers)}")
            trained[objective.label] = alternate(partial(with_step, cache), partial(with_step, None), rounds)
    n = SIZES[size]
    names = {(224, False): "224 px, MMCL (one view)", (224, True): "224 px, MMCL+SSL (two views)", (32, True): "32 px, two views"}
    rows = []
    for case, (ours, theirs) in found.items():
        detail = {"ours": ours, "theirs": theirs, "making": made}
        what, mark = f"epochs of {n:,} pictures, {names[case]}", 3.0 if case[0] == 224 else None
        rows.append(Row(what, "samples/CPU-s", ours["per_cpu"], theirs["per_cpu"], mark=mark, detail=detail))
        rows.append(Row("the same, wall", "samples/s", ours["rate"], theirs["rate"]))
        if case[0] == 224:  # a sample's cost in each of CLEANING epochs, and once that of its decoding
            whole = [CLEANING / (CLEANING / rate + 1 / make["per_cpu"]) for rate, make in zip(ours["per_cpu"], made)]
            rows.append(Row(f"a cleaning of {CLEANING} epochs, the making of its cache counted", "samples/CPU-s", whole, theirs["per_cpu"]))
    rows.append(Row("making the cache, 224 px", "pictures/CPU-s", [make["per_cpu"] for make in made], []))
    for label, (ours, theirs) in trained.items():
        rows.append(Row(f"with a tiny CLIP training on them, 32 px, {label}", "samples/CPU-s", ours["per_cpu"], theirs["per_cpu"]))
        rows.append(Row("the same, wall", "samples/s", ours["rate"], theirs["rate"]))
    return rows
