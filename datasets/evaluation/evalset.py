"""Labelled evaluation sets: known ones as they lie on disk, a folder of class folders, a labels.csv, CLIP_benchmark's webdataset."""

from __future__ import annotations

import glob
import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from datasets.component import Component
from datasets.errors import InputError, NotThisSet
from datasets.evaluation.arrays import Arrays
from datasets.evaluation.classes import class_names, imagenet_synsets, templates
from datasets.evaluation.known_sets import PUBLISHED, SETS, Files, canonical_name, words
from datasets.evaluation.labels import NUMBER, folder_labels, line_of, table_labels
from datasets.evaluation.prompts import NAMES, PROMPTS
from datasets.index.folders import class_folders, file_rows, named, sizes
from datasets.index.keys import mark_duplicates
from datasets.index.source import PASSED_OVER, Source
from datasets.index.write import write_tar
from datasets.seeding import hash64
from datasets.storage import name_text
from datasets.text import read_list

_CAPTION_DROPS = ("no_caption", "caption_not_text", "empty_caption", "no_letters", "short_caption")
_OWN_TAR = "pictures.tar"
_OWN_FILES = ("classnames.txt", "zeroshot_classification_templates.txt")
Say = Callable[[str], None]


def silent(line: str) -> None:
    """Ignore the line."""


class Loaded(NamedTuple):
    """A set that was read."""

    table: pa.Table
    """`INDEX_SCHEMA`, `label` set in every kept row; pictures that do not decode stay with their drop reason."""
    urls: list[str]
    """The files that the table's `shard` column numbers."""
    names: tuple[str, ...]
    """Names of the classes; a label is an index into them."""
    templates: tuple[str, ...]
    numbers: tuple[int, ...]
    """Number of each class in the list that the names come from: 0, 1, 2 … unless the set holds only some of ImageNet's classes."""
    passed_over: int = 0
    """Number of files in its folders or tars that are no picture of a class or belong to no sample."""


_Read = tuple[pa.Table, list[str], tuple[str, ...], int]
"""Table, urls, names and passed_over of `Loaded`."""


