"""Evaluation sets by name: which files each has on disk, as its authors or torchvision's downloads leave them.

Nothing is downloaded. Pictures that are files are read in place; those of CIFAR, STL-10 and SVHN are arrays (`datasets.evaluation.arrays`).
The lists are read here rather than by torchvision's classes, which check only that a folder exists, or the sums of whole files: they read a
class listed twice, or a pet with two names, without complaint, and other mistakes end in a KeyError. Tests compare the two.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.evaluation.arrays import Arrays, cifar, existing, first_folder, matlab, stl10, svhn, whole_numbers
from datasets.evaluation.prompts import CALTECH101, NAMES
from datasets.index.tar import walk
from datasets.storage import Reader, name_text
from datasets.text import lines_of, read_list, read_text


@dataclass(frozen=True)
class Files:
    """Pictures that are files in a folder, or members of one tar."""

    names: tuple[str, ...]
    """Names of the classes; empty: those in the set's list."""
    folder: str
    """Folder or tar."""
    files: list[str]
    """Paths below the folder, or members of the tar."""
    labels: list[int]
    spans: list[tuple[int, int]] | None = None
    """In a tar: (byte, length) of each file."""


@dataclass(frozen=True)
class Named:
    """What is known about a set before it is opened."""

    where: str
    """For messages: the files that are looked for below the given path."""
    find: Callable[[Path, str], Files | Arrays | None] = lambda root, split: None
    """The published files of a split below a root; None if they are not there."""
    splits: tuple[str, ...] = ("test",)
    folders: tuple[str, ...] = ()
    """Places below the given path where its class folders may lie."""
    imagenet: bool = False
    """Whether its classes are ImageNet's."""
    classes: int | None = None
    """How many of ImageNet's classes the set has; the others are no candidates."""


def canonical_name(name: str) -> str:
    """The name's spelling in `SETS`; "" for an unknown name."""
    plain = re.sub(r"[^0-9a-z]", "", name.lower())
    spellings = {re.sub(r"[^0-9a-z]", "", known): known for known in SETS}
    return spellings.get(_ALIASES.get(plain, plain), "")


def words(folder: str) -> str:
    """A folder's name as words."""
    return re.sub(r"\s+", " ", folder.replace("_", " ")).strip()


# ---- files --------------------------------------------------------------------------------------------------------------


def _caltech101(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "caltech101/101_ObjectCategories", "101_ObjectCategories", having="accordion")
    if folder is None:
        return None
    classes = [name for name in _listed(folder) if (folder / name).is_dir() and name != "BACKGROUND_Google"]
    entries = [(f"{name}/{file}", i) for i, name in enumerate(classes) for file in _listed(folder / name)]
    return Files(tuple(CALTECH101.get(name, words(name_text(name))) for name in classes), str(folder), *_columns(entries))


def _dtd(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "dtd/dtd", "dtd", having="labels")
    if folder is None:
        return None
    listed = [line for part in _parts(split) for line in _read_lines(folder / "labels" / f"{part}1.txt")]  # the first of ten splits
    strange = next((line for line in listed if not all(line.partition("/"))), None)
    if strange is not None:
        raise InputError(f"{folder}/labels: {strange[:80]!r} is no class and picture, split at '/'.")
    classes = sorted({line.split("/")[0] for line in listed})
    return Files(
        tuple(words(name) for name in classes), str(folder / "images"), listed, [classes.index(line.split("/")[0]) for line in listed]
    )


def _fgvc_aircraft(root: Path, split: str) -> Files | None:
    data = first_folder(root, "fgvc-aircraft-2013b/data", "data", having="variants.txt")
    if data is None:
        return None
    names = tuple(_distinct(data / "variants.txt"))
    file = data / f"images_variant_{split}.txt"
    entries = []
    for line in _read_lines(file):
        picture, _, name = line.partition(" ")
        if name.strip() not in names:
            raise InputError(f"{file}: {line[:80]!r} names no class of variants.txt.")
        entries.append((f"{picture}.jpg", names.index(name.strip())))
    return Files(names, str(data / "images"), *_columns(entries))


def _flowers102(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "flowers-102", having="setid.mat")
    if folder is None:
        return None
    keys = [{"train": "trnid", "val": "valid", "test": "tstid"}[part] for part in _parts(split)]
    ids = np.concatenate([whole_numbers(matlab(folder / "setid.mat", key)[key], f"{folder}/setid.mat: {key}") for key in keys])
    label = whole_numbers(matlab(folder / "imagelabels.mat", "labels")["labels"], f"{folder}/imagelabels.mat: labels")
    if len(ids) and (ids.min() < 1 or ids.max() > len(label)):
        raise InputError(f"{folder}: setid.mat names pictures {ids.min()} … {ids.max()}, imagelabels.mat has {len(label)} labels.")
    return Files((), str(folder / "jpg"), [f"image_{i:05d}.jpg" for i in ids], [int(label[i - 1]) - 1 for i in ids])


