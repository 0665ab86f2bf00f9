"""`dropped.csv`: the list of dropped samples, one line each."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.index.keys import shard_files
from datasets.index.source import Source
from datasets.storage import sync

COLUMNS = ("key", "file", "line", "reason")
"""The sample's key; the file that holds it (for `unknown_extension` in a tar with the member: `0.tar/y.gif`); its line there, from 1 (in
Parquet its row; empty in tars and folders); why it is dropped."""
_CHUNK = 1 << 16


@contextlib.contextmanager
def dropped_csv(path: Path) -> Iterator[Callable[[str, str, int | None, str], None]]:
    """Write the list; `with` gives a function that adds a line. In names that are not UTF-8 the offending bytes are escaped."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            yield lambda key, name, line, reason: writer.writerow((key, name, line or "", reason))
        sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_dropped(source: Source, index: Path, out: Path) -> None:
    """List the rows of the index that have a drop reason. Tables with dropped rows are read again, to find the line numbers. `out`: the CSV
    file."""
    table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
    urls = source.shards()
    bounds = np.searchsorted(table["shard"].to_numpy(), np.arange(len(urls) + 1)).tolist()
    with dropped_csv(out) as add:
        for url, name, start, stop in zip(urls, shard_files(urls), bounds, bounds[1:]):
            lines, at = None, 0
            for first in range(start, stop, _CHUNK):
                part = table.slice(first, min(_CHUNK, stop - first)).select(["key", "member", "drop"])
                rows = np.flatnonzero(pc.not_equal(part["drop"], "").to_numpy())
                for row, sample in zip(rows.tolist(), part.take(pa.array(rows)).to_pylist()):
                    lines = lines or source.lines(url)
                    line = next(itertools.islice(lines, first - start + row - at, None), None)
                    at = first - start + row + 1
                    unknown = sample["drop"] == "unknown_extension"
                    add(sample["key"], f"{name}/{sample['member']}" if unknown else name, line, sample["drop"])
