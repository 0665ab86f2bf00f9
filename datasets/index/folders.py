"""Pictures that are separate files: those in a folder of class folders, and the index rows of a list of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from datasets.errors import InputError, NotThisSet
from datasets.index.addresses import member_of, read_bytes
from datasets.index.source import INDEX_SCHEMA, fault
from datasets.storage import PICTURES, name_text

NAMED = 3
"""How many files a message names before it counts the rest."""


class ClassFolders(NamedTuple):
    """The files in a folder of class folders."""

    pictures: list[str]
    """Paths below it, `/` between parts, sorted; the first part is the class's folder."""
    others: list[str]
    """Paths of the files that are no picture of a class, in the same form."""


def class_folders(root: str) -> ClassFolders:
    """The pictures of each class folder and of all folders below it, as torchvision's `ImageFolder` finds them: sorted, links followed (but
    not into a folder that they lie in). Hidden files and folders are passed over.

    Raises `InputError` naming a class folder without a picture, or a folder that cannot be read; `NotThisSet` if there is no picture at
    all.
    """
    try:
        with os.scandir(root) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        classes = [entry.name for entry in shown if entry.is_dir()]
        others = [entry.name for entry in shown if not entry.is_dir()]
        pictures, empty = [], []
        for name in classes:
            files = list(_files_below(root, name))
            in_class = [place for place, is_picture in files if is_picture]
            empty += [] if in_class else [name]
            pictures += in_class
            others += [place for place, is_picture in files if not is_picture]
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read: {error.strerror}.") from None
    if not pictures:
        raise NotThisSet(f"the folders in {root} hold no picture ({', '.join(PICTURES)}).{_hint(others)}")
    if empty:
        more = f", nor have {len(empty) - 1} others" if len(empty) > 1 else ""
        raise InputError(
            f"{root}: the class folder {name_text(empty[0])!r} has no usable picture ({', '.join(PICTURES)}){more}; "
            f"remove the folder or put its pictures there.{_hint(others)}"
        )
    return ClassFolders(sorted(pictures), sorted(others))


def _files_below(root: str, top: str) -> Iterator[tuple[str, bool]]:
    """(path below `root`, whether it is a picture) of every file in the folder `top` and below."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset([_place_on_disk(root)]))]
    while waiting:
        relative, above = waiting.pop()
        folder = os.path.join(root, relative)
        here = _place_on_disk(folder)
        if here in above:  # a link to a folder above it
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                place = f"{relative}/{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((place, above | {here}))
                else:  # a broken link stays: it counts as a missing picture
                    plain = entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
                    yield place, plain and entry.name.lower().endswith(PICTURES)


def _place_on_disk(folder: str) -> tuple[int, int]:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _hint(others: Sequence[str]) -> str:
    return f" Files that are none: {named(others)}." if others else ""


def named(files: Sequence[str]) -> str:
    """The names of the first few files, and how many more there are."""
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(name_text(file) for file in files[:NAMED]) + more


def file_rows(
    folder: str, files: Sequence[str], labels: Sequence[int], verify: str, spans: Sequence[tuple[int, int]] | None = None
) -> pa.Table:
    """Index rows of pictures below a folder or, with `spans`, at places (byte, length) in a tar.

    Missing pictures and repeated ones get a drop reason. Raises `InputError` for a picture that is listed with two labels.
    """
    keys = list(files) if spans is not None else [name_text(file) for file in files]
    label_of: dict[str, int] = {}
    again = []
    for key, label in zip(keys, labels):
        again.append(key in label_of)
        if label_of.setdefault(key, label) != label:
            both = f"as of class {label_of[key]} and of class {label}"
            raise InputError(f"{folder}: the picture {key[:200]} is listed {both}; one is accepted.")
    if spans is None:
        spans = [(0, size) for size in sizes(folder, files)]
    if all(size < 0 for _, size in spans):
        raise InputError(f"{folder}: none of the {len(files)} pictures exists; the first was looked for as {keys[0]}.")
    drops = ["duplicate_key" if twice else _drop(folder, key, span, verify) for key, span, twice in zip(keys, spans, again)]
    offsets, lengths = zip(*spans)
    members = [member_of(key) for key in keys]
    columns = [keys, [0] * len(keys), members, offsets, [max(0, n) for n in lengths], [""] * len(keys), labels, drops]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)


def sizes(folder: str, files: Sequence[str]) -> list[int]:
    """Bytes of each file; -1 if there is no file of that name."""
    return [_size(os.path.join(folder, name)) for name in files]


def _size(file: str) -> int:
    try:
        return os.path.getsize(file) if os.path.isfile(file) else -1
    except (OSError, ValueError):  # no file can have this name
        return -1


def _drop(folder: str, key: str, span: tuple[int, int], verify: str) -> str:
    if span[1] < 0:
        return "no_image"
    return fault(functools.partial(read_bytes, folder, *span, member_of(key)), verify, f"{folder}: the picture {key}")