@dataclass(frozen=True, kw_only=True)
class EvalSet(Component):
    """Pictures with labels, class names and prompt templates, for zero-shot accuracy and attack success rate."""

    path: str
    """Folder of the set; for `labels_csv` the CSV file or its folder."""
    name: str = ""
    """A known set (`known_sets.SETS`: imagenet1k, imagenetv2, imagenet-a, cifar10, dtd, …). `path` is searched for its official files, then
    for the layouts below with its class names; its prompts are used."""
    layout: Literal["auto", "folder", "labels_csv", "clip_benchmark"] = "auto"
    """`folder`: one folder per class. All are named after classes or (ImageNet) synsets, or all after indices, or they are codes in the
    order of `classes` and as many; `labels_csv`: columns image and label (named likewise); `clip_benchmark`: `<split>/0.tar…` with jpg and
    cls members, classnames.txt, zeroshot_classification_templates.txt; `auto`: whichever is there."""
    classes: str | tuple[str, ...] = "auto"
    """`imagenet1k`, `cifar10` or another of `prompts.NAMES`, or the names in the order of their indices; `auto`: the set's own."""
    templates: str | tuple[str, ...] = "auto"
    """`openai` (80), `simple` (7), `cifar10` or another of `prompts.PROMPTS`, or texts with `{}`; `auto`: the set's own, else `openai`."""
    split: str = "test"
    """Split of a known set (`train` for a linear probe); in `clip_benchmark` the folder of the tars."""
    verify: Literal["decode", "none"] = "decode"
    """`decode` finds pictures that cannot be decoded when the set is loaded; `none` trusts them all."""

    def __post_init__(self) -> None:
        check_path("evalset.path", self.path)
        if self.name:
            known = canonical_name(self.name)
            if not known:
                raise InputError(f"evalset.name is {self.name!r}; accepted are {', '.join(SETS)}, or none.")
            object.__setattr__(self, "name", known)  # one spelling, because it is part of the identity

    def load(self, folder: Path | None = None, say: Say = silent) -> Loaded:
        """Read the set. `folder` gets the pictures of sets that keep them in arrays (CIFAR, STL-10, SVHN), as a tar of PNGs.

        `say` is called with a line about each thing that is unusual but allowed: files that are no pictures, class folders matched by their
        order, a class without a usable picture, a number of pictures that differs from the published one. Raises `InputError` for a label
        that is no class, a class folder with an unknown name or without a usable picture, and a set without pictures.
        """
        official = self._official()
        if official is not None:
            read = self._load_arrays(official, folder) if isinstance(official, Arrays) else self._load_files(official)
        else:
            layouts = {"folder": self._load_folder, "labels_csv": self._load_csv, "clip_benchmark": self._load_tars}
            read = layouts[self._layout()](say)
        table, urls, names, passed_over = read
        if not (np.asarray(table["drop"]) == "").any():
            raise InputError(f"the evaluation set {self.path} has no usable picture ({_reasons(table)}).")
        wanted = SETS[self.name].classes if self.name else None
        for label, reasons in _lost_classes(table).items():
            lost = f"{self.path}: the class {names[label]!r} has no usable picture ({reasons})"
            if official is None and self._layout() == "folder":
                raise InputError(f"{lost}; remove its folder or put other pictures there.")
            say(f"{lost}; it is not measured.")
        absent = np.setdiff1d(np.arange(len(names)), table["label"].to_numpy()).tolist()
        if absent and not wanted:
            absent_names = named([names[label] for label in absent])
            say(f"{self.path}: {len(absent)} of its {len(names)} classes have no picture: {absent_names}.")
        published = PUBLISHED[self.name].get(self.split) if self.name else None
        if published not in (None, len(table)):
            say(f"{self.path}: {self.name} has {published} pictures in its {self.split} split as published; here it has {len(table)}.")
        numbers: Sequence[int] = range(len(names))
        if wanted and len(names) == len(imagenet_synsets()):
            table, names, numbers = _only_present(table, names, wanted, f"{self.path} ({self.name})")
        return Loaded(table, urls, names, templates(self.prompts()), tuple(numbers), passed_over)

    def shards(self, folder: Path | None = None) -> list[str]:
        """The URLs that the index's `shard` column numbers; `folder` as for `load`, wherever it lies now."""
        official = self._official()
        if isinstance(official, Files):
            return [os.path.abspath(official.folder)]
        if isinstance(official, Arrays):
            assert folder is not None, "the pictures of this set lie where it was loaded"
            return [str(folder / _OWN_TAR)]
        return [os.path.abspath(self._root())] if self._layout() == "folder" else self._source().shards()

    def identity(self) -> list[dict]:
        """What determines the set's content, without absolute paths; pictures in folders count by their names and sizes."""
        official = self._official()
        if isinstance(official, Arrays):
            return [*Source(urls=tuple(map(str, official.files)), format="webdataset").identity(), self._words()]
        if isinstance(official, Files):
            lengths = [length for _, length in official.spans] if official.spans else sizes(official.folder, official.files)
            digest = hash64(*official.names, *zip(map(name_text, official.files), lengths, official.labels))
            return [{"name": "pictures", "size": len(official.files), "digest": f"{digest:016x}"}, self._words()]
        if self._layout() == "folder":
            pictures = class_folders(self._root()).pictures
            sized = list(zip(map(name_text, pictures), sizes(self._root(), pictures)))
            entries = [{"name": "pictures", "size": len(sized), "digest": f"{hash64(*sized):016x}"}]
        else:
            entries = self._source().identity()
        for name in _OWN_FILES:
            file = Path(self._folder()) / name
            if file.exists():
                text = file.read_bytes()
                entries.append({"name": name, "size": len(text), "digest": f"{hash64(text):016x}"})
        return [*entries, self._words()]

    def _words(self) -> dict:
        """Digest of the class names and prompts, because the lists behind names like `imagenet1k` or `openai` can change. Names from the
        set's own files and folders are covered by those files."""
        names, texts = self._names(lambda: ()), templates(self.prompts())
        return {"name": "names and templates", "size": len(names) + len(texts), "digest": f"{hash64(names, texts):016x}"}

    def _official(self) -> Files | Arrays | None:
        """The published files of a known set; None if they are not there."""
        if not self.name or self.layout != "auto":
            return None
        known = SETS[self.name]
        if not os.path.exists(self.path):
            raise InputError(f"evalset.path {self.path} does not exist; nothing is downloaded. {self.name} is looked for as {known.where}.")
        if self.split not in known.splits and not os.path.isdir(os.path.join(self.path, self.split)):
            raise InputError(f"evalset.split is {self.split!r}; {self.name} has {', '.join(known.splits)}.")
        return known.find(Path(self.path), self.split) if self.split in known.splits else None

    def _root(self) -> str:
        """`path` or, if a known set has a folder of its own below it, that folder."""
        for pattern in SETS[self.name].folders if self.name and self.layout in ("auto", "folder") else ():
            folders = [place for place in sorted(glob.glob(os.path.join(glob.escape(self.path), pattern))) if os.path.isdir(place)]
            if len(folders) > 1:
                raise InputError(f"evalset.path {self.path} holds {' and '.join(map(os.path.basename, folders))}; name one of them.")
            if folders:
                return folders[0]
        return self.path

    def _layout(self) -> str:
        if self.layout != "auto":
            return self.layout
        root = self._root()
        if not os.path.exists(root):
            raise InputError(f"evalset.path {root} does not exist.")
        if root.endswith((".csv", ".tsv")) or os.path.exists(os.path.join(root, "labels.csv")):
            return "labels_csv"
        if glob.glob(os.path.join(glob.escape(root), glob.escape(self.split), "*.tar")):
            return "clip_benchmark"
        if os.path.isdir(root) and any(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(root)):
            return "folder"
        where = f"{SETS[self.name].where}, " if self.name else ""
        raise NotThisSet(
            f"evalset.path {root} is none of: {where}a folder of class folders, one with labels.csv, one with {self.split}/*.tar."
            f"{' Nothing is downloaded.' if self.name else ''}"
        )

    def _folder(self) -> str:
        root = self._root()
        return root if os.path.isdir(root) else os.path.dirname(root) or "."

    def _source(self) -> Source:
        root = self._root()
        if self._layout() == "labels_csv":
            file = os.path.join(root, "labels.csv") if os.path.isdir(root) else root
            return Source(urls=file, format="csv", caption_key="label", verify=self.verify)
        return Source(urls=os.path.join(root, self.split), format="webdataset", verify=self.verify)

    def prompts(self) -> str | tuple[str, ...]:
        """`templates`; for `auto` the prompts of the set's own file, else those of its name, else `openai`. In a form that
        `classes.templates` takes."""
        file = Path(self._folder()) / "zeroshot_classification_templates.txt"
        if self.templates == "auto":
            return tuple(read_list(file)) if file.exists() else self.name if self.name in PROMPTS else "openai"
        return self.templates

    def _names(self, otherwise: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """`classes`; for `auto` the set's classnames.txt, else the names of a known set, else the result of `otherwise`."""
        file = Path(self._folder()) / "classnames.txt"
        if self.classes != "auto":
            return class_names(self.classes)
        if file.exists():
            return class_names(read_list(file))
        if self.name and (self.name in NAMES or SETS[self.name].imagenet):
            return class_names(self.name if self.name in NAMES else "imagenet1k")
        return otherwise()

    def _synsets(self, names: tuple[str, ...]) -> Mapping[str, int]:
        """Synset → index, if the classes are ImageNet's 1000; else empty."""
        ours = self.classes == "imagenet1k" or (self.name and SETS[self.name].imagenet)
        return imagenet_synsets() if ours and len(names) == len(imagenet_synsets()) else {}

    def _load_arrays(self, found: Arrays, folder: Path | None) -> _Read:
        assert folder is not None, "the pictures of this set need a folder"
        names = self._names(self._no_names)
        picture_NHWC, label_N = found.read()
        if len(picture_NHWC) != len(label_N):
            raise InputError(f"{found.files[0]}: {len(picture_NHWC)} pictures, but {len(label_N)} labels.")
        wrong = np.flatnonzero((label_N < 0) | (label_N >= len(names)))
        if len(wrong):
            raise InputError(f"{found.files[0]}: picture {wrong[0]} has label {label_N[wrong[0]]}, none of the {len(names)} classes.")
        tar = folder / _OWN_TAR
        write_tar(tar, ((f"{i:06d}", {"png": _png(picture), "cls": str(label_N[i])}) for i, picture in enumerate(picture_NHWC)))
        table = Source(urls=str(tar), format="webdataset", verify="none").index_shard(0, str(tar))
        return _without_captions(table), [str(tar)], names, 0

    def _load_files(self, found: Files) -> _Read:
        names = self._names(lambda: found.names)
        wrong = next((i for i, label in enumerate(found.labels) if not 0 <= label < len(names)), None)
        if wrong is not None:
            raise InputError(f"{found.folder}: {found.files[wrong]} has label {found.labels[wrong]}, none of the {len(names)} classes.")
        if not found.files:
            raise InputError(f"{found.folder} holds no picture of the split {self.split!r}.")
        return file_rows(found.folder, found.files, found.labels, self.verify, found.spans), [os.path.abspath(found.folder)], names, 0

    def _load_tars(self, say: Say) -> _Read:
        table, urls, passed_over = self._source().index()
        if passed_over:
            say(f"{self.path}: {passed_over} {PASSED_OVER}.")
        names = self._names(self._no_names)
        labels = table["label"].to_numpy()
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            key = table["key"][int(wrong[0])].as_py()
            raise InputError(
                f"{self.path}: sample {key!r} has no label in its cls member or one that is not among the {len(names)} "
                f"classes (0 … {len(names) - 1})."
            )
        return mark_duplicates(_without_captions(table), across=False), urls, names, passed_over

    def _load_csv(self, say: Say) -> _Read:
        table, urls, _ = self._source().index()
        # the label column was read as the caption, because it may hold names
        texts = [(text or "").strip() for text in table["caption"].to_pylist()]
        if "" in texts:
            raise InputError(f"{urls[0]}{line_of(urls[0], '')}: the label is empty; each picture needs one.")
        names = self._names(lambda: self._own_names(texts))
        synsets = self._synsets(names)
        labels = table_labels(texts, names, synsets, urls[0])
        table = _without_captions(table)
        drops, first = table["drop"].to_pylist(), dict[str, int]()
        for i, (path, label) in enumerate(zip(map(posixpath.normpath, table["member"].to_pylist()), labels)):
            before = first.get(path, label)
            if before != label:
                both = f"{names[before]!r} and {names[label]!r}"
                raise InputError(f"{urls[0]}: the picture {path} is of two classes, {both}; one row a picture is accepted.")
            if path in first:
                drops[i] = drops[i] or "duplicate_key"  # the same label, possibly in another form
            first[path] = label
        for name, column in (("label", pa.array(labels, pa.int32())), ("drop", pa.array(drops, pa.string()))):
            table = table.set_column(table.schema.get_field_index(name), name, column)
        return table, urls, names, 0

    def _no_names(self) -> tuple[str, ...]:
        raise NotThisSet(f"evalset.classes is auto, but {self._folder()} has no classnames.txt; name the classes.")

    def _own_names(self, texts: list[str]) -> tuple[str, ...]:
        """The names in the label column, sorted; numbers are not names."""
        if any(map(NUMBER.fullmatch, texts)):
            self._no_names()
        return tuple(sorted(set(texts)))

    def _load_folder(self, say: Say) -> _Read:
        root = self._root()
        pictures, others = class_folders(root)
        others = [place for place in others if place not in _OWN_FILES]
        if others:
            say(f"{root}: {len(others)} files are no pictures of a class and are passed over: {named(others)}.")
        folders = sorted({name.split("/", 1)[0] for name in pictures})
        names = self._names(lambda: self._folder_names(folders))
        index_of = folder_labels(folders, names, self._synsets(names), root, say)
        labels = [index_of[name.split("/", 1)[0]] for name in pictures]
        return file_rows(root, pictures, labels, self.verify), [os.path.abspath(root)], names, len(others)

    def _folder_names(self, folders: list[str]) -> tuple[str, ...]:
        """The folders' own names as those of the classes."""
        names = tuple((words(folder) if self.name else folder.strip()) for folder in map(name_text, folders))
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"{self._root()}: two class folders have the name {twice[0]!r}, but for spaces; rename one.")
        return names


