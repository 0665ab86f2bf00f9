"""Names that tell shards apart, and sample keys that occur twice."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import InputError
from datasets.index.columns import take

ROWS = 1 << 18
"""Keys that are hashed at a time."""
SORTED = 1 << 22
"""Hashes that are sorted at a time, about."""


def shard_files(urls: Sequence[str]) -> list[str]:
    """The shards' file names, each preceded by as many of its folders as it takes to tell all shards apart."""
    parts = [url.split("/") for url in urls]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len({*names}) == len(urls):
            return names
    return list(urls)


def shard_names(urls: Sequence[str]) -> list[str]:
    """A name for each shard that tells it apart in keys: its file name up to the first dot if these differ (`00000`), else the shortest end
    of its path that differs, without the extension if possible: `part.0`, `cc3m/00000`."""
    names, depth = [shard_stem(url) for url in urls], 1
    parts = [url.split("/") for url in urls]
    while len({*names}) < len(urls) and depth <= max(map(len, parts)):
        whole = ["/".join(part[-depth:]) for part in parts]
        names = [name[: -len(extension) or None] for name in whole for extension in [posixpath.splitext(name)[1]]]
        if len({*names}) < len(urls):
            names = whole
        depth += 1
    return names


def mark_duplicates(table: pa.Table, urls: Sequence[str] = (), across: bool = True) -> pa.Table:
    """The joined index with no key kept twice.

    If a key repeats within a shard, its first usable row is kept and later ones get `duplicate_key`. If two shards share a key,
    `InputError` names them (by `urls`, if given); without `across` they may. `InputError` also if no shard holds a sample.
    """
    if not len(table):
        raise InputError(f"none of the {len(urls)} shards holds a sample: {', '.join(urls[:3])}{' …' if len(urls) > 3 else ''}.")
    among = _alike(key_hashes(table["key"]), pc.equal(table["drop"], "").to_numpy())
    first: dict[tuple[str, int], int] = {}
    again_N = np.zeros(len(table), bool)
    for row, key, shard in zip(among, take(table["key"], among).to_pylist(), take(table["shard"], among).to_pylist()):
        taken = (key, 0 if across else shard)
        if taken not in first:
            first[taken] = shard
        elif first[taken] == shard:
            again_N[row] = True
        else:
            names = [urls[n] if n < len(urls) else f"shard {n}" for n in (first[taken], shard)]
            raise InputError(
                f"the key {key!r} is in {names[0]} and in {names[1]}; set source.key_prefix to put the shard's name "
                "before each key."
            )
    if not again_N.any():
        return table
    drop = pc.if_else(pa.array(again_N), "duplicate_key", table["drop"])
    return table.set_column(table.schema.get_field_index("drop"), "drop", drop)


def _alike(hash_N: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
    """The kept rows, rising, whose hash another kept row has too. Hashes are sorted a range at a time, so the memory beside them does not
    grow with their number."""
    ranges = max(1, len(hash_N) // SORTED)
    found = [np.zeros(0, np.int64)]
    for number in range(ranges):
        low, high = (np.uint64((number + end) * (1 << 64) // ranges - end) for end in (0, 1))
        order = np.concatenate([
            start + np.flatnonzero(kept_N[start : start + SORTED] & (low <= part) & (part <= high))
            for start in range(0, len(hash_N) or 1, SORTED) for part in [hash_N[start : start + SORTED]]
        ])  # fmt: skip
        order = order[np.argsort(hash_N[order], kind="stable")]
        same = hash_N[order[1:]] == hash_N[order[:-1]]
        found.append(order[np.concatenate([same, [False]]) | np.concatenate([[False], same])] if len(order) else order)
    return np.sort(np.concatenate(found))


def key_hashes(keys: pa.ChunkedArray) -> np.ndarray:
    """uint64 [N]: equal for equal keys, and hardly ever for different ones: a polynomial in the key's bytes modulo 2⁶⁴."""
    hash_N, done = np.empty(len(keys), np.uint64), 0
    for chunk in keys.chunks:
        for start in range(0, len(chunk), ROWS):
            part = _hashes(chunk.slice(start, ROWS))
            hash_N[done : done + len(part)] = part
            done += len(part)
    return hash_N


def _hashes(keys: pa.StringArray) -> np.ndarray:
    _, offsets, data = keys.buffers()
    end_N = np.frombuffer(offsets, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    byte_B = np.frombuffer(data or b"", np.uint8)[end_N[0] : end_N[-1]].astype(np.uint64)
    end_N = end_N - end_N[0]
    length_N = np.diff(end_N)
    power_P = np.cumprod(np.full(int(length_N.max(initial=0)) + 1, 0x9E3779B97F4A7C15 | 1, np.uint64))
    place_B = np.arange(len(byte_B)) - np.repeat(end_N[:-1], length_N)
    sum_B = np.concatenate([np.zeros(1, np.uint64), np.cumsum((byte_B + np.uint64(1)) * power_P[place_B])])
    return sum_B[end_N[1:]] - sum_B[end_N[:-1]]


def shard_stem(url: str) -> str:
    """The file's name up to its first dot."""
    return posixpath.basename(url).split(".", 1)[0]
