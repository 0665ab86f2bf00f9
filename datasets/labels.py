"""Which class is meant: by its name, its number or its synset, as class folders and the tables of evaluation sets give it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from datasets.errors import InputError
from datasets.named import words
from datasets.storage import name_text
from datasets.tables import Keys, csv_rows

NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
"""A class number in a table; programs that know floats alone write 3.0."""


def folder_labels(folders: list[str], names: tuple[str, ...], synsets: Mapping[str, int], path: str) -> dict[str, int]:
    """Class folder → index: by name, index or synset; else, where none is known and there are as many as names, in order."""
    known = {folder: class_index(folder, names, synsets) for folder in folders}
    missing = [folder for folder, index in known.items() if index is None]
    others = synsets and any(re.fullmatch(r"n\d{8}", folder) for folder in missing)  # synsets, but not of these classes
    if len(missing) == len(folders) == len(names) and not others:
        return {folder: i for i, folder in enumerate(folders)}
    if missing:
        kinds = "a class, its index or its synset" if synsets else "a class or its index"
        raise InputError(
            f"{path}: the folder {name_text(missing[0])!r} is no class; folders are named after {kinds}, or there are "
            f"exactly as many as classes ({len(names)}) and none is."
        )
    return {folder: index for folder, index in known.items() if index is not None}


def table_labels(texts: Sequence[str], names: tuple[str, ...], synsets: Mapping[str, int], file: str) -> list[int]:
    """The class of each text in the table's column of labels; `InputError` with the line of one that is none."""
    index_of = {text: _label(text, names, synsets, file) for text in dict.fromkeys(texts)}
    return [index_of[text] for text in texts]


def _label(text: str, names: tuple[str, ...], synsets: Mapping[str, int], where: str) -> int:
    index = class_index(text, names, synsets)
    if index is None:
        raise InputError(
            f"{where}{line_of(where, text)}: the label {text[:80]!r} is no class, or the name of several; accepted is a class's name "
            f"or its index, 0 … {len(names) - 1}{', or its synset' if synsets else ''}."
        )
    return index


def class_index(text: str, names: tuple[str, ...], synsets: Mapping[str, int]) -> int | None:
    """A class's index from its name, synset or number, None for none. A name that repeats is no name: only its index is."""
    text = name_text(text).strip()
    for name in (text, words(text)):
        if names.count(name) == 1:
            return names.index(name)
    if text in synsets:
        return synsets[text]
    if NUMBER.fullmatch(text) and len(text) < 20:
        plain = text.partition(".")[0]
        number = names.index(plain) if names.count(plain) == 1 else int(plain)  # where names are numbers, 3.0 is the name 3
        return number if 0 <= number < len(names) else None
    return None


def line_of(file: str, label: str) -> str:
    """", line 7": where the table has the label first."""
    rows = csv_rows(file, "auto", Keys(caption="label", label=""))
    return next((f", line {row.line}" for row in rows if row.captions[0].text == label), "")
