"""Parquet files as rows of picture, captions and label, with errors that name the file and the column."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.captions import as_caption
from datasets.errors import InputError
from datasets.index.tables import Keys, Row, find_columns, open_table, table_label
from datasets.storage import is_remote

_KEY_NAMES = ("__key__", "key")


def picture(cell: pa.Scalar) -> tuple[bytes | None, str | None]:
    """(bytes, path) of a Parquet cell that holds bytes, a path, or {bytes, path} as Hugging Face writes it. A path that is not text becomes
    None."""
    try:
        value = cell.as_py()
    except UnicodeDecodeError:
        value = cell["bytes"].as_py() if isinstance(cell, pa.StructScalar) and "bytes" in cell else None
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value)


def open_parquet(url: str) -> pq.ParquetFile:
    """A Parquet file, or `InputError` naming it."""
    try:
        return pq.ParquetFile(open_table(url) if is_remote(url) else url)
    except FileNotFoundError:
        raise InputError(f"{url} does not exist.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url} is no Parquet file, or is cut short: {_first_line(error)}") from None


@contextlib.contextmanager
def damage_named(url: str) -> Iterator[None]:
    """Turns Arrow's errors about a damaged file into an InputError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{url} is damaged: {_first_line(error)}") from None


def parquet_rows(
    url: str, keys: Keys, choice: str = "one", pictures: bool = True, found: Callable[[Keys], None] = lambda keys: None
) -> Iterator[Row]:
    """The rows of a Parquet file; calls `found` with the columns that are read. Without `pictures` the picture column is not read.

    Pictures are bytes, paths or structs of bytes and path. Captions are text, bytes of text or, if `choice` says which to take, lists of
    either. All may be dictionary-encoded. Raises InputError, naming the column, for other types, and as `find_columns` does.
    """
    file = open_parquet(url)
    with damage_named(url):
        schema = file.schema_arrow
        columns = find_columns(url, schema.names, keys)
        found(columns)
        _check_image(url, columns.image, schema.field(columns.image).type)
        if columns.caption:
            _check_caption(url, columns, schema.field(columns.caption).type, choice)
        numbers = columns.label if columns.label != columns.caption else ""
        if numbers and not _is_number(_plain(schema.field(numbers).type)):
            raise InputError(
                f"{url}: the label column {numbers!r} is {schema.field(numbers).type}; accepted are class numbers and their text. Set "
                f"{columns.of}label_key to another column, or to '' to read no labels."
            )
        named = [name for name in _KEY_NAMES if schema.names.count(name) == 1 and _is_name(_plain(schema.field(name).type))][:1]
        wanted = [name for name in (columns.image if pictures else "", columns.caption, columns.label, *named) if name]
        batches = file.iter_batches(batch_size=64, columns=list(dict.fromkeys(wanted)))
    line = 0
    while True:
        with damage_named(url):
            if (batch := next(batches, None)) is None:
                return
        texts, labels, names = (_cells(batch, name) for name in (columns.caption, numbers, *(named or [""])))
        for i in range(len(batch)):
            line += 1
            data, path = picture(batch.column(columns.image)[i]) if pictures else (None, None)
            captions = [as_caption(value) for value in texts[i]] if isinstance(texts[i], list) else [as_caption(texts[i])]
            yield Row(line, _name(names[i]), data, path, captions, table_label(labels[i], url, f"row {line}", columns))


_BYTES: tuple[Callable[[pa.DataType], bool], ...] = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_TEXT: tuple[Callable[[pa.DataType], bool], ...] = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, without extension types and dictionaries around it."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_any(kind: pa.DataType, kinds: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(is_kind(kind) for is_kind in kinds)


def _is_number(kind: pa.DataType) -> bool:
    return _is_any(kind, (*_TEXT, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null))


def _is_name(kind: pa.DataType) -> bool:
    return _is_any(kind, (*_TEXT, *_BYTES, pa.types.is_integer))


def _is_list(kind: pa.DataType) -> bool:
    return _is_any(kind, (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _check_image(url: str, name: str, whole: pa.DataType) -> None:
    kind, good = _plain(whole), False
    if pa.types.is_struct(kind):
        of = {field.name: _plain(field.type) for field in kind}
        held = [("bytes", _BYTES), ("path", _TEXT)]
        good = any(part in of for part, _ in held) and all(
            _is_any(of[part], (*kinds, pa.types.is_null)) for part, kinds in held if part in of
        )
    else:
        good = _is_any(kind, (*_BYTES, *_TEXT))
    if not good:
        raise InputError(f"{url}: column {name!r} is {whole}; accepted are bytes, paths, or a struct of bytes and path.")


def _check_caption(url: str, columns: Keys, whole: pa.DataType, choice: str) -> None:
    name, kind = columns.caption, _plain(whole)
    several = _is_list(kind)
    if not _is_any(_plain(kind.value_type) if several else kind, (*_TEXT, *_BYTES, pa.types.is_null)):
        raise InputError(
            f"{url}: the caption column {name!r} is {whole}; accepted are text, bytes of text, and lists of them. Name another with "
            f"{columns.of}caption_key."
        )
    if several and choice == "one":
        raise InputError(
            f"{url}: the caption column {name!r} holds several captions a picture ({whole}); set {columns.of}captions to `first`, `random` "
            "(one drawn by the picture's key) or `each` (a pair for every caption)."
        )


def _cells(batch: pa.RecordBatch, name: str) -> list[Any]:
    """A column's values, `_BAD` for text that is not UTF-8; None in every row if `name` is empty."""
    if not name:
        return [None] * len(batch)
    column = batch.column(name)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(column, i) for i in range(len(column))]


_BAD = object()
"""Neither text, bytes nor list: `as_caption` turns it into NOT_TEXT."""


def _cell(column: pa.Array, i: int) -> Any:
    try:
        return column[i].as_py()
    except UnicodeDecodeError:
        return _BAD


def _name(value: Any) -> str | None:
    """A key as text; None if the cell holds no text."""
    if isinstance(value, bytes):
        return as_caption(value).text
    return None if value is None or value is _BAD else str(value)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
