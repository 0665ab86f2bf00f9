"""One sample function, and the feed in which a worker reads by itself.

`make_batch` is all that turns index records into arrays: its output depends on (recipe, epoch, records) alone, so every
feed that calls it on the same records delivers the same bytes.

Shape legend: B batch, S side of the view, 3 channels; pictures are uint8 RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.captions import eda
from datasets.component import Component
from datasets.errors import InputError
from datasets.pairs import Pairs, rank_slice, step_positions
from datasets.seeding import rng
from datasets.source import read_bytes
from datasets.triggers.base import Trigger
from datasets.view import DecodeError, Views, canonical, decode, first_view, second_view

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe(Component):
    """All that, with the epoch and the record, determines a sample."""

    views: Views
    """Size and augmentation of the pictures."""
    trigger: Trigger | None = None
    """What is stamped on victims, and on the triggered view at evaluation."""
    seed: int = 0
    """Of augmentation and order."""
    two_views: bool = False
    """Whether the in-modal loss's second picture and caption are made too."""
    eda: str = "once"
    """Caption augmentation: `once` a caption (whatever the epoch), or `per_epoch`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eda not in ("once", "per_epoch"):
            raise InputError(f"recipe.eda is {self.eda!r}; accepted are once, per_epoch.")
        if self.trigger is not None:
            self.trigger.check(self.views.size)


def make_batch(records: pa.Table, epoch: int, recipe: Recipe) -> Batch:
    """Arrays of the records (`pairs.RECORD_SCHEMA`), in their order.

    row int64 [B], key object [B], image uint8 [B, S, S, 3], caption object [B], poisoned bool [B]; with two views also
    image_aug uint8 [B, S, S, 3] and caption_aug object [B].

    Raises `InputError` naming key and shard for a picture that cannot be read or decoded.
    """
    views, seed, size = recipe.views, recipe.seed, recipe.views.size
    columns = {name: records[name].to_pylist() for name in ("key", "url", "offset", "length", "member", "caption")}
    keys, captions = columns["key"], columns["caption"]
    poisoned = records["poisoned"].to_numpy()
    trigger_seeds = records["trigger_seed"].to_numpy()
    image_BHWC = np.empty((len(keys), size, size, 3), np.uint8)
    image_aug_BHWC = np.empty_like(image_BHWC) if recipe.two_views else image_BHWC
    plain = views.crop is None and not views.flip  # then the first view draws nothing
    for i, key in enumerate(keys):
        view_HWC = _canonical(columns, i, size)
        if poisoned[i]:
            assert recipe.trigger is not None, "poisoned records need the recipe's trigger"
            view_HWC = recipe.trigger.stamp(view_HWC, rng(trigger_seeds[i], key))
        image_BHWC[i] = view_HWC if plain else first_view(view_HWC, views, rng(seed, "view1", epoch, key))
        if recipe.two_views:
            image_aug_BHWC[i] = second_view(view_HWC, views, rng(seed, "view2", epoch, key))
    batch = {
        "row": records["row"].to_numpy(),
        "key": _objects(keys),
        "image": image_BHWC,
        "caption": _objects(captions),
        "poisoned": poisoned,
    }
    if recipe.two_views:
        when = (epoch,) if recipe.eda == "per_epoch" else ()
        augmented = [eda(caption, rng(seed, "eda", *when, key)) for caption, key in zip(captions, keys)]
        batch |= {"image_aug": image_aug_BHWC, "caption_aug": _objects(augmented)}
    return batch


def _canonical(columns: dict[str, list], i: int, size: int) -> np.ndarray:
    """The canonical view of record `i`; errors name the sample."""
    url, member = columns["url"][i], columns["member"][i]
    try:
        return canonical(decode(read_bytes(url, columns["offset"][i], columns["length"][i], member)), size)
    except (DecodeError, OSError, InputError) as error:
        raise InputError(f"the picture of sample {columns['key'][i]!r} ({member} in {url}) is unusable: {error}") from None


def _objects(values: list[str]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class LocalFeed:
    """A rank's batches, read by this machine.

    With `workers` > 0 that many processes (one thread each) make whole batches of the rank, for all steps of the stage,
    in order; with 0 one background thread of this process does, one batch ahead. (A script that asks for workers needs
    the usual `if __name__ == "__main__":`, since they are not forked.)
    """

    def __init__(
        self,
        pairs: Pairs,
        recipe: Recipe,
        *,
        batch_size: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        """`batch_size` is the global one; `steps` counts from the beginning of the stage, over all its epochs."""
        self.pairs, self.recipe = pairs, recipe
        self.batch_size, self.steps = batch_size, steps
        self.rank, self.world, self.workers = rank, world, workers
        rank_slice(step_positions(len(pairs), batch_size, recipe.seed, 0)[1], rank, world)  # raises on a bad batch size

    def batch(self, step: int) -> Batch:
        """The rank's batch of a global step: `make_batch` of its records, with `step` and `epoch`."""
        epoch, positions = step_positions(len(self.pairs), self.batch_size, self.recipe.seed, step)
        records = self.pairs.records(rank_slice(positions, self.rank, self.world))
        return make_batch(records, epoch, self.recipe) | {"step": step, "epoch": epoch}

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps `start_step` … `steps` − 1, the same whatever step one starts at."""
        if self.workers == 0 or start_step >= self.steps:
            return _ahead(self.batch, range(start_step, self.steps))
        return self._from_workers(start_step)

    def _from_workers(self, start_step: int) -> Iterator[Batch]:
        import multiprocessing

        from torch.utils.data import DataLoader

        # not fork: threads of the parent (Arrow's, CUDA's) may hold locks at that moment
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["datasets.loader", "torch.utils.data"])
        size = self.recipe.views.size
        batch_bytes = self.batch_size // self.world * size * size * 3 * (1 + self.recipe.two_views)
        steps: Any = _Steps(self, shared=_shared_memory() > 4 * self.workers * batch_bytes)
        loader: DataLoader = DataLoader(
            steps,
            batch_size=None,
            sampler=range(start_step, self.steps),
            num_workers=self.workers,
            collate_fn=_as_is,
            multiprocessing_context=context,
            prefetch_factor=2,
        )
        for item in loader:
            if isinstance(item, InputError):
                raise item
            yield {name: value if _is_plain(value) else value.numpy() for name, value in item.items()}


class _Steps:
    """Map-style data set over global steps: an item is a rank's whole batch."""

    def __init__(self, feed: LocalFeed, shared: bool) -> None:
        self.feed, self.shared = feed, shared

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            batch = self.feed.batch(step)
        except InputError as error:
            return error  # raised by the reader: torch would wrap it in the worker's traceback
        if self.shared:  # a tensor crosses processes without a copy, an array through a pipe
            import torch

            batch |= {name: torch.from_numpy(batch[name]) for name in ("image", "image_aug") if name in batch}
        return batch


