"""`make_batch`, the one function that makes samples, and the feed of a worker that reads by itself.

`make_batch` alone turns index records into arrays, and its output depends only on (recipe, epoch, records). So every feed that calls it on
the same records delivers the same bytes.

Shape legend: B batch, S side of the view, 3 channels; pictures are uint8 RGB.
"""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.attack.poison import UNMARKED, Poison, trigger_of
from datasets.captions import eda
from datasets.component import Component, since
from datasets.errors import InputError
from datasets.feed.cache import Decoded
from datasets.feed.decode import Empty, ahead, canonical_views, stamped_views
from datasets.images.view import Views, as_jpeg, decode, first_view, second_view
from datasets.index.order import Drawn, Order, rank_slice, step_positions
from datasets.index.pairs import Pairs
from datasets.seeding import rng
from datasets.triggers.base import Trigger

Batch = dict[str, Any]
AHEAD = 2
"""Batches that a loader process makes before they are asked for."""
VARIANTS = 200_000
"""Augmented captions that a process keeps if they are the same in every epoch; some 400 bytes each."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Component):
    """Everything that determines a sample, except the epoch and the record."""

    views: Views
    """Size and augmentation of the pictures."""
    trigger: Trigger | None = None
    """Stamped on victims, and on the triggered view at evaluation."""
    jpeg_quality: int | None = None
    """Quality of the JPEG that stamped victims are compressed to and decoded from; None: they are not compressed."""
    others: tuple[Poison, ...] = ()
    """Further attacks of the same data; `trigger` and `jpeg_quality` are those of the first."""
    seed: int = 0
    """Seed of augmentation and order."""
    two_views: bool = False
    """Whether to make the second picture and caption of the in-modal loss too."""
    eda: str = "once"
    """Augmentation of captions: `once` per caption, the same in all epochs, or anew `per_epoch`."""
    order: Order = since(Drawn())
    """How each epoch is shuffled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eda not in ("once", "per_epoch"):
            raise InputError(f"recipe.eda is {self.eda!r}; accepted are once, per_epoch.")
        if self.trigger is not None:
            self.trigger.check(self.views.size)

    def of_attack(self, name: str) -> tuple[Trigger | None, int | None]:
        """Trigger and JPEG quality of an attack, by its name in the plan."""
        return trigger_of(name, self.trigger, self.jpeg_quality, self.others)


def make_batch(
    records: pa.Table, epoch: int, recipe: Recipe, view_BHWC: np.ndarray | None = None, empty: Empty = np.empty
) -> Batch:
    """Arrays of the records (`pairs.RECORD_SCHEMA`), in their order.

    row int64 [B], key object [B], image uint8 [B, S, S, 3], caption object [B], poisoned bool [B]; with two views also
    image_aug uint8 [B, S, S, 3] and caption_aug object [B].

    `view_BHWC`: the records' canonical views, if they are decoded already (the batch takes over this array); otherwise the pictures are
    read and decoded. `empty` makes the arrays of pictures that are returned.

    Raises `InputError` naming key and shard of a picture for which that fails.
    """
    views, seed = recipe.views, recipe.seed
    keys, captions = records["key"].to_pylist(), records["caption"].to_pylist()
    repeats = view_BHWC is not None  # only small sets that are read many times are kept decoded
    plain = views.crop is None and not views.flip  # without a crop and a flip the first view draws nothing
    if view_BHWC is None:
        view_BHWC = canonical_views(records, views.size, empty if plain else np.empty)
    poisoned, trigger_seeds = records["poisoned"].to_numpy(), records["trigger_seed"].to_numpy()
    for i in np.flatnonzero(poisoned & (trigger_seeds != UNMARKED)):
        trigger, quality = recipe.of_attack(records["attack"][i].as_py())
        assert trigger is not None, "poisoned records need the recipe's trigger"
        view_BHWC[i] = stamped_views(trigger, records[i : i + 1], view_BHWC[i : i + 1], functools.partial(rng, trigger_seeds[i]))[0]
        if quality is not None:
            view_BHWC[i] = decode(as_jpeg(view_BHWC[i], quality))

    def changed(change: Callable[[np.ndarray, Views, np.random.Generator], np.ndarray], purpose: str) -> np.ndarray:
        out_BHWC = empty(view_BHWC.shape, np.uint8)
        for i, key in enumerate(keys):
            out_BHWC[i] = change(view_BHWC[i], views, rng(seed, purpose, epoch, key))
        return out_BHWC

    batch = {
        "row": records["row"].to_numpy(),
        "key": _objects(keys),
        "image": view_BHWC if plain else changed(first_view, "view1"),
        "caption": _objects(captions),
        "poisoned": poisoned,
    }
    if recipe.two_views:
        variant = _same_variant if recipe.eda == "once" and repeats else _variant
        when = (epoch,) if recipe.eda == "per_epoch" else ()
        augmented = [variant(caption, seed, "eda", *when, key) for caption, key in zip(captions, keys)]
        batch |= {"image_aug": changed(second_view, "view2"), "caption_aug": _objects(augmented)}
    return batch


