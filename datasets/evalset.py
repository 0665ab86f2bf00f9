"""Labelled evaluation sets: named ones as they lie on disk, a folder of class folders, a labels.csv, CLIP_benchmark's webdataset."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from datasets.classes import class_names, imagenet_synsets, templates
from datasets.component import Component
from datasets.errors import InputError
from datasets.named import SETS, Arrays, Files, canonical_name, words
from datasets.prompts import NAMES, PROMPTS
from datasets.seeding import hash64
from datasets.shards import write_tar
from datasets.source import INDEX_SCHEMA, Source, mark_duplicates, read_bytes
from datasets.storage import size_of
from datasets.view import DecodeError, decode

_LAYOUTS = ("auto", "folder", "labels_csv", "clip_benchmark")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_CAPTION_DROPS = ("no_caption", "caption_not_text", "empty_caption", "no_letters", "short_caption")
_OWN_TAR = "pictures.tar"


class Loaded(NamedTuple):
    """A set that was read."""

    table: pa.Table
    """`INDEX_SCHEMA`, `label` set in every kept row; pictures that do not decode stay with their drop reason."""
    urls: list[str]
    """What the table's `shard` column numbers."""
    names: tuple[str, ...]
    """Of the classes; a label is a place among them."""
    templates: tuple[str, ...]
    numbers: tuple[int, ...]
    """Of the classes in the list that the names were taken from: 0, 1, 2 … unless the set holds some of ImageNet's alone."""