def _as_is(item: Any) -> Any:
    return item


def _is_plain(value: object) -> bool:
    return isinstance(value, (np.ndarray, int))


def _shared_memory() -> int:
    """Free bytes of /dev/shm; containers often have 64 MiB, and writing past it kills a worker."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def eval_batches(pairs: Pairs, recipe: Recipe, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """A rank's share (positions rank, rank + world, …) of an evaluation set: nothing padded, nothing dropped.

    image uint8 [B, S, S, 3], label int32 [B], key object [B]; with a trigger also image_triggered, from the same decode,
    stamped with draws that training does not make. The last batch may be shorter.
    """
    positions = np.arange(rank, len(pairs), world)

    def make(start: int) -> Batch:
        records = pairs.records(positions[start : start + batch_size])
        names = ("key", "url", "offset", "length", "member")
        columns = {name: records[name].to_pylist() for name in names}
        keys, size = columns["key"], recipe.views.size
        batch: Batch = {"key": _objects(keys), "label": records["label"].to_numpy()}
        batch["image"] = image_BHWC = np.empty((len(keys), size, size, 3), np.uint8)
        for i in range(len(keys)):
            image_BHWC[i] = _canonical(columns, i, size)
        if recipe.trigger is not None:
            batch["image_triggered"] = np.stack(
                [recipe.trigger.stamp(view, rng(recipe.seed, "eval-trigger", key)) for view, key in zip(image_BHWC, keys)]
            )
        return batch

    return _ahead(make, range(0, len(positions), batch_size))


def _ahead(make: Callable[[int], Batch], numbers: range) -> Iterator[Batch]:
    """`make` of each number, in order; the next one is made by a thread while the last is used."""
    if not numbers:
        return
    with ThreadPoolExecutor(1, "feed") as thread:
        following = thread.submit(make, numbers[0])
        for number in [*numbers[1:], None]:
            ready = following.result()
            if number is not None:
                following = thread.submit(make, number)
            yield ready