def _food101(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "food-101", having="meta")
    if folder is None:
        return None
    classes = sorted(_distinct(folder / "meta" / "classes.txt"))
    listed = _read_lines(folder / "meta" / f"{split}.txt")
    strange = next((line for line in listed if line.split("/")[0] not in classes), None)
    if strange is not None:
        raise InputError(f"{folder}/meta/{split}.txt: {strange[:80]!r} names no class of classes.txt.")
    labels = [classes.index(line.split("/")[0]) for line in listed]
    return Files(tuple(map(words, classes)), str(folder / "images"), [f"{line}.jpg" for line in listed], labels)


def _gtsrb(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "gtsrb", having="GTSRB")
    if folder is None:
        return None
    if split == "train":
        pictures = folder / "GTSRB" / "Training"
        if not pictures.is_dir():
            raise InputError(f"{pictures} does not exist; it holds a folder of pictures for each of the 43 signs.")
        classes = [name for name in _listed(pictures) if (pictures / name).is_dir()]
        strange = next((name for name in classes if not name.isdecimal()), None)
        if strange is not None:
            raise InputError(f"{pictures}: the folder {name_text(strange)!r} is no sign; folders are named after their numbers.")
        entries = [(f"{name}/{f}", int(name)) for name in classes for f in _listed(pictures / name) if f.lower().endswith(".ppm")]
    else:
        pictures, table = folder / "GTSRB" / "Final_Test" / "Images", folder / "GT-final_test.csv"
        entries = _signs(table)
    return Files((), str(pictures), *_columns(entries))


def _signs(table: Path) -> list[tuple[str, int]]:
    """(picture, class) of each row of a table split at `;`."""
    rows = csv.DictReader(io.StringIO(read_text(existing(table)), newline=""), delimiter=";", skipinitialspace=True)
    entries = []
    try:
        for row in rows:
            name, number = (row.get("Filename") or "").strip(), (row.get("ClassId") or "").strip()
            if not name or not number.isdecimal():
                raise InputError(f"{table}, line {rows.line_num}: it has no Filename and ClassId (a number), split at ';'.")
            entries.append((name, int(number)))
    except csv.Error as error:
        raise InputError(f"{table}, line {rows.line_num}: {error}.") from None
    return entries


def _oxford_pets(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "oxford-iiit-pet", having="annotations")
    if folder is None:
        return None
    file = folder / "annotations" / f"{'test' if split == 'test' else 'trainval'}.txt"
    rows = [line.split() for line in _read_lines(file) if not line.startswith("#")]
    try:
        entries = [(f"{row[0]}.jpg", int(row[1]) - 1) for row in rows]
    except (IndexError, ValueError):
        raise InputError(f"{file}: a line is a picture's name, its class from 1, and two more numbers.") from None
    name_of: dict[int, str] = {}
    for picture, label in entries:
        name = words(picture.rpartition("_")[0])
        if name_of.setdefault(label, name) != name:
            both = f"{name_of[label][:80]!r} and of {name[:80]!r}"
            raise InputError(f"{file}: class {label + 1} has pictures of {both}; a class has one name.")
    if sorted(name_of) != list(range(len(name_of))):
        raise InputError(f"{file}: classes {', '.join(str(n + 1) for n in sorted(name_of))} are not 1, 2, 3 … without a gap.")
    return Files(tuple(name_of[i] for i in range(len(name_of))), str(folder / "images"), *_columns(entries))


def _rendered_sst2(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "rendered-sst2", having="valid" if split == "val" else split)
    if folder is None:
        return None
    pictures = folder / ("valid" if split == "val" else split)
    held = [(name, i, file) for i, name in enumerate(NAMES["rendered_sst2"]) for file in _listed(pictures / name)]
    entries = [(f"{name}/{file}", i) for name, i, file in held if file.lower().endswith(".png")]
    return Files((), str(pictures), *_columns(entries))


def _cars(root: Path, split: str) -> Files | None:
    folder = first_folder(root, "stanford_cars", having="devkit")
    if folder is None:
        return None
    notes = folder / ("cars_test_annos_withlabels.mat" if split == "test" else "devkit/cars_train_annos.mat")
    rows = np.atleast_1d(matlab(notes, "annotations")["annotations"])
    if rows.dtype.names is None or not {"class", "fname"} <= set(rows.dtype.names):
        raise InputError(f"{notes}: its annotations have no class; the file of test pictures with labels is wanted.")
    names = matlab(folder / "devkit" / "cars_meta.mat", "class_names")["class_names"]
    try:
        entries = [(str(row["fname"]), int(row["class"]) - 1) for row in rows]
    except (TypeError, ValueError, IndexError):
        raise InputError(f"{notes}: its annotations have a class that is no number.") from None
    return Files(tuple(str(name).strip() for name in np.atleast_1d(names)), str(folder / f"cars_{split}"), *_columns(entries))


