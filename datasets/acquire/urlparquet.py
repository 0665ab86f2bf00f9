"""Lists of web addresses and captions as Parquet, as LAION, COYO and DataComp publish their metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.acquire.urllist import CAPTION_NAMES, LOOKED_AT, MAX_LINE, URL, URL_NAMES, Row, UrlList
from datasets.errors import InputError

_MAGIC = b"PAR1"
_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError)
"""Errors that pyarrow raises for files that are cut short, changed or not Parquet."""


class Columns(NamedTuple):
    """The names of the columns that are read."""

    url: str
    caption: str


class ParquetList:
    """A list, read in blocks of `block_rows` rows, like `UrlList`; rows are numbered from 1.

    The columns are `url_column` and `caption_column` (a name, or a number from 1), else the first of the usual names that exists, in any
    case. Rows with unusable text are numbered and counted too. Memory: some thousand rows, and a MiB per column. Raises `InputError` naming
    the file.
    """

    def __init__(self, path: str | Path, *, block_rows: int, url_column: str = "", caption_column: str = "") -> None:
        self.path, self._block_rows = Path(path), block_rows
        try:
            self._file = pq.ParquetFile(self.path, buffer_size=_BUFFER_BYTES)
            groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
            schema = self._file.schema_arrow
            with open(self.path, "rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self.bytes = file.tell()
        except _DAMAGED as error:
            raise self._damaged(error) from None
        self._starts = np.cumsum([0, *groups])
        self.rows = int(self._starts[-1])
        if not self.rows:
            raise InputError(f"{path} is empty; a row with an address and a caption for each picture is expected.")
        self.layout = Columns(
            self._column(schema, "--url-column", url_column, URL_NAMES, "web addresses"),
            self._column(schema, "--caption-column", caption_column, CAPTION_NAMES, "captions"),
        )
        if self.layout.url == self.layout.caption:
            raise InputError(f"{path}: --url-column and --caption-column name the same column.")
        self._next, self._stream = -1, self._rows_from(0)
        if not any(URL.match(row.url) for row in islice(self._rows_from(0), LOOKED_AT)):
            raise InputError(f"{path}: no row has a web address (http://… or https://…) in the column {self.layout.url!r} (--url-column).")

    def __len__(self) -> int:
        return self.rows

    @property
    def blocks(self) -> int:
        return -(-self.rows // self._block_rows)

    @property
    def taken(self) -> str:
        """A sentence that says which columns are read."""
        return f"addresses from the column {self.layout.url!r}, captions from {self.layout.caption!r}"

    def block(self, number: int) -> list[Row]:
        """The rows of block `number`; cheapest when blocks are read in order."""
        first = number * self._block_rows
        count = min(self._block_rows, self.rows - first)
        if self._next != first:
            self._stream = self._rows_from(first)
        rows = list(islice(self._stream, count))
        self._next = first + count
        if len(rows) < count:
            raise InputError(f"{self.path} has become shorter while it was read.")
        return rows

    def _rows_from(self, first: int) -> Iterator[Row]:
        """The rows from number `first` on, counted from 0."""
        group = int(np.searchsorted(self._starts, first, "right")) - 1
        at = int(self._starts[group])
        try:
            batches = self._file.iter_batches(_BATCH_ROWS, range(group, len(self._starts) - 1), list(dict.fromkeys(self.layout)))
            for batch in batches:
                skipped = min(max(0, first - at), len(batch))
                texts = [_bytes(batch.column(name).slice(skipped)) for name in self.layout]
                for line, (url, caption) in enumerate(zip(*texts), at + skipped + 1):
                    yield _row(line, url, caption)
                at += len(batch)
        except _DAMAGED as error:
            raise self._damaged(error) from None

    def _column(self, schema: pa.Schema, flag: str, given: str, usual: Sequence[str], what: str) -> str:
        names = list(schema.names)
        if given.isdecimal() and 1 <= int(given) <= len(names):
            matches = [names[int(given) - 1]]
        else:
            matches = [name for name in names if name == given] or [
                name for wanted in ([given.lower()] if given else usual) for name in names if name.lower() == wanted
            ]
        has = f"it has {', '.join(map(repr, names))}"
        if not matches:
            tried = repr(given) if given else f"of {what} ({', '.join(usual)})"
            raise InputError(f"{self.path} has no column {tried}; {has}. Say which it is with {flag}, by name or number.")
        if names.count(matches[0]) > 1:
            raise InputError(f"{self.path} has {names.count(matches[0])} columns {matches[0]!r} ({flag}); one of the name is accepted.")
        kind = schema.field(matches[0]).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if value not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            raise InputError(f"{self.path}: the column {matches[0]!r} is {kind}; text is accepted ({flag}). Of all, {has}.")
        return matches[0]

    def _damaged(self, error: Exception) -> InputError:
        if isinstance(error, InputError):
            return error
        return InputError(f"{self.path} is no Parquet file, or is damaged: {(str(error) or type(error).__name__).splitlines()[0][:300]}")


def open_list(path: str | Path, *, block_rows: int, url_column: str, caption_column: str, delimiter: str) -> UrlList | ParquetList:
    """The list, read as Parquet if it begins like a Parquet file. Raises `InputError` naming the file."""
    try:
        with open(path, "rb") as file:
            parquet = file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not parquet:
        return UrlList(path, block_rows=block_rows, url_column=url_column, caption_column=caption_column, delimiter=delimiter)
    if delimiter != "auto":
        raise InputError(f"{path} is Parquet, which has no delimiter; leave out --delimiter.")
    return ParquetList(path, block_rows=block_rows, url_column=url_column, caption_column=caption_column)


def _bytes(column: Any) -> list[bytes | None]:
    """The raw bytes as stored: a column of text may hold bytes that are not text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    return column.cast(pa.large_binary() if large else pa.binary()).to_pylist()


def _row(line: int, url: bytes | None, caption: bytes | None) -> Row:
    try:
        if url is None or not url.strip():
            raise ValueError("no address")
        return Row(line, _text(url), _text(caption or b""), "")
    except ValueError as error:
        return Row(line, "", "", str(error))


def _text(raw: bytes) -> str:
    if len(raw) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    if b"\0" in raw:
        raise ValueError("holds a NUL byte")
    try:
        return raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
