"""Lists of web addresses and captions, one line per picture: the TSV of CC3M and CC12M, or a CSV/TSV with named columns."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from datasets.errors import InputError

MAX_LINE = 1 << 16
"""Bytes; a longer line is a bad line."""
LOOKED_AT = 1000
URL = re.compile(r"\s*https?://", re.IGNORECASE)
URL_NAMES = ("url", "image_url", "img_url", "imageurl", "link", "src")
CAPTION_NAMES = ("caption", "text", "alt", "alt_text", "title", "description")
_OTHERS = {
    b"\x1f\x8b": "compressed (gzip)",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Row(NamedTuple):
    """One line of a list."""

    line: int
    """Its number in the file, from 1."""
    url: str
    caption: str
    fault: str
    """Why the line cannot be read; empty if it can."""


class Layout(NamedTuple):
    """Where the address and the caption stand in a line; columns are counted from 0."""

    delimiter: str
    columns: int
    url: int
    caption: int
    header: bool


class UrlList:
    """A list, read in blocks of `block_rows` lines. Every line is a row; bad lines are numbered and counted too.

    If tabs separate the columns, quotes are ordinary text; with any other delimiter they follow the rules of CSV, within one line.
    `delimiter="auto"` takes a tab if half of the first lines have one, else a comma. The address column is the one that most often begins
    with http:// or https://; the caption column is found by its name, or is the only other one. Columns can also be given by name (of the
    header line) or number (from 1). Raises `InputError` naming the file.
    """

    def __init__(
        self, path: str | Path, *, block_rows: int, url_column: str = "", caption_column: str = "", delimiter: str = "auto"
    ) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                first = list(islice(_lines(file), LOOKED_AT))
                self.layout = _find_layout(str(path), first, url_column, caption_column, delimiter)
                file.seek(0)
                self._scan(file, block_rows)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None

    def __len__(self) -> int:
        return self.rows

    @property
    def blocks(self) -> int:
        return len(self._starts)

    @property
    def taken(self) -> str:
        """A sentence that says which columns are read."""
        return f"addresses from column {self.layout.url + 1}, captions from column {self.layout.caption + 1}"

    def block(self, number: int) -> list[Row]:
        """The rows of block `number`."""
        first = number * self._block_rows
        count = min(self._block_rows, self.rows - first)
        with open(self.path, "rb") as file:
            file.seek(self._starts[number])
            lines = list(islice(_lines(file), count))
        if len(lines) < count:
            raise InputError(f"{self.path} has become shorter while it was read.")
        number_of_first = first + 1 + self.layout.header
        return [_row(line, raw, self.layout) for line, raw in enumerate(lines, number_of_first)]

    def _scan(self, file: BinaryIO, block_rows: int) -> None:
        """The digest, the number of rows, and the start of each block."""
        digest, starts, lines, base, last = hashlib.sha256(), [0], 0, 0, 10
        while chunk := file.read(4 << 20):
            digest.update(chunk)
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
            rows_before = np.arange(lines + 1, lines + 1 + len(ends)) - self.layout.header
            starts += (ends[rows_before % block_rows == 0] + base + 1).tolist()
            lines, base, last = lines + len(ends), base + len(chunk), chunk[-1]
        if self.layout.header:
            del starts[0]
        self.rows = lines + (last != 10) - self.layout.header
        self.sha256, self.bytes, self._block_rows = digest.hexdigest(), base, block_rows
        self._starts = starts[: -(-self.rows // block_rows)]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their line ends; a line longer than MAX_LINE is cut, but stays too long to pass."""
    while raw := file.readline(MAX_LINE + 2):
        end = raw
        while end and not end.endswith(b"\n"):
            end = file.readline(MAX_LINE)
        yield raw.removesuffix(b"\n").removesuffix(b"\r")


def _text(raw: bytes, first: bool = False) -> str:
    """The line's text; raises ValueError saying what is wrong with it."""
    if len(raw) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    if b"\0" in raw:
        raise ValueError("holds a NUL byte")
    try:
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    if not text.strip():
        raise ValueError("empty")
    return text


def _split(text: str, delimiter: str) -> list[str]:
    if delimiter == "\t":
        return text.split("\t")
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None