# ---- ImageNet's validation set as it is downloaded ----------------------------------------------------------------------


def _imagenet_flat(root: Path, split: str) -> Files | None:
    """ILSVRC2012_img_val.tar, or its pictures in one folder, with ground truth beside them."""
    places = [root, *(root / name for name in ("ILSVRC2012_img_val.tar", "val", "ILSVRC/Data/CLS-LOC/val"))]
    for place in places:
        if place.is_file() and place.suffix == ".tar":
            with Reader(str(place)) as reader:
                entries = [(m.name.rsplit("/", 1)[-1], m) for m in walk(reader) if m.name.lower().endswith((".jpeg", ".jpg"))]
            members = {name: member for name, member in entries if not name.startswith(".")}
            if twice := [name for name, count in Counter(name for name, _ in entries if name in members).items() if count > 1]:
                raise InputError(f"{place} holds the picture {twice[0]} more than once; one of each is accepted.")
            files = sorted(members)
            labels = _imagenet_truth(place, files)
            ordered = [members[name] for name in files]
            return Files((), str(place), [m.name for m in ordered], labels, [(m.offset, m.size) for m in ordered])
        if place.is_dir():
            files = sorted(e.name for e in os.scandir(place) if re.fullmatch(r"(?i)ILSVRC2012_val_\d+\.jpe?g", e.name))
            if files:
                return Files((), str(place), files, _imagenet_truth(place, files))
    return None


_TRUTHS = ("LOC_val_solution.csv", "val.txt", "imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_devkit_t12")


def _imagenet_truth(place: Path, files: list[str]) -> list[int]:
    """Class of each picture from whichever ground truth lies in the folder, beside it or up to four levels above."""
    above = [place, *place.parents[:4]] if place.is_dir() else list(place.parents[:4])
    for folder in above:
        for name in _TRUTHS:
            if (folder / name).exists():
                return _truth_labels(folder / name, files)
    raise InputError(
        f"{place} holds the validation pictures without class folders, and no ground truth lies beside them; accepted are "
        f"{', '.join(_TRUTHS)} (unpacked)."
    )


def _truth_labels(truth: Path, files: list[str]) -> list[int]:
    from datasets.evaluation.classes import imagenet_synsets

    stems = [name.rsplit(".", 1)[0] for name in files]
    if truth.is_dir():  # the development kit counts synsets in an order of its own
        synset_of = _kit_synsets(truth / "data" / "meta.mat")
        numbers = read_list(existing(truth / "data" / "ILSVRC2012_validation_ground_truth.txt"))
        pairs = [(f"ILSVRC2012_val_{i:08d}", synset_of.get(number, number)) for i, number in enumerate(numbers, 1)]
    elif truth.name == "LOC_val_solution.csv":
        pairs = [(stem, rest.split()[0]) for stem, _, rest in (line.partition(",") for line in _read_lines(truth)[1:]) if rest.split()]
    elif truth.name == "val.txt":
        pairs = [(row[0].rsplit("/", 1)[-1].rsplit(".", 1)[0], row[-1]) for row in (line.split() for line in _read_lines(truth))]
    else:
        pairs = [(f"ILSVRC2012_val_{i:08d}", synset) for i, synset in enumerate(read_list(existing(truth)), 1)]
    texts: dict[str, str] = {}
    for stem, text in pairs:
        if texts.setdefault(stem, text) != text:
            raise InputError(f"{truth} gives the picture {stem[:80]} two classes, {texts[stem][:80]!r} and {text[:80]!r}; one is accepted.")
    labels = []
    for stem in stems:
        if (text := texts.get(stem, "")) == "":
            raise InputError(f"{truth} says nothing about the picture {stem}.")
        label = imagenet_synsets().get(text, int(text) if text.isdecimal() and truth.name == "val.txt" else -1)
        if not 0 <= label < 1000:
            raise InputError(f"{truth}: {stem} is given {text[:80]!r}, none of ImageNet's 1000 classes.")
        labels.append(label)
    return labels


def _kit_synsets(file: Path) -> dict[str, str]:
    """The development kit's number of each synset → the synset."""
    rows = np.atleast_1d(matlab(file, "synsets")["synsets"])
    try:
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except (TypeError, ValueError, IndexError, KeyError):
        raise InputError(f"{file}: its synsets have no ILSVRC2012_ID (a number) and WNID.") from None


# ---- helpers ------------------------------------------------------------------------------------------------------------


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "val") if split == "trainval" else (split,)


