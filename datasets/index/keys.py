"""Names that tell shards apart, and sample keys that occur twice."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import InputError


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


def mark_duplicates(table: pa.Table, urls: Sequence[str] = ()) -> pa.Table:
    """The joined index with no key kept twice.

    If a key repeats within a shard, its first row is kept and the others get `duplicate_key`. If two shards share a key, `InputError` names
    them (by `urls`, if given). `InputError` also if no shard holds a sample.
    """
    if not len(table):
        raise InputError(f"none of the {len(urls)} shards holds a sample: {', '.join(urls[:3])}{' …' if len(urls) > 3 else ''}.")
    kept = pc.equal(table["drop"], "")
    keys = table["key"].filter(kept)
    if pc.count_distinct(keys).as_py() == len(keys):
        return table
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    among = np.flatnonzero(pc.and_(kept, pc.is_in(table["key"], value_set=repeated)).to_numpy())
    first: dict[str, int] = {}
    drops = table["drop"].to_pylist()
    for row, key, shard in zip(among, table["key"].take(among).to_pylist(), table["shard"].take(among).to_pylist()):
        if key not in first:
            first[key] = shard
        elif first[key] == shard:
            drops[row] = "duplicate_key"
        else:
            names = [urls[n] if n < len(urls) else f"shard {n}" for n in (first[key], shard)]
            raise InputError(
                f"the key {key!r} is in {names[0]} and in {names[1]}; set source.key_prefix to put the shard's name "
                "before each key."
            )
    return table.set_column(table.schema.get_field_index("drop"), "drop", pa.array(drops, pa.string()))


def shard_stem(url: str) -> str:
    """The file's name up to its first dot."""
    return posixpath.basename(url).split(".", 1)[0]
