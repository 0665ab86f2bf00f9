"""From index records to canonical views, and work that is done ahead of its use."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from datasets.errors import InputError
from datasets.images.view import DecodeError, canonical, decode
from datasets.index.addresses import read_bytes

T = TypeVar("T")


def canonical_views(records: pa.Table, size: int) -> np.ndarray:
    """uint8 [B, S, S, 3]: the records' pictures, read and decoded, before any trigger or augmentation.

    Raises `InputError` naming key and shard for a picture that cannot be read or decoded.
    """
    columns = [records[name].to_pylist() for name in ("key", "url", "offset", "length", "member")]
    view_BHWC = np.empty((len(records), size, size, 3), np.uint8)
    for i, (key, url, offset, length, member) in enumerate(zip(*columns)):
        try:
            view_BHWC[i] = canonical(decode(read_bytes(url, offset, length, member)), size)
        except (DecodeError, OSError, InputError) as error:
            raise InputError(f"the picture of sample {key!r} ({member} in {url}) is unusable: {error}") from None
    return view_BHWC


def ahead(make: Callable[[int], T], numbers: range, threads: int = 1) -> Iterator[T]:
    """`make` of each number, in order; the next `threads` results are made while the last one is used."""
    with ThreadPoolExecutor(threads, "feed") as pool:
        waiting = deque(pool.submit(make, number) for number in numbers[:threads])
        for number in itertools.chain(numbers[threads:], [None] * len(waiting)):
            ready = waiting.popleft().result()
            if number is not None:
                waiting.append(pool.submit(make, number))
            yield ready
