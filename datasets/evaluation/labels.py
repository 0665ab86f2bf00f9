"""Matches class folders and the label tables of evaluation sets to classes: by name, number or synset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from datasets.errors import InputError
from datasets.evaluation.known_sets import words
from datasets.index.tables import Keys, csv_rows
from datasets.storage import name_text

NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
"""A class number in a table; programs that know only floats write 3.0."""
_CODE = re.compile(r"[A-Za-z]?\d+")
"""A folder's name that is a code rather than a word: `n01440764`, `c0`, `17`."""
_SHOWN = 3
"""How many folders a note lists with their classes."""


def folder_labels(
    folders: Sequence[str], names: tuple[str, ...], synsets: Mapping[str, int], path: str, say: Callable[[str], None]
) -> dict[str, int]:
    """Class folder → index. Either all folders are names or synsets, or all are indices. Otherwise, if none is known, all are codes and
    there are as many as classes, they are matched in their order, and `say` gets a line about it. InputError if nothing fits."""
    known = class_indices(folders, names, synsets)
    missing = [folder for folder, index in known.items() if index is None]
    others = synsets and any(re.fullmatch(r"n\d{8}", folder) for folder in missing)  # synsets, but not of these classes
    if len(missing) == len(folders) == len(names) and all(map(_CODE.fullmatch, folders)) and not others:
        pairs = ", ".join(f"{folder} → {name}" for folder, name in zip(folders[:_SHOWN], names))
        end = ", …" if len(names) > _SHOWN else "."
        say(f"{path}: the class folders' names are no classes, so they are taken in their order: {pairs}{end}")
        return {folder: i for i, folder in enumerate(folders)}
    if missing:
        raise InputError(
            f"{path}: the folder {name_text(missing[0])!r} is no class; accepted are {_accepted(names, synsets)}, or exactly as many "
            f"codes (n01440764, 17) as classes ({len(names)}), in their order."
        )
    return {folder: index for folder, index in known.items() if index is not None}


def table_labels(texts: Sequence[str], names: tuple[str, ...], synsets: Mapping[str, int], file: str) -> list[int]:
    """The class of each text in the table's label column. Raises `InputError` with the line of a text that is no class."""
    index_of = class_indices(texts, names, synsets)
    if wrong := [text for text, index in index_of.items() if index is None]:
        raise InputError(
            f"{file}{line_of(file, wrong[0])}: the label {wrong[0][:80]!r} is no class, or the name of several; accepted are "
            f"{_accepted(names, synsets)}."
        )
    return [index for text in texts if (index := index_of[text]) is not None]


def _accepted(names: tuple[str, ...], synsets: Mapping[str, int]) -> str:
    return f"names of classes{' or synsets' if synsets else ''} alone, or indices alone, 0 … {len(names) - 1}"


def class_indices(texts: Sequence[str], names: tuple[str, ...], synsets: Mapping[str, int]) -> dict[str, int | None]:
    """Text → its class, or None. Either all texts are read as names and synsets, or all as indices; the two are never mixed, because names
    can be numbers themselves. Of the two readings the one that fits more texts is returned."""
    known, distinct = _spellings(names), dict.fromkeys(texts)
    by_name = {text: _named(name_text(text).strip(), known, synsets) for text in distinct}
    by_index = {text: _number(name_text(text).strip(), len(names)) for text in distinct}
    return max(by_name, by_index, key=lambda reading: sum(index is not None for index in reading.values()))


_SPELLING: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: name.partition(".")[0] if NUMBER.fullmatch(name) else name,  # 3.0 is the name 3
    words,
    str.casefold,
    lambda name: words(name.replace("-", " ")).casefold(),
)
"""How a name may be written, the strictest first."""


def _spellings(names: tuple[str, ...]) -> list[dict[str, int]]:
    """For each of `_SPELLING`: name → index. Repeated names are left out: such a class is known by its index only."""
    by_spelling = []
    for spelling in _SPELLING:
        written = [spelling(name) for name in names]
        counts = Counter(written)
        by_spelling.append({name: i for i, name in enumerate(written) if counts[name] == 1})
    return by_spelling


def _named(text: str, known: Sequence[Mapping[str, int]], synsets: Mapping[str, int]) -> int | None:
    spelt = ((indices, spelling(text)) for indices, spelling in zip(known, _SPELLING))
    return next((indices[name] for indices, name in spelt if name in indices), synsets.get(text))


def _number(text: str, classes: int) -> int | None:
    if not NUMBER.fullmatch(text) or len(text) >= 20:
        return None
    number = int(text.partition(".")[0])
    return number if 0 <= number < classes else None


def line_of(file: str, label: str) -> str:
    """", line 7": the first line of the table with this label."""
    rows = csv_rows(file, "auto", Keys(caption="label", label=""))
    return next((f", line {row.line}" for row in rows if row.captions[0].text == label), "")