def _columns(found: list[tuple[str, int]]) -> tuple[list[str], list[int]]:
    return [name for name, _ in found], [label for _, label in found]


def _listed(folder: Path) -> list[str]:
    """Sorted names of the folder's entries, without hidden ones."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; it belongs to the set, and nothing is downloaded.")
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _read_lines(file: Path) -> list[str]:
    return lines_of(read_text(existing(file)))


def _distinct(file: Path) -> list[str]:
    """The lines of a list of classes; InputError if one is repeated."""
    lines = _read_lines(file)
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise InputError(f"{file}: the class {twice[:80]!r} is listed more than once.")
    return lines


_TRAIN5 = tuple(f"data_batch_{i}" for i in range(1, 6))
_THREE = ("test", "train", "val", "trainval")
_TWO = ("test", "train")

SETS: dict[str, Named] = {
    "imagenet1k": Named("1000 synset folders, ILSVRC2012_img_val.tar or its pictures with ground truth beside them", _imagenet_flat,
                        folders=("val", "ILSVRC/Data/CLS-LOC/val"), imagenet=True),
    "imagenetv2": Named("folders 0 … 999", folders=("imagenetv2-*-format-val",), imagenet=True),
    "imagenet_sketch": Named("1000 synset folders", folders=("sketch", "imagenet-sketch"), imagenet=True),
    "imagenet-a": Named("200 synset folders", folders=("imagenet-a",), imagenet=True, classes=200),
    "imagenet-r": Named("200 synset folders", folders=("imagenet-r",), imagenet=True, classes=200),
    "cifar10": Named("cifar-10-batches-bin or cifar-10-batches-py", cifar("cifar-10", "labels", _TRAIN5, "test_batch"), _TWO),
    "cifar100": Named("cifar-100-binary or cifar-100-python", cifar("cifar-100", "fine_labels", ("train",), "test"), _TWO),
    "caltech101": Named("caltech101/101_ObjectCategories", _caltech101),
    "dtd": Named("dtd/images and dtd/labels", _dtd, _THREE),
    "fgvc_aircraft": Named("fgvc-aircraft-2013b/data", _fgvc_aircraft, _THREE),
    "flowers102": Named("flowers-102 with jpg, imagelabels.mat and setid.mat", _flowers102, _THREE),
    "food101": Named("food-101 with images and meta", _food101, _TWO),
    "gtsrb": Named("gtsrb with GTSRB/Final_Test/Images, GTSRB/Training and GT-final_test.csv", _gtsrb, _TWO),
    "oxford_pets": Named("oxford-iiit-pet with images and annotations", _oxford_pets, ("test", "train", "trainval")),
    "rendered_sst2": Named("rendered-sst2 with train, valid and test", _rendered_sst2, ("test", "train", "val")),
    "cars": Named("stanford_cars with cars_test, cars_test_annos_withlabels.mat, cars_train and devkit", _cars, _TWO),
    "stl10": Named("stl10_binary", stl10, _TWO),
    "svhn": Named("test_32x32.mat, train_32x32.mat", svhn, _TWO),
}  # fmt: skip

PUBLISHED: dict[str, dict[str, int]] = {
    "imagenet1k": {"test": 50_000},
    "imagenetv2": {"test": 10_000},
    "imagenet_sketch": {"test": 50_889},
    "imagenet-a": {"test": 7_500},
    "imagenet-r": {"test": 30_000},
    "cifar10": {"test": 10_000, "train": 50_000},
    "cifar100": {"test": 10_000, "train": 50_000},
    "caltech101": {"test": 8_677},
    "dtd": {"test": 1_880, "train": 1_880, "val": 1_880, "trainval": 3_760},
    "fgvc_aircraft": {"test": 3_333, "train": 3_334, "val": 3_333, "trainval": 6_667},
    "flowers102": {"test": 6_149, "train": 1_020, "val": 1_020, "trainval": 2_040},
    "food101": {"test": 25_250, "train": 75_750},
    "gtsrb": {"test": 12_630, "train": 26_640},
    "oxford_pets": {"test": 3_669, "train": 3_680, "trainval": 3_680},
    "rendered_sst2": {"test": 1_821, "train": 6_920, "val": 872},
    "cars": {"test": 8_041, "train": 8_144},
    "stl10": {"test": 8_000, "train": 5_000},
    "svhn": {"test": 26_032, "train": 73_257},
}
"""Pictures in each split, as the sets' authors and torchvision's readers count them."""

_ALIASES = {
    "imagenet": "imagenet1k", "imagenetval": "imagenet1k", "flowers": "flowers102", "aircraft": "fgvcaircraft",
    "pets": "oxfordpets", "oxfordiiitpet": "oxfordpets", "sst2": "renderedsst2", "stanfordcars": "cars", "caltech": "caltech101",
}  # fmt: skip
