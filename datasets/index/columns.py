"""Rows out of columns that are too large to be joined."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The column at `rows`, in their order. pyarrow's own take joins the whole column first, which fails above 2 GiB of text."""
    rows = np.asarray(rows, np.int64)
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    which = np.searchsorted(ends, rows, "right")
    parts, places = [], []
    for number in np.unique(which):
        place = np.flatnonzero(which == number)
        chunk = column.chunk(int(number))
        parts.append(chunk.take(pa.array(rows[place] - (ends[number] - len(chunk)))))
        places.append(place)
    if len(parts) < 2:
        return parts[0] if parts else pa.array([], column.type)
    return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(places))))


def without(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The rows, which rise, that are not among the removed ones."""
    if not len(rows) or not len(removed):
        return rows
    absent = np.ones(int(rows[-1]) + 1, bool)
    absent[removed[removed <= rows[-1]]] = False
    return rows[absent[rows]]