@dataclass(frozen=True, kw_only=True)
class EvalSet(Component):
    """Pictures with labels, class names and prompt templates, for zero-shot accuracy and attack success rate."""

    path: str
    """Folder of the set; for `labels_csv` the CSV file or its folder."""
    name: str = ""
    """A known set (`named.SETS`: imagenet1k, imagenetv2, imagenet-a, cifar10, dtd, …): its official files are looked for at `path`,
    then the layouts below with its class names; its prompts are taken."""
    layout: str = "auto"
    """`folder`: a folder per class, named after it, its index or (ImageNet) its synset, or in the order of `classes` if there
    are as many; `labels_csv`: columns image, label (a class's index, name or synset); `clip_benchmark`: `<split>/0.tar…` with jpg
    and cls members, classnames.txt, zeroshot_classification_templates.txt; `auto`: whichever is there."""
    classes: str | tuple[str, ...] = "auto"
    """`imagenet1k`, `cifar10` or another of `prompts.NAMES`, or the names in the order of their indices; `auto`: what the set
    itself says."""
    templates: str | tuple[str, ...] = "auto"
    """`openai` (80), `simple` (7), `cifar10` or another of `prompts.PROMPTS`, or texts with `{}`; `auto`: the set's own, else `openai`."""
    split: str = "test"
    """Which of its splits, for a set with a name (`train` for a linear probe); folder of the tars in `clip_benchmark`."""
    verify: str = "decode"
    """`decode` finds pictures that cannot be decoded when the set is loaded; `none` trusts them all."""

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise InputError(f"evalset.layout is {self.layout!r}; accepted are {', '.join(_LAYOUTS)}.")
        if self.verify not in ("decode", "none"):
            raise InputError(f"evalset.verify is {self.verify!r}; accepted are decode and none.")
        if self.name:
            known = canonical_name(self.name)
            if not known:
                raise InputError(f"evalset.name is {self.name!r}; accepted are {', '.join(SETS)}, or none.")
            object.__setattr__(self, "name", known)  # one spelling, for the identity

    def load(self, folder: Path | None = None) -> Loaded:
        """Read the set. `folder` gets the pictures of sets that keep them in arrays (CIFAR, STL-10, SVHN), as a tar of PNGs.

        Raises `InputError` for a label that is no class, a class folder of an unknown name, and a set without pictures.
        """
        official = self._official()
        if official is not None:
            read = self._load_arrays(official, folder) if isinstance(official, Arrays) else self._load_files(official)
        else:
            layouts = {"folder": self._load_folder, "labels_csv": self._load_csv, "clip_benchmark": self._load_tars}
            read = layouts[self._layout()]()
        table, urls, names = read
        if not (np.asarray(table["drop"]) == "").any():
            raise InputError(f"the evaluation set {self.path} has no usable picture.")
        numbers: Sequence[int] = range(len(names))
        wanted = SETS[self.name].classes if self.name else None
        if wanted and len(names) == len(imagenet_synsets()):
            table, names, numbers = _only_present(table, names, wanted, f"{self.path} ({self.name})")
        return Loaded(table, urls, names, templates(self._templates()), tuple(numbers))

    def shards(self, folder: Path | None = None) -> list[str]:
        """The URLs that the index's `shard` column numbers; `folder` as it was given to `load`, wherever it lies now."""
        official = self._official()
        if isinstance(official, Files):
            return [os.path.abspath(official.folder)]
        if isinstance(official, Arrays):
            assert folder is not None, "the pictures of this set lie where it was loaded"
            return [str(folder / _OWN_TAR)]
        return [os.path.abspath(self._root())] if self._layout() == "folder" else self._source().shards()

    def identity(self) -> list[dict]:
        """What determines the set's content, without absolute paths; for pictures in folders their names and sizes."""
        official = self._official()
        if isinstance(official, Arrays):
            return [*Source(urls=tuple(map(str, official.files)), format="webdataset").identity(), self._words()]
        if isinstance(official, Files):
            lengths = [length for _, length in official.spans] if official.spans else sizes(official.folder, official.files)
            digest = hash64(*official.names, *zip(official.files, lengths, official.labels))
            return [{"name": "pictures", "size": len(official.files), "digest": f"{digest:016x}"}, self._words()]
        if self._layout() == "folder":
            pictures = self._folder_pictures()
            named = list(zip(pictures, sizes(self._root(), pictures)))
            own = [{"name": "pictures", "size": len(named), "digest": f"{hash64(*named):016x}"}]
        else:
            own = self._source().identity()
        for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
            file = Path(self._folder()) / name
            if file.exists():
                text = file.read_bytes()
                own.append({"name": name, "size": len(text), "digest": f"{hash64(text):016x}"})
        return [*own, self._words()]

    def _words(self) -> dict:
        """Digest of the class names and prompts, for what `imagenet1k` or `openai` stands for can change; names that the set's own
        files and folders give are part of those."""
        names, texts = self._names(lambda: ()), templates(self._templates())
        return {"name": "names and templates", "size": len(names) + len(texts), "digest": f"{hash64(names, texts):016x}"}

    def _official(self) -> Files | Arrays | None:
        """The set's own files, where it has a name and they are there."""
        if not self.name or self.layout != "auto":
            return None
        known = SETS[self.name]
        if not os.path.exists(self.path):
            raise InputError(f"evalset.path {self.path} does not exist; nothing is downloaded. {self.name} is looked for as {known.where}.")
        if self.split not in known.splits and not os.path.isdir(os.path.join(self.path, self.split)):
            raise InputError(f"evalset.split is {self.split!r}; {self.name} has {', '.join(known.splits)}.")
        return known.find(Path(self.path), self.split) if self.split in known.splits else None

    def _root(self) -> str:
        """The path; for a set with a name and a folder of its own below it, that one."""
        for pattern in SETS[self.name].folders if self.name and self.layout in ("auto", "folder") else ():
            found = [place for place in sorted(glob.glob(os.path.join(glob.escape(self.path), pattern))) if os.path.isdir(place)]
            if len(found) > 1:
                raise InputError(f"evalset.path {self.path} holds {' and '.join(map(os.path.basename, found))}; name one of them.")
            if found:
                return found[0]
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
        if os.path.isdir(root) and any(entry.is_dir() for entry in os.scandir(root)):
            return "folder"
        where = f"{SETS[self.name].where}, " if self.name else ""
        raise InputError(
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

    def _templates(self) -> str | tuple[str, ...]:
        file = Path(self._folder()) / "zeroshot_classification_templates.txt"
        if self.templates == "auto":
            return tuple(_lines(file)) if file.exists() else self.name if self.name in PROMPTS else "openai"
        return self.templates

    def _names(self, otherwise: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """`classes`, for `auto` the set's classnames.txt, without one those of a set with a name, or what `otherwise` gives."""
        file = Path(self._folder()) / "classnames.txt"
        if self.classes != "auto":
            return class_names(self.classes)
        if file.exists():
            return tuple(_lines(file))
        if self.name and (self.name in NAMES or SETS[self.name].imagenet):
            return class_names(self.name if self.name in NAMES else "imagenet1k")
        return otherwise()

    def _synsets(self, names: tuple[str, ...]) -> Mapping[str, int]:
        """Synset → index, where the classes are all of ImageNet's."""
        ours = self.classes == "imagenet1k" or (self.name and SETS[self.name].imagenet)
        return imagenet_synsets() if ours and len(names) == len(imagenet_synsets()) else {}

    def _load_arrays(self, found: Arrays, folder: Path | None) -> tuple[pa.Table, list[str], tuple[str, ...]]:
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
        return _without_captions(table), [str(tar)], names

    def _load_files(self, found: Files) -> tuple[pa.Table, list[str], tuple[str, ...]]:
        names = self._names(lambda: found.names)
        wrong = next((i for i, label in enumerate(found.labels) if not 0 <= label < len(names)), None)
        if wrong is not None:
            raise InputError(f"{found.folder}: {found.files[wrong]} has label {found.labels[wrong]}, none of the {len(names)} classes.")
        if not found.files:
            raise InputError(f"{found.folder} holds no picture of the split {self.split!r}.")
        return file_rows(found.folder, found.files, found.labels, self.verify, found.spans), [os.path.abspath(found.folder)], names

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
        synsets = self._synsets(names)
        labels = np.array([_label(text, names, synsets, urls[0]) for text in texts], np.int32)
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
        found, root = [], self._root()
        for folder, folders, files in os.walk(root):
            folders.sort()
            below = Path(os.path.relpath(folder, root)).as_posix()
            if below != ".":
                found += [f"{below}/{name}" for name in files if name.lower().endswith(_PICTURES)]
        if not found:
            raise InputError(f"the folders in {root} hold no picture ({', '.join(_PICTURES)}).")
        return sorted(found)

    def _load_folder(self) -> tuple[pa.Table, list[str], tuple[str, ...]]:
        pictures, root = self._folder_pictures(), self._root()
        folders = sorted({name.split("/", 1)[0] for name in pictures})
        names = self._names(lambda: tuple(map(words, folders)) if self.name else tuple(folders))
        index_of = _folder_labels(folders, names, self._synsets(names), root)
        labels = [index_of[name.split("/", 1)[0]] for name in pictures]
        return file_rows(root, pictures, labels, self.verify), [os.path.abspath(root)], names


def _folder_labels(folders: list[str], names: tuple[str, ...], synsets: Mapping[str, int], path: str) -> dict[str, int]:
    """Class folder → index: by name, index or synset; else, where none is known and there are as many as names, in order."""
    known = {folder: _index(folder, names, synsets) for folder in folders}
    missing = [folder for folder, index in known.items() if index is None]
    others = synsets and any(re.fullmatch(r"n\d{8}", folder) for folder in missing)  # synsets, but not of these classes
    if len(missing) == len(folders) == len(names) and not others:
        return {folder: i for i, folder in enumerate(folders)}
    if missing:
        kinds = "a class, its index or its synset" if synsets else "a class or its index"
        raise InputError(
            f"{path}: the folder {missing[0]!r} is no class; folders are named after {kinds}, or there are "
            f"exactly as many as classes ({len(names)}) and none is."
        )
    return {folder: index for folder, index in known.items() if index is not None}


def _label(text: str, names: tuple[str, ...], synsets: Mapping[str, int], where: str) -> int:
    index = _index(text, names, synsets)
    if index is None:
        raise InputError(
            f"{where}: the label {text!r} is no class, or the name of several; accepted is a class's name "
            f"or its index, 0 … {len(names) - 1}{', or its synset' if synsets else ''}."
        )
    return index


def _index(text: str, names: tuple[str, ...], synsets: Mapping[str, int]) -> int | None:
    """A class's index from its name, synset or number, None for none. A name that repeats is no name: only its index is."""
    text = text.strip()
    for name in (text, words(text)):
        if names.count(name) == 1:
            return names.index(name)
    if text in synsets:
        return synsets[text]
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    return None


def _only_present(table: pa.Table, names: tuple[str, ...], wanted: int, where: str) -> tuple[pa.Table, tuple[str, ...], list[int]]:
    """The set among the classes that it has pictures of: the table with their new labels, their names and old numbers."""
    labels = table["label"].to_numpy()
    present = np.unique(labels)
    if len(present) != wanted:
        raise InputError(f"{where} has pictures of {len(present)} classes; the whole set has {wanted}.")
    at = table.schema.get_field_index("label")
    table = table.set_column(at, "label", pa.array(np.searchsorted(present, labels).astype(np.int32)))
    return table, tuple(names[i] for i in present), present.tolist()


def _without_captions(table: pa.Table) -> pa.Table:
    """Captions play no part in evaluation: emptied, and no reason to drop a row."""
    drops = ["" if drop in _CAPTION_DROPS else drop for drop in table["drop"].to_pylist()]
    for name, values in (("caption", [""] * len(drops)), ("drop", drops)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table


def file_rows(
    folder: str, files: list[str], labels: list[int], verify: str, spans: list[tuple[int, int]] | None = None
) -> pa.Table:
    """Index rows of pictures below a folder, or at places (byte, length) in a tar; those that are not there are dropped."""
    if spans is None:
        spans = [(0, size) for size in sizes(folder, files)]
    if all(size < 0 for _, size in spans):
        raise InputError(f"{folder}: none of the {len(files)} pictures exists; the first was looked for as {files[0]}.")
    drops = [_drop(folder, file, span, verify) for file, span in zip(files, spans)]
    offsets, lengths = zip(*spans)
    columns = [files, [0] * len(files), files, offsets, [max(0, n) for n in lengths], [""] * len(files), labels, drops]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)


def sizes(folder: str, files: Sequence[str]) -> list[int]:
    """Bytes of each; -1 where it is not there."""
    return [size_of(os.path.join(folder, name)) for name in files]


def _drop(folder: str, file: str, span: tuple[int, int], verify: str) -> str:
    if span[1] < 0:
        return "no_image"
    if verify == "none":
        return ""
    try:
        decode(read_bytes(folder, *span, file))
    except DecodeError:
        return "undecodable"  # counted in the index
    return ""


def _png(picture_HWC: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture_HWC)).save(out, "PNG")
    return out.getvalue()


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
