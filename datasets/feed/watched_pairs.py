"""A sample of the pairs for observing a model: clean pairs, poisoned ones as trained on, and pictures of the target class.

Pairs are chosen by a hash of (seed, key), so a larger sample holds every pair of a smaller one. Shape legend: as in `loader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from annotated_types import Ge

from datasets.attack.poison import names_class
from datasets.component import Component, Natural
from datasets.errors import InputError
from datasets.feed.decode import stamped_views
from datasets.feed.loader import Batch, Recipe, make_batch
from datasets.images.augment import apply, crop_and_flip
from datasets.index.pairs import Pairs
from datasets.seeding import hashes64, rng

ROLES = ("clean", "poisoned", "target", "other")
CHUNK = 1 << 16
"""How many keys are held as Python strings at the same time."""


@dataclass(frozen=True, kw_only=True)
class Sample(Component):
    """How many pairs of each kind."""

    clean: Annotated[int, Ge(2)] = 1000
    """Pairs that are no victims."""
    poisoned: Natural = 500
    """Victims, at most."""
    group: Natural = 200
    """Pictures of the target class, and as many others; 0 leaves both out."""
    crop: tuple[float, float] = (0.25, 0.75)
    """Area of a picture's random crop, as a share of the picture: least, most."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise InputError(f"sample.crop is {self.crop}; it is a pair (least, most) of areas within 0 … 1.")


@lru_cache(maxsize=2)
def positions(pairs: Pairs, sample: Sample, others: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Role → int64 positions in `pairs`, rising; fewer than requested if there are no more.

    * clean: pairs that are no victims, whatever they show;
    * poisoned: victims of the plan;
    * target: no victims, with a caption that names the target;
    * other: no victims, with a caption that does not name it.

    A pair may be both clean and target or other. With several attacks, victims and target are those of the first; `others` are the names of
    the rest. If its victims have several targets, the roles target and other are empty.
    """
    n = len(pairs)
    victim_N, own_N, names_N, hash_N = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool), np.empty(n, np.uint64)
    target = None
    if pairs.plan:
        plan = pq.read_table(pairs.plan)
        victim_N = np.isin(pairs.rows, plan["row"].to_numpy())
        if "attack" in plan.column_names:
            plan = plan.filter([attack not in others for attack in plan["attack"].to_pylist()])
        plan = plan.filter(pc.not_equal(plan["target"], ""))  # without partial negatives
        own_N = np.isin(pairs.rows, plan["row"].to_numpy())
        targets = set(plan["target"].to_pylist())
        target = targets.pop() if len(targets) == 1 else None
    for start in range(0, n, CHUNK):
        part = np.arange(start, min(n, start + CHUNK))
        hash_N[part] = hashes64(sample.seed, "sample", keys=pairs.keys(part).to_pylist())
        if sample.group and target is not None:
            names_N[part] = names_class(pairs.captions(part), target).to_numpy(zero_copy_only=False)
    group = sample.group if target is not None else 0
    wanted = {
        "clean": (~victim_N, sample.clean),
        "poisoned": (own_N, sample.poisoned),
        "target": (~victim_N & names_N, group),
        "other": (~victim_N & ~names_N, group),
    }
    chosen = {}
    for role, (eligible_N, count) in wanted.items():
        where = np.flatnonzero(eligible_N)
        chosen[role] = np.sort(where[np.argsort(hash_N[where], kind="stable")[:count]])
    return chosen


def sample_batches(
    pairs: Pairs, sample: Sample, recipe: Recipe, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """A rank's share of the sample, each batch of one role, in canonical views without augmentation.

    role str, position int64 [B] (within the role), key object [B], image uint8 [B, S, S, 3]. Batches of clean and poisoned also hold
    caption object [B]; victims are stamped and captioned as the plan says. Batches of other also hold image_triggered and image_twice (the
    trigger stamped once and twice, with draws that training does not use), image_crop and image_triggered_crop (the same random crop of the
    picture and of the triggered one).
    """
    plain = replace(recipe, views=replace(recipe.views, crop=None, flip=False), two_views=False)
    chosen = positions(pairs, sample, tuple(other.name for other in recipe.others))
    for role in ROLES:
        mine = np.arange(rank, len(chosen[role]), world)
        for start in range(0, len(mine), batch_size):
            position_B = mine[start : start + batch_size]
            records = pairs.records(chosen[role][position_B])
            arrays = make_batch(records, 0, plain)
            batch = {"role": role, "position": position_B, "key": arrays["key"], "image": arrays["image"]}
            if role in ("clean", "poisoned"):
                batch["caption"] = arrays["caption"]
            if role == "other" and recipe.trigger is not None:
                batch |= _views(arrays["image"], records, recipe, sample)
            yield batch


def _views(image_BHWC: np.ndarray, records: pa.Table, recipe: Recipe, sample: Sample) -> Batch:
    trigger, size = recipe.trigger, recipe.views.size
    assert trigger is not None
    crops = [crop_and_flip(size, sample.crop, 0.0, rng(sample.seed, "sample-crop", key)) for key in records["key"].to_pylist()]
    draws = [partial(rng, recipe.seed, purpose) for purpose in ("eval-trigger", "eval-trigger-again")]
    once_BHWC = stamped_views(trigger, records, image_BHWC, draws[0])
    return {
        "image_triggered": once_BHWC,
        "image_twice": stamped_views(trigger, records, image_BHWC, *draws),
        "image_crop": np.stack([apply(steps, view) for steps, view in zip(crops, image_BHWC)]),
        "image_triggered_crop": np.stack([apply(steps, view) for steps, view in zip(crops, once_BHWC)]),
    }
