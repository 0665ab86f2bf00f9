"""Where a picture's bytes lie, and reading them. How `member`, `offset` and `length` of an index row address a picture:

* member inside a tar: `member` its name, `offset` and `length` its bytes;
* a file of its own (CSV, Parquet of paths): `member` its path relative to the table's folder, `offset` 0; the shard of an
  evaluation set can be the folder itself, and then `member` is the path as `storage.name_text` writes it;
* a Parquet cell: `member` is `parquet:<column>`, `offset` the row number; a file or tar member of such a name is `./parquet:…`.
"""

from __future__ import annotations

import functools
import os
import posixpath
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.errors import InputError
from datasets.index import parquet
from datasets.storage import Reader, is_remote, name_of, read_range, size_of

PARQUET_CELL = "parquet:"


def member_of(name: str) -> str:
    """A file's or tar member's name, written so that it cannot be taken for a Parquet cell."""
    return f"./{name}" if name.startswith(PARQUET_CELL) else name


def read_bytes(url: str, offset: int, length: int, member: str) -> bytes:
    """The bytes of the picture of one index row whose shard is `url` (for the addressing see the top of this file).

    Raises `InputError` naming the file if it is gone or shorter than when it was indexed.
    """
    if member.startswith(PARQUET_CELL):
        return _read_cell(url, offset, member.removeprefix(PARQUET_CELL))
    try:
        if offset == 0:  # in a tar a header comes first, so an offset of 0 means a file of its own
            return read_file(file_of(url, offset, member))
        data = read_range(url, offset, length) if is_remote(url) else _reader(url).read(offset, length)
    except OSError as error:
        raise InputError(f"{url}: {member} cannot be read: {error}") from None
    if len(data) < length:
        raise InputError(f"{url} ends before byte {offset + length}: it has changed since it was indexed.")
    return data


def file_of(url: str, offset: int, member: str) -> str:
    """The file that holds the picture of one index row whose shard is `url`."""
    if offset or member.startswith(PARQUET_CELL):
        return url
    folder = folder_of(url)
    return file_place(folder, name_of(member) if folder == url else member)


_reader = functools.lru_cache(maxsize=256)(Reader)  # eviction closes it when its last user lets go


def read_file(place: str) -> bytes:
    """A whole file, here or elsewhere."""
    if is_remote(place):
        return read_range(place, 0, size_of(place))
    with open(place, "rb", buffering=0) as file:
        return file.read()


@functools.lru_cache(maxsize=1024)
def folder_of(url: str) -> str:
    """The folder that a table's paths are relative to; if `url` is a folder, the folder itself."""
    return url if not is_remote(url) and os.path.isdir(url) else posixpath.dirname(url)


def file_place(folder: str, path: str) -> str:
    """Path or URI of the file that a table in `folder` lists as `path`."""
    return path if is_remote(path) else posixpath.join(folder, path)


_PARQUET = threading.Lock()
"""A Parquet file is read by one thread at a time."""


@functools.lru_cache(maxsize=8)
def _open_parquet(url: str) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file, and the first row of each of its row groups followed by the total."""
    file = parquet.open_parquet(url)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    return file, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=4)
def _row_group(url: str, group: int, column: str) -> pa.ChunkedArray:
    return _open_parquet(url)[0].read_row_group(group, columns=[column])[column]


def _read_cell(url: str, row: int, column: str) -> bytes:
    with parquet.damage_named(url):
        starts = _open_parquet(url)[1]
        if row >= starts[-1]:
            raise InputError(f"{url} has no row {row}: it has changed since it was indexed.")
        group = int(np.searchsorted(starts, row, "right")) - 1
        with _PARQUET:
            cells = _row_group(url, group, column)
    data, _ = parquet.picture(cells[row - int(starts[group])])
    if data is None:
        raise InputError(f"{url}: row {row} of column {column!r} holds no picture.")
    return data
