"""Labelled evaluation sets: a folder of class folders, a labels.csv, or CLIP_benchmark's webdataset layout."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from datasets.classes import class_names, templates
from datasets.component import Component
from datasets.errors import InputError
from datasets.seeding import hash64
from datasets.source import INDEX_SCHEMA, Source, mark_duplicates
from datasets.view import DecodeError, decode

_LAYOUTS = ("auto", "folder", "labels_csv", "clip_benchmark")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CAPTION_DROPS = ("no_caption", "empty_caption", "no_letters", "short_caption")


@dataclass(frozen=True, kw_only=True)
class EvalSet(Component):
    """Pictures with labels, class names and prompt templates, for zero-shot accuracy and attack success rate."""

    path: str
    """Folder of the set; for `labels_csv` the CSV file or its folder."""
    layout: str = "auto"
    """`folder`: a folder per class, named after it or its index, or in the order of `classes` if there are as many;
    `labels_csv`: columns image, label (a class's index or name); `clip_benchmark`: `<split>/0.tar…` with jpg and cls
    members, classnames.txt, zeroshot_classification_templates.txt; `auto`: whichever is there."""
    classes: str | tuple[str, ...] = "auto"
    """`imagenet1k`, `cifar10`, or the names in the order of their indices; `auto`: what the set itself says."""
    templates: str | tuple[str, ...] = "auto"
    """`openai` (80), `simple` (7), `cifar10` (18), or texts with `{}`; `auto`: the set's own file, else `openai`."""
    split: str = "test"
    """Folder of the tars in `clip_benchmark`."""
    verify: str = "decode"
    """`decode` finds pictures that cannot be decoded when the set is loaded; `none` trusts them all."""

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise InputError(f"evalset.layout is {self.layout!r}; accepted are {', '.join(_LAYOUTS)}.")
        if self.verify not in ("decode", "none"):
            raise InputError(f"evalset.verify is {self.verify!r}; accepted are decode and none.")

    def load(self) -> tuple[pa.Table, list[str], tuple[str, ...], tuple[str, ...]]:
        """The index (INDEX_SCHEMA, `label` set in every kept row), the shards' URLs, class names and templates.

        Pictures that do not decode stay in the index with their drop reason. Raises `InputError` for a label that is no
        class, a class folder of an unknown name, and a set without pictures.
        """
        table, urls, names = {
            "folder": self._load_folder,
            "labels_csv": self._load_csv,
            "clip_benchmark": self._load_tars,
        }[self._layout()]()
        if not (np.asarray(table["drop"]) == "").any():
            raise InputError(f"the evaluation set {self.path} has no usable picture.")
        return table, urls, names, templates(self._templates())

    def shards(self) -> list[str]:
        """The URLs that the index's `shard` column numbers, without reading any picture."""
        return [os.path.abspath(self.path)] if self._layout() == "folder" else self._source().shards()

    def identity(self) -> list[dict]:
        """What determines the set's content, without absolute paths; for pictures in folders their names and sizes."""
        if self._layout() == "folder":
            named = [(name, os.path.getsize(os.path.join(self.path, name))) for name in self._folder_pictures()]
            own = [{"name": "pictures", "size": len(named), "digest": f"{hash64(*named):016x}"}]
        else:
            own = self._source().identity()
        for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
            file = Path(self._folder()) / name
            if file.exists():
                text = file.read_bytes()
                own.append({"name": name, "size": len(text), "digest": f"{hash64(text):016x}"})
        return own

    def _layout(self) -> str:
        if self.layout != "auto":
            return self.layout
        if not os.path.exists(self.path):
            raise InputError(f"evalset.path {self.path} does not exist.")
        if self.path.endswith((".csv", ".tsv")) or os.path.exists(os.path.join(self.path, "labels.csv")):
            return "labels_csv"
        if glob.glob(os.path.join(glob.escape(self.path), glob.escape(self.split), "*.tar")):
            return "clip_benchmark"
        if os.path.isdir(self.path) and any(entry.is_dir() for entry in os.scandir(self.path)):
            return "folder"
        raise InputError(
            f"evalset.path {self.path} is none of: a folder of class folders, one with labels.csv, one with {self.split}/*.tar."
        )

    def _folder(self) -> str:
        return self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or "."

    def _source(self) -> Source:
        if self._layout() == "labels_csv":
            file = os.path.join(self.path, "labels.csv") if os.path.isdir(self.path) else self.path
            return Source(urls=file, format="csv", caption_key="label", verify=self.verify)
        return Source(urls=os.path.join(self.path, self.split), format="webdataset", verify=self.verify)

    def _templates(self) -> str | tuple[str, ...]:
        file = Path(self._folder()) / "zeroshot_classification_templates.txt"
        if self.templates == "auto":
            return tuple(_lines(file)) if file.exists() else "openai"
        return self.templates

    def _names(self, otherwise: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """`classes`, for `auto` the set's classnames.txt, without one what `otherwise` gives."""
        file = Path(self._folder()) / "classnames.txt"
        if self.classes != "auto":
            return class_names(self.classes)
        return tuple(_lines(file)) if file.exists() else otherwise()

    def _load_tars(self) -> tuple[pa.Table, list[str], tuple[str, ...]]:
        source = self._source()
        urls = source.shards()
        table = mark_duplicates(pa.concat_tables([source.index_shard(i, url) for i, url in enumerate(urls)]), urls)
        names = self._names(self._no_names)
        labels = table["label"].to_numpy()
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            key = table["key"][int(wrong[0])].as_py()
            raise InputError(
                f"{self.path}: sample {key!r} has no label in its cls member or one that is not among the {len(names)} "
                f"classes (0 … {len(names) - 1})."
            )
        return _without_captions(table), urls, names

    def _load_csv(self) -> tuple[pa.Table, list[str], tuple[str, ...]]:
        source = self._source()
        urls = source.shards()
        table = mark_duplicates(pa.concat_tables([source.index_shard(i, url) for i, url in enumerate(urls)]), urls)
        texts = table["caption"].to_pylist()
        # the label column was read as the caption, for it may hold names
        names = self._names(lambda: self._own_names(texts))
        labels = np.array([_label(text, names, urls[0]) for text in texts], np.int32)
        at = table.schema.get_field_index("label")
        return _without_captions(table.set_column(at, "label", pa.array(labels))), urls, names

    def _no_names(self) -> tuple[str, ...]:
        raise InputError(f"evalset.classes is auto, but {self._folder()} has no classnames.txt; name the classes.")

    def _own_names(self, texts: list[str]) -> tuple[str, ...]:
        """The names in the label column, sorted; numbers tell no names."""
        if any(text.strip().isdecimal() for text in texts):
            self._no_names()
        return tuple(sorted(set(texts)))

    def _folder_pictures(self) -> list[str]:
        """Paths of the pictures below the class folders, relative to the set, `/` between parts, sorted."""
        found = []
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            below = Path(os.path.relpath(folder, self.path)).as_posix()
            if below != ".":
                found += [f"{below}/{name}" for name in files if name.lower().endswith(_PICTURES)]
        if not found:
            raise InputError(f"the folders in {self.path} hold no picture ({', '.join(_PICTURES)}).")
        return sorted(found)

    def _load_folder(self) -> tuple[pa.Table, list[str], tuple[str, ...]]:
        pictures = self._folder_pictures()
        folders = sorted({name.split("/", 1)[0] for name in pictures})
        names = self._names(lambda: tuple(folders))
        index_of = _folder_labels(folders, names, self.path)
        labels = [index_of[name.split("/", 1)[0]] for name in pictures]
        sizes = [os.path.getsize(os.path.join(self.path, name)) for name in pictures]
        drops = ["" if self.verify == "none" or _decodes(os.path.join(self.path, name)) else "undecodable" for name in pictures]
        zeros = [0] * len(pictures)
        columns = [pictures, zeros, pictures, zeros, sizes, [""] * len(pictures), labels, drops]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)]
        return pa.table(arrays, schema=INDEX_SCHEMA), [os.path.abspath(self.path)], names