def _variant(caption: str, *parts: object) -> str:
    return eda(caption, rng(*parts))


_same_variant = functools.lru_cache(maxsize=VARIANTS)(_variant)


def _objects(values: list[str]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


class StepFeed:
    """Base of every feed: the samples, their recipe, and this rank's share of each step's batch."""

    def __init__(
        self, pairs: Pairs, recipe: Recipe, *, batch_size: int, steps: int, rank: int = 0, world: int = 1
    ) -> None:
        """`batch_size` is the global one; `steps` counts from the beginning of the stage, over all its epochs.

        InputError if the pairs do not fill a batch, or the ranks cannot share one equally.
        """
        self.pairs, self.recipe = pairs, recipe
        self.batch_size, self.steps = batch_size, steps
        self.rank, self.world = rank, world
        self.order: np.ndarray | None = None
        self.starts = pairs.shard_starts() if recipe.order.by_shard else np.array([0, len(pairs)])
        self.share(0)

    def share(self, step: int) -> tuple[int, np.ndarray]:
        """(epoch, int64 [batch_size // world]): this rank's positions of a global step."""
        epoch, positions = step_positions(self.starts, self.batch_size, self.recipe.seed, step, self.recipe.order)
        if self.order is not None:
            within = step % (int(self.starts[-1]) // self.batch_size)
            positions = self.order[within * self.batch_size : (within + 1) * self.batch_size]
        return epoch, rank_slice(positions, self.rank, self.world)


class LocalFeed(StepFeed):
    """A rank's batches, read by this machine.

    With `workers` > 0, that many processes (one thread each) make the rank's whole batches, in order, for all steps of the stage. With 0,
    one background thread of this process makes them, one batch ahead. (A script with workers needs the usual `if __name__ == "__main__":`,
    because workers are not forked.)
    """

    def __init__(
        self, pairs: Pairs, recipe: Recipe, *, workers: int = 0, decoded: Decoded | None = None, **steps: int
    ) -> None:
        """`decoded`: the pairs' canonical views; with them nothing is read from the shards. `steps`: the arguments of StepFeed."""
        super().__init__(pairs, recipe, **steps)
        self.workers, self.decoded = workers, decoded

    def batch(self, step: int, empty: Empty = np.empty) -> Batch:
        """The rank's batch of a global step: `make_batch` of its records, with `step` and `epoch`."""
        epoch, positions = self.share(step)
        views = None if self.decoded is None else self.decoded[positions]
        batch = make_batch(self.pairs.records(positions), epoch, self.recipe, views, empty)
        return batch | {"step": step, "epoch": epoch, "number": positions}

    def batches(self, start_step: int = 0, stop_step: int | None = None, order: np.ndarray | None = None) -> Iterator[Batch]:
        """Batches of the steps `start_step` … `steps` − 1; a step's batch does not depend on the start.

        With `stop_step`, only the batches before it, which must all be of one epoch. `order` (int64): the positions that this epoch's steps
        take, one batch after the other.
        """
        steps, self.order = range(start_step, self.steps if stop_step is None else stop_step), order
        if self.workers == 0 or not steps:
            return ahead(self.batch, steps)
        return self._from_workers(steps)

    def _from_workers(self, wanted: range) -> Iterator[Batch]:
        import multiprocessing

        from torch.utils.data import DataLoader

        # not fork: threads of the parent (Arrow's, CUDA's) may hold locks at that moment
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["datasets.feed.loader", "torch.utils.data"])
        size, each = self.recipe.views.size, 1 + self.recipe.two_views
        shape = (self.batch_size // self.world, size, size, 3)
        count = each * (5 + AHEAD * self.workers)  # a consumer with a GPU has up to four batches, and one is on its way to it
        buffers = None
        if _shared_memory() > count * math.prod(shape):
            with suppress(RuntimeError):  # another process was faster to take the memory
                buffers = _Buffers(count, shape)
        loader: DataLoader = DataLoader(
            _Steps(self, buffers),  # type: ignore[arg-type]
            batch_size=None,
            sampler=((step, buffers.take(each) if buffers else []) for step in wanted),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_as_is,
            multiprocessing_context=context,
            prefetch_factor=AHEAD,
        )
        for item in loader:
            if isinstance(item, InputError):
                raise item
            batch, found = item
            if buffers:
                batch |= {name: buffers.array(number) for name, number in found.items()}
            yield {name: value if _is_plain(value) else value.numpy() for name, value in batch.items()}


class _Buffers:
    """Arrays of pictures in memory that a process shares with its workers. One is used again once nothing refers to it any more."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        import torch

        storage = torch.UntypedStorage._new_shared(count * math.prod(shape))  # as torch's own collate does; takes the memory
        self.all = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).view(count, *shape)
        self.free = list(range(count))

    def take(self, each: int) -> list[int]:
        """Numbers of free buffers, fewer than `each` if most are in use."""
        return [self.free.pop() for _ in range(min(each, len(self.free)))]

    def array(self, number: int) -> np.ndarray:
        """What lies in a buffer. It is free again when the array is gone, and all that shows its memory."""
        array = self.all[number].numpy()
        weakref.finalize(array, self.free.append, number).atexit = False
        return array


class _Steps:
    """Map-style data set over global steps: an item is a rank's whole batch."""

    def __init__(self, feed: LocalFeed, buffers: _Buffers | None) -> None:
        self.feed, self.buffers = feed, buffers

    def __getitem__(self, asked: tuple[int, list[int]]) -> tuple[Batch, dict[str, int]] | InputError:
        """The batch of a step, and by name which of the buffers hold its pictures; `asked`: the step, and numbers of buffers, all of which
        are used by a whole batch."""
        step, numbers = asked
        buffers = {number: self.buffers.all[number].numpy() for number in numbers} if self.buffers else {}
        unused = list(buffers.values())

        def fits(shape: tuple[int, ...]) -> bool:
            """Not at the end of an order that is too short: that batch has fewer pairs, and the rest of a buffer shows older pictures."""
            return self.buffers is not None and shape == self.buffers.all.shape[1:]

        try:
            batch = self.feed.batch(step, lambda shape, dtype: unused.pop() if unused and fits(shape) else np.empty(shape, dtype))
        except InputError as error:
            return error  # the reader raises it: torch would wrap it in the worker's traceback
        pictures = {name: batch.pop(name) for name in ("image", "image_aug") if name in batch}
        found: dict[str, int] = {name: number for name, array in pictures.items() for number, buffer in buffers.items() if array is buffer}
        left = [number for number in numbers if number not in found.values()]
        for name in pictures.keys() - found:
            if left and fits(pictures[name].shape):  # they come from the cache of decoded pictures
                found[name] = left.pop()
                buffers[found[name]][:] = pictures[name]
            else:
                batch[name] = _sent(pictures[name], shared=self.buffers is not None)
        return batch, found


def _sent(array: np.ndarray, shared: bool) -> Any:
    """What of an array is sent: processes share a tensor's memory, and send an array through a pipe."""
    import torch

    return torch.from_numpy(array) if shared else array


def _as_is(item: Any) -> Any:
    return item


def _is_plain(value: object) -> bool:
    return isinstance(value, (np.ndarray, int))


def _shared_memory() -> int:
    """Free bytes of /dev/shm. Containers often have 64 MiB, and writing past it kills a worker."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def triggered(attack: str) -> str:
    """The key in a batch of the pictures with a further attack's trigger."""
    return f"image_triggered/{attack}"


def eval_batches(
    pairs: Pairs, recipe: Recipe, batch_size: int, rank: int = 0, world: int = 1, decoded: Decoded | None = None
) -> Iterator[Batch]:
    """A rank's share (positions rank, rank + world, …) of an evaluation set; nothing is padded or dropped.

    image uint8 [B, S, S, 3], label int32 [B], key and caption object [B]. With a trigger also image_triggered: the same pictures, stamped
    with draws that training does not use. Each further attack adds one more, named by `triggered`. The last batch may be shorter.
    `decoded`: the set's canonical views.
    """
    positions = np.arange(rank, len(pairs), world)

    def make(start: int) -> Batch:
        chosen = positions[start : start + batch_size]
        records = pairs.records(chosen)
        keys, captions = records["key"].to_pylist(), _objects(records["caption"].to_pylist())
        image_BHWC = canonical_views(records, recipe.views.size) if decoded is None else decoded[chosen]
        batch: Batch = {"key": _objects(keys), "label": records["label"].to_numpy(), "caption": captions, "image": image_BHWC}
        for name, trigger in (("image_triggered", recipe.trigger), *((triggered(other.name), other.trigger) for other in recipe.others)):
            if trigger is not None:
                batch[name] = stamped_views(trigger, records, image_BHWC, functools.partial(rng, recipe.seed, "eval-trigger"))
        return batch

    return ahead(make, range(0, len(positions), batch_size))