def check_path(field: str, path: str) -> None:
    """InputError for a path that is not text, or that no file can have."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{field} is {name_text(path)!r}, which is not UTF-8; rename the folder, or give a link to it.") from None
    if "\0" in path:
        raise InputError(f"{field} is {path!r}, which holds a NUL character; no file has such a name.")


def _reasons(table: pa.Table) -> str:
    counts = Counter(drop for drop in table["drop"].to_pylist() if drop)
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def _lost_classes(table: pa.Table) -> dict[int, str]:
    """Classes that have pictures, none of them usable → the reasons with their counts."""
    label_N, kept_N = table["label"].to_numpy(), np.asarray(table["drop"]) == ""
    lost = np.setdiff1d(label_N[~kept_N], label_N[kept_N]).tolist()
    return {label: _reasons(table.filter(pa.array(label_N == label))) for label in lost}


def _only_present(table: pa.Table, names: tuple[str, ...], wanted: int, where: str) -> tuple[pa.Table, tuple[str, ...], list[int]]:
    """The set restricted to the classes with pictures: (table with new labels, the classes' names, their old numbers)."""
    labels = table["label"].to_numpy()
    present = np.unique(labels)
    if len(present) != wanted:
        raise InputError(f"{where} has pictures of {len(present)} classes; the whole set has {wanted}.")
    at = table.schema.get_field_index("label")
    table = table.set_column(at, "label", pa.array(np.searchsorted(present, labels).astype(np.int32)))
    return table, tuple(names[i] for i in present), present.tolist()


def _without_captions(table: pa.Table) -> pa.Table:
    """The table with empty captions and no row dropped for its caption, because evaluation does not use captions."""
    drops = ["" if drop in _CAPTION_DROPS else drop for drop in table["drop"].to_pylist()]
    for name, values in (("caption", [""] * len(drops)), ("drop", drops)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def _png(picture_HWC: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture_HWC)).save(out, "PNG")
    return out.getvalue()
