"""Reads all text from users: captions, class names, templates, tables, keys and JSON.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one, and holds no NUL character. Anything else raises `NotText`, which says
where: nothing is guessed, and nothing is replaced silently. Readers of single files let the error through, since it is an `InputError`;
readers of samples catch it and count the sample.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from datasets.errors import InputError

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_SHALLOW = 100
"""A JSON text of fewer brackets is nested less deep than any limit."""
_LINE_END = re.compile(r"\r\n|\r|\n")


class NotText(InputError):
    """The bytes are not text, or not JSON."""


def decode_text(data: bytes, where: str) -> str:
    """The bytes as text without a byte order mark. `NotText` names `where`, the line and the byte that is not text."""
    encoding = "utf-8"
    if data[:1] >= b"\xef":  # as every mark begins
        for mark, name in _BOMS:
            if data.startswith(mark):
                encoding, data = name, data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        raise NotText(
            f"{where} is not text in {encoding.upper()}: line {line}, byte 0x{data[error.start]:02x}. Accepted: UTF-8, with or without a "
            "byte order mark, and UTF-16 with one; save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise NotText(
            f"{where} is not text: line {line} holds a NUL character, as UTF-16 without a byte order mark "
            "and UTF-32 do. Accepted: UTF-8, with or without a byte order mark, and UTF-16 with one; save the file as UTF-8."
        )
    return text


def encoding_of(start: bytes) -> str:
    """Python's codec for a text that begins with these bytes; it drops the byte order mark. For files too large to read whole."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def read_text(path: str | Path) -> str:
    """A text file's content. `InputError` names a file that does not exist, cannot be read or is not text."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return decode_text(data, str(path))


def lines_of(text: str) -> list[str]:
    """The lines that are not empty, stripped; they may end in LF, CRLF or CR."""
    return [line.strip() for line in _LINE_END.split(text) if line.strip()]


def read_list(path: str | Path) -> list[str]:
    """The stripped lines of a file whose line numbers matter. Raises `InputError` naming an empty line, unless only empty ones follow."""
    lines = [line.strip() for line in _LINE_END.split(read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise InputError(f"{path}: line {lines.index('') + 1} is empty; each line is an entry, and its place is its number.")
    return lines


def parse_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON text. Raises `NotText` with `where` and the place, also if the text is empty or nested too deep.

    Half of a surrogate pair, which scrapers leave where they cut a text, becomes U+FFFD, because no encoder could write it again.
    """
    text = decode_text(data, where) if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
        if "\\ud" not in text and "\\uD" not in text and text.count("[") + text.count("{") < _SHALLOW:
            return value  # it holds no surrogate
        return _whole_characters(value)
    except json.JSONDecodeError as error:
        raise NotText(f"{where} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise NotText(f"{where} is JSON that is nested too deep.") from None
    except ValueError as error:  # a number of thousands of digits
        raise NotText(f"{where} is JSON that cannot be read: {error}.") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises `InputError` as `read_text` and `parse_json` do."""
    return parse_json(read_text(path), str(path))


def whole_characters(text: str) -> str:
    """The text with unpaired surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value