def _head(raw: bytes, delimiter: str) -> list[str]:
    """The fields of the first line; empty if it is a bad line."""
    try:
        return _split(_text(raw, True), delimiter)
    except ValueError:
        return []


def _row(line: int, raw: bytes, layout: Layout) -> Row:
    try:
        fields = _split(_text(raw, line == 1), layout.delimiter)
        if len(fields) != layout.columns:
            raise ValueError(f"{len(fields)} columns instead of {layout.columns}")
    except ValueError as error:
        return Row(line, "", "", str(error))
    return Row(line, fields[layout.url].strip(), fields[layout.caption].strip(), "")


def _find_layout(path: str, raw: list[bytes], url_column: str, caption_column: str, delimiter: str) -> Layout:
    if not raw:
        raise InputError(f"{path} is empty; a line with an address and a caption for each picture is expected.")
    for magic, what in _OTHERS.items():
        if raw[0].startswith(magic):
            raise InputError(f"{path} is {what}; a CSV or TSV in UTF-8, or Parquet, is expected.")
    if len(raw) == 1 and b"\r" in raw[0]:
        raise InputError(f"{path} has lines that end in CR alone; a list's lines end in LF or CRLF.")
    texts, faults = [], Counter[str]()
    for number, line in enumerate(raw):
        try:
            texts.append(_text(line, number == 0))
        except ValueError as error:
            faults[re.sub(r" at byte \d+", "", str(error))] += 1
    if delimiter == "auto":
        delimiter = "\t" if 2 * sum("\t" in text for text in texts) >= max(1, len(texts)) else ","
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(f"--delimiter is {delimiter!r}; accepted are one character, `tab` and `auto`.")
    table = []
    for text in texts:
        try:
            table.append(_split(text, delimiter))
        except ValueError as error:
            faults[str(error)] += 1
    widths = Counter(len(fields) for fields in table if len(fields) > 1 and any(map(URL.match, fields)))
    if not widths:
        faults["no web address (http://… or https://…) beside a caption"] = len(table)
        why = ", ".join(f"{count} × {fault}" for fault, count in faults.most_common(4) if count)
        raise InputError(f"{path}: none of its first {len(raw)} lines, split at {delimiter!r}, can be used: {why}.")
    columns = widths.most_common(1)[0][0]
    rows = [fields for fields in table if len(fields) == columns]
    head = _head(raw[0], delimiter)
    names = [name.strip().lower() for name in head]
    named = [name for name in (url_column, caption_column) if name and not name.isdecimal()]
    header = bool(named) or (not any(map(URL.match, head)) and bool({*names} & {*URL_NAMES, *CAPTION_NAMES}))
    if header and len(names) != columns:
        raise InputError(f"{path}: its header line has {len(names)} columns, most of its other lines {columns}.")

    def column(flag: str, given: str) -> int:
        if given.isdecimal() and 1 <= int(given) <= columns:
            return int(given) - 1
        if given.lower() in names and header:
            return names.index(given.lower())
        of = f"the columns are {', '.join(map(repr, head))}" if header else "it has no header line"
        raise InputError(f"{path} has no column {given!r} ({flag}); {of}, and 1 … {columns} are accepted too.")

    hits = [sum(bool(URL.match(fields[c])) for fields in rows) for c in range(columns)]
    url = column("--url-column", url_column) if url_column else hits.index(max(hits))
    if not hits[url]:
        raise InputError(f"{path}: no line has a web address (http://… or https://…) in the column {url_column!r} (--url-column).")
    others = [c for c in range(columns) if c != url]
    known = [names.index(name) for name in CAPTION_NAMES if header and name in names and names.index(name) != url]
    if caption_column:
        caption = column("--caption-column", caption_column)
    elif known or len(others) == 1:
        caption = (known or others)[0]
    else:
        has = ", ".join(repr(name[:40]) for name in rows[0])
        raise InputError(f"{path} has {columns} columns ({has}); say by name or number with --caption-column which is the caption.")
    if caption == url:
        raise InputError(f"{path}: --url-column and --caption-column name the same column.")
    return Layout(delimiter, columns, url, caption, header)