def _folder_labels(folders: list[str], names: tuple[str, ...], path: str) -> dict[str, int]:
    """Class folder → index: by name, else by index; else, where none is known and there are as many as names, in order."""
    known = {folder: _index(folder, names) for folder in folders}
    missing = [folder for folder, index in known.items() if index is None]
    if len(missing) == len(folders) == len(names):
        return {folder: i for i, folder in enumerate(folders)}  # e.g. ImageNet's n01440764 …, sorted
    if missing:
        raise InputError(
            f"{path}: the folder {missing[0]!r} is no class; folders are named after a class or its index, or there are "
            f"exactly as many as classes ({len(names)}) and none is."
        )
    return {folder: index for folder, index in known.items() if index is not None}


def _label(text: str, names: tuple[str, ...], where: str) -> int:
    index = _index(text, names)
    if index is None:
        raise InputError(
            f"{where}: the label {text!r} is no class, or the name of several; accepted is a class's name "
            f"or its index, 0 … {len(names) - 1}."
        )
    return index


def _index(text: str, names: tuple[str, ...]) -> int | None:
    """A class's index from its name or its number, None for neither. A name that repeats is no name: only its index is."""
    text = text.strip()
    if names.count(text) == 1:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    return None


def _without_captions(table: pa.Table) -> pa.Table:
    """Captions play no part in evaluation: emptied, and no reason to drop a row."""
    drops = ["" if drop in _CAPTION_DROPS else drop for drop in table["drop"].to_pylist()]
    for name, values in (("caption", [""] * len(drops)), ("drop", drops)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _decodes(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            decode(file.read())
    except DecodeError:
        return False  # counted in the index
    return True


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
