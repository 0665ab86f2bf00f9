"""Parquet and CSV as rows of (picture, caption, label), with errors that name the file and the column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from datasets.errors import InputError
from datasets.storage import filesystem, is_remote

_MAX_HEADER = 1 << 16


def label(value: object) -> int:
    """A class number from a number or its text; -1 for anything else."""
    try:
        number = int(str(value).strip()) if not isinstance(value, float) else int(value)
    except (ValueError, OverflowError):
        return -1
    return number if 0 <= number < 1 << 31 else -1


def json_object(data: bytes) -> dict:
    """The fields of a json member; none where it is no JSON object."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}  # the sample then has no caption, which is what gets counted
    return fields if isinstance(fields, dict) else {}


def picture(value: Any) -> tuple[bytes | None, str | None]:
    """(bytes, path) of a Parquet cell: bytes, a path, or {bytes, path} as Hugging Face writes it."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value)


def texts(batch: pa.RecordBatch, column: str) -> list[Any]:
    """A column as Python values; None everywhere if it is not there."""
    return batch.column(column).to_pylist() if column in batch.schema.names else [None] * len(batch)


def _open(url: str) -> Any:
    try:
        if is_remote(url):
            system, path = filesystem(url)
            return system.open(path, "rb")
        return open(url, "rb")  # the caller closes it
    except OSError as error:
        raise InputError(f"{url} cannot be read: {error.strerror or error}") from None


def open_parquet(url: str) -> pq.ParquetFile:
    """A Parquet file, or `InputError` naming it."""
    try:
        return pq.ParquetFile(_open(url) if is_remote(url) else url)
    except FileNotFoundError:
        raise InputError(f"{url} does not exist.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{url} is no Parquet file, or is cut short: {str(error).splitlines()[0]}") from None


def parquet_batches(
    file: pq.ParquetFile, url: str, image: str, caption: str, label_column: str, keys: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted columns that exist; the picture's must, and the caption's or the label's."""
    names = file.schema_arrow.names
    _check_columns(url, names, image, caption, label_column)
    kind = file.schema_arrow.field(image).type
    plain = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    if not pa.types.is_struct(kind) and not any(is_kind(kind) for is_kind in plain):
        raise InputError(f"{url}: column {image!r} is {kind}; accepted are bytes, paths, or a struct of bytes and path.")
    wanted = [name for name in (image, caption, label_column, *keys) if name in names]
    try:
        yield from file.iter_batches(batch_size=64, columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{url} is damaged: {str(error).splitlines()[0]}") from None


def csv_rows(url: str, delimiter: str, image: str, caption: str, label_column: str) -> Iterator[tuple[str, str | None, int]]:
    """(path, caption or None, label or -1) of each row. A header line is required and must name the columns."""
    if delimiter == "auto":
        delimiter = "\t" if url.lower().endswith((".tsv", ".tab")) else ","
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1:
        raise InputError(f"source.delimiter is {delimiter!r}; it is one character, `tab` or `auto`.")
    with _open(url) as file:
        names = _header(url, file, delimiter)
        _check_columns(url, names, image, caption, label_column, delimiter)
        file.seek(0)
        wanted = [name for name in dict.fromkeys((image, caption, label_column)) if name in names]
        try:
            reader = pa_csv.open_csv(
                file,
                parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=False,
                ),
            )
            for batch in reader:
                captions = texts(batch, caption)
                for path, text, number in zip(texts(batch, image), captions, texts(batch, label_column)):
                    yield path, None if text is None else text.strip(), label(number)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise InputError(f"{url} cannot be read as CSV: {str(error).splitlines()[0][:300]}") from None


def _header(url: str, file: Any, delimiter: str) -> list[str]:
    start = file.read(_MAX_HEADER).decode("utf-8-sig", "replace")
    if not start.strip():
        raise InputError(f"{url} is empty; a header line and rows are expected.")
    return next(csv.reader(io.StringIO(start), delimiter=delimiter), [])


def _check_columns(url: str, names: Sequence[str], image: str, caption: str, label_column: str, delimiter: str = "") -> None:
    for field, name, enough in (
        ("image_key", image, image in names),
        ("caption_key", caption, caption in names or label_column in names),
    ):
        if not enough:
            hint = ""
            if delimiter:
                hint = (
                    f" (split at {delimiter!r}); a first line with the columns' names is needed, files without one are "
                    "not accepted: add it, or set source.image_key, source.caption_key and source.delimiter"
                )
            shown = ", ".join(repr(n[:60]) for n in list(names)[:8])
            raise InputError(f"{url} has no column {name!r} (source.{field}); it has {shown}{hint}.")
