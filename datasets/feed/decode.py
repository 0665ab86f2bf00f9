"""From index records to canonical views, and a helper that computes results before they are needed."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from datasets.errors import InputError
from datasets.images.resize import canonical_part
from datasets.images.view import DecodeError, canonical, decode
from datasets.index.addresses import read_bytes
from datasets.triggers.base import Pasted, Trigger, put_on

T = TypeVar("T")
Empty = Callable[[tuple[int, ...], Any], np.ndarray]
"""Makes an array of a shape and type, as `np.empty` does."""


def pictures(records: pa.Table) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3]: each record's picture as stored; errors as `canonical_views`."""
    for place in _places(records):
        yield _picture(*place)


def _places(records: pa.Table) -> Iterator[tuple[Any, ...]]:
    """For each record the arguments of `_picture`."""
    return zip(*(records[name].to_pylist() for name in ("key", "url", "offset", "length", "member")))


def _picture(key: str, url: str, offset: int, length: int, member: str) -> np.ndarray:
    try:
        return decode(read_bytes(url, offset, length, member))
    except (DecodeError, OSError, InputError) as error:
        raise InputError(f"the picture of sample {key!r} ({member} in {url}) is unusable: {error}") from None


def stamped_views(trigger: Trigger, records: pa.Table, view_BHWC: np.ndarray, *draws: Callable[[str], np.random.Generator]) -> np.ndarray:
    """uint8 [B, S, S, 3]: the canonical views with the trigger stamped once for each of `draws` (functions from a key to a generator).

    `view_BHWC` are the clean views. Only a trigger that is put on pictures as stored reads the pictures again.
    """
    size, keys = view_BHWC.shape[1], records["key"].to_pylist()
    if isinstance(trigger, Pasted) and trigger.pastes and not trigger.native:
        pasted_BHWC = view_BHWC.copy()
        for i, key in enumerate(keys):
            for draw in draws:
                trigger.paste(pasted_BHWC[i], draw(key))
        return pasted_BHWC
    stamped_BHWC = np.empty_like(view_BHWC)
    for i, (key, picture) in enumerate(zip(keys, pictures(records) if trigger.native else view_BHWC)):
        for draw in draws:
            picture = put_on(trigger, picture, draw(key))
        stamped_BHWC[i] = canonical(picture, size) if trigger.native else picture
    return stamped_BHWC


def canonical_views(records: pa.Table, size: int, empty: Empty = np.empty) -> np.ndarray:
    """uint8 [B, S, S, 3]: the records' pictures, read and decoded, before any trigger or augmentation.

    `empty` makes the array. Raises `InputError` naming key and shard for a picture that cannot be read or decoded.
    """
    view_BHWC = empty((len(records), size, size, 3), np.uint8)
    for i, place in enumerate(_places(records)):  # no name holds a picture, so the next one takes its memory, which is in the caches still
        view_BHWC[i] = canonical_part(_picture(*place), size)
    return view_BHWC


def ahead(make: Callable[[int], T], numbers: range, threads: int = 1) -> Iterator[T]:
    """The result of `make` for each number, in order. The next `threads` results are computed while the last one is used."""
    with ThreadPoolExecutor(threads, "feed") as pool:
        waiting = deque(pool.submit(make, number) for number in numbers[:threads])
        for number in itertools.chain(numbers[threads:], [None] * len(waiting)):
            ready = waiting.popleft().result()
            if number is not None:
                waiting.append(pool.submit(make, number))
            yield ready
