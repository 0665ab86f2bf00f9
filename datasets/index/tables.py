"""Tables as rows of picture, captions and label, with errors that name the file, the line and the column: CSV, and what it shares with
Parquet."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from datasets.captions import NO_CAPTION, Caption, as_caption
from datasets.errors import InputError
from datasets.storage import PICTURES, filesystem, is_remote
from datasets.text import NotText, decode_text, encoding_of, parse_json

IMAGE_NAMES = ("jpg", "image", "image_bytes", "bytes", "filepath")
CAPTION_NAMES = ("caption", "text", "title", "TEXT")
CHOICES = ("one", "first", "random", "each")
"""Which of several captions are taken."""
_LOOKED_AT = 1 << 16
_LABEL = re.compile(r"\+?0*(\d{1,10})(?:\.0*)?", re.ASCII)
_NO_LABEL = re.compile(r"|-1(?:\.0*)?")
_LINE_END = re.compile(r"\r\n|\r|\n")
_EXTENSION = re.compile(r"\.[A-Za-z]\w*$")


class Keys(NamedTuple):
    """Names of the columns; `auto`: the first of `IMAGE_NAMES` and of `CAPTION_NAMES` that is there."""

    image: str = "auto"
    caption: str = "auto"
    label: str = "label"
    of: str = "source."
    """Prefix of `image_key` where an error names the setting."""


class Row(NamedTuple):
    """One row of a table."""

    line: int
    """In a CSV the line where it begins, in Parquet the number of the row; from 1."""
    key: str | None
    """From a column named `key`, in Parquet."""
    data: bytes | None
    """The picture, or …"""
    path: str | None
    """… where it lies."""
    captions: Sequence[Caption]
    """One, except from a Parquet column of lists."""
    label: int
    """-1 if there is none."""


def label(value: object) -> int | None:
    """A class number from a whole number or its text, `3` or `3.0`; -1 if it is missing (nothing, NaN, -1); None for anything else."""
    if value is None or value != value:  # NaN, as pandas writes what is missing
        return -1
    text = str(value)
    return _number(text) if len(text) < 40 else None


@functools.lru_cache(maxsize=1 << 14)
def _number(text: str) -> int | None:
    text = text.strip()
    if _NO_LABEL.fullmatch(text):
        return -1
    match = _LABEL.fullmatch(text)
    return int(match[1]) if match and int(match[1]) < 1 << 31 else None


def table_label(value: object, url: str, place: str, columns: Keys) -> int:
    """Like `label`, but raises `InputError` for anything that is no class number. A table without captions is not trained on: there it is
    -1."""
    number = label(value)
    if number is None and not columns.caption:
        return -1
    if number is None:
        what = repr(value)[:80] if isinstance(value, (str, int, float)) else "no text"
        raise InputError(
            f"{url}: {place}: the label in column {columns.label!r} is {what}; accepted are class numbers from 0, and nothing where there "
            f"is none. Set {columns.of}label_key to another column, or to '' to read no labels."
        )
    return number


def json_object(text: str) -> dict | None:
    """The fields of a json member; None if it is no JSON object."""
    try:
        fields = parse_json(text, "the json member")
    except NotText:
        return None  # counted by the reader
    return fields if isinstance(fields, dict) else None


def find_columns(url: str, names: Sequence[str], keys: Keys, delimiter: str = "") -> Keys:
    """The columns that exist; `caption` or `label` is empty if there is none. Raises InputError naming every column that is missing or
    occurs twice."""
    image, missing_image = _find(names, keys.image, "image", IMAGE_NAMES, keys.of)
    caption, missing_caption = _find(names, keys.caption, "caption", CAPTION_NAMES, keys.of)
    label_column = keys.label if keys.label in names else ""
    missing = [missing_image] if not image else []
    if not caption and not label_column:
        missing.append(missing_caption)
    if missing:
        has = ", ".join(repr(name[:60]) for name in names) or "none at all"
        hint = f" (split at {delimiter!r}); a first line with the columns' names is needed, files without one are not accepted: add it, or "
        hint = f"{hint}set {keys.of}image_key, {keys.of}caption_key and {keys.of}delimiter" if delimiter else ""
        raise InputError(f"{url} has {' and '.join(missing)}; it has {has}{hint}.{'' if image else _another_way(url, names)}")
    for name in (image, caption, label_column):
        if name and list(names).count(name) > 1:
            raise InputError(f"{url} has {list(names).count(name)} columns named {name!r}; one of that name is read, rename the others.")
    return Keys(image, caption, label_column, keys.of)


def _find(names: Sequence[str], wanted: str, field: str, tried: Sequence[str], of: str) -> tuple[str, str]:
    """The column; or "" and a complaint that it is missing."""
    if wanted != "auto":
        return wanted if wanted in names else "", f"no column {wanted!r} ({of}{field}_key)"
    others = ", ".join(name for name in tried if name != field)
    return next((name for name in tried if name in names), ""), f"no column {field!r} ({of}{field}_key; nor {others})"


def _another_way(url: str, names: Sequence[str]) -> str:
    """The command that makes shards from files that are no table of pictures."""
    folder = os.path.splitext(url)[0]
    if {"status", "url"} <= {*names} and os.path.isdir(folder):
        return (
            f" It is the list that img2dataset writes beside the pictures in {folder}: "
            f"`cleansweep ingest {os.path.dirname(folder)} FOLDER` packs them into shards."
        )
    if any("url" in name.lower() or name.strip().lower().startswith(("http://", "https://")) for name in names):
        return f" If it is a list of web addresses, `cleansweep fetch {url} FOLDER` downloads them into shards."
    return ""


# ---- CSV and TSV ---------------------------------------------------------------------------------------


def csv_rows(url: str, delimiter: str, keys: Keys, found: Callable[[Keys], None] = lambda keys: None) -> Iterator[Row]:
    """The rows of a CSV or TSV with a header line, of any line ends; calls `found` with the columns that are read.

    If tabs separate the columns, quotes are ordinary text. With any other delimiter they follow RFC 4180: a quoted cell may hold line ends.
    But a quoted cell that contains another row of the table was opened by a stray quote, and is refused with its line. `auto`: tabs for
    .tsv and .tab, else tabs or commas, whichever the header line has more of. Raises InputError, with the line, for anything that is not
    text (see `datasets.text`) and for rows longer or shorter than the header, and as `find_columns` does.
    """
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if delimiter != "auto" and (len(delimiter) != 1 or delimiter in '\r\n"\0'):
        raise InputError(f"{keys.of}delimiter is {delimiter!r}; it is one character, `tab` or `auto`.")
    with open_table(url) as file:
        start = file.read(_LOOKED_AT)
        file.seek(0)
        encoding = encoding_of(start)
        head = next(iter(_LINE_END.split(start.decode(encoding, "replace").lstrip())))
        if "\0" in head:
            decode_text(start, url)  # raises the error that says where
        if delimiter == "auto":
            tabs = url.lower().endswith((".tsv", ".tab")) or head.count("\t") > head.count(",")
            delimiter = "\t" if tabs else ","
        quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        lines = io.TextIOWrapper(file, encoding, newline="")
        try:
            yield from _rows(url, csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True), delimiter, keys, found)
        except UnicodeDecodeError as error:
            file.seek(0)
            decode_text(file.read(), url)  # raises the error that says where
            raise InputError(f"{url} cannot be read as text: {error.reason}.") from None


def _rows(url: str, reader: Any, delimiter: str, keys: Keys, found: Callable[[Keys], None]) -> Iterator[Row]:
    kind = "TSV" if delimiter == "\t" else "CSV"
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            why = str(error)
            if "expected after" in why or "unexpected end" in why:
                why = "a cell that begins with a quotation mark " + ("goes on after it" if "after" in why else "has no second one")
            raise InputError(f"{url} cannot be read as {kind}: line {line}: {why}; double quotation marks within a cell.") from None
        if fields is None:
            break
        if len(fields) < 2 and not "".join(fields).strip():
            continue  # a blank line
        if not width:
            names = [name.strip().lstrip("\ufeff").strip() for name in fields]
            columns = find_columns(url, names, keys, delimiter)
            found(columns)
            width = len(names)
            image = names.index(columns.image)
            caption, number = (names.index(name) if name else -1 for name in (columns.caption, columns.label))
            continue
        if len(fields) != width:
            raise InputError(f"{url} cannot be read as {kind}: line {line} has {len(fields)} columns, the first line {width}.")
        if reader.line_num > line and _swallowed(fields, image, number, width, delimiter, url):
            raise InputError(
                f"{url} cannot be read as CSV: the quotation mark that opens a cell in line {line} closes in line {reader.line_num}, "
                "and whole rows stand between; double quotation marks within a cell. Only captions may hold line ends."
            )
        text = NO_CAPTION if caption < 0 else as_caption(fields[caption])
        named = number in (-1, caption)  # a column that is read as the caption may hold names
        yield Row(line, None, None, fields[image], (text,), -1 if named else table_label(fields[number], url, f"line {line}", columns))
    if not width:
        raise InputError(f"{url} is empty; a header line and rows are expected.")


def _swallowed(fields: Sequence[str], image: int, number: int, width: int, delimiter: str, url: str) -> bool:
    """Whether a row of several lines contains other rows.

    It does if its path or label has line ends, or if another of its lines has as many cells as a row and, in the path's place, something
    that looks like a path: it has a picture's extension, the form of the row's own path, or a file's name.
    """
    path = fields[image].strip()
    if _LINE_END.search(path) or number >= 0 and _LINE_END.search(fields[number].strip()):
        return True
    kinds = {os.path.splitext(path)[1].lower(), *PICTURES} - {""}
    lines = _LINE_END.split(delimiter.join(fields))
    del lines[len(_LINE_END.findall(delimiter.join(fields[:image])))]  # without the row's own line
    for cells in (line.split(delimiter) for line in lines):
        for cell in (cells[image], cells[image - width]) if len(cells) >= width else ():  # a caption may have delimiters too
            name = cell.strip().strip('"')
            if os.path.splitext(name)[1].lower() in kinds or (name and _form(name) == _form(path)) or _is_file(url, name):
                return True
    return False


def _form(path: str) -> tuple[bool, bool, bool]:
    """The form that the paths of a table share: whether there is an extension, a folder, a space."""
    return bool(_EXTENSION.search(path)), "/" in path, any(map(str.isspace, path))


def _is_file(url: str, name: str) -> bool:
    return not is_remote(url) and os.path.isfile(os.path.join(os.path.dirname(url), name))


def open_table(url: str) -> Any:
    """Its file, open; InputError where it cannot be opened."""
    try:
        if is_remote(url):
            system, path = filesystem(url)
            return system.open(path, "rb")
        return open(url, "rb")  # the caller closes it
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{url} cannot be read: {getattr(error, 'strerror', None) or error}") from None
