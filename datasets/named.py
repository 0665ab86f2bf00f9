"""Evaluation sets by name: which files each has on disk, as its authors or torchvision's downloads leave them.

Nothing is downloaded. The readers are our own: pictures that are files are read in place; the arrays of CIFAR, STL-10 and SVHN
are given as arrays. CIFAR's Python version is a pickle, read by an unpickler that can make numpy arrays and nothing else.
"""

from __future__ import annotations

import csv
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import InputError
from datasets.prompts import CALTECH101, NAMES
from datasets.storage import Reader
from datasets.tar import walk


@dataclass(frozen=True)
class Files:
    """Pictures that are files in a folder, or members of one tar."""

    names: tuple[str, ...]
    """Of the classes; empty: those of the set's list."""
    folder: str
    """Folder or tar."""
    files: list[str]
    """Paths below the folder; members."""
    labels: list[int]
    spans: list[tuple[int, int]] | None = None
    """In a tar: byte and length of each."""


@dataclass(frozen=True)
class Arrays:
    """Pictures in files of arrays."""

    files: list[Path]
    """All that determines the pictures."""
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    """(uint8 [N, H, W, 3], labels [N])"""


@dataclass(frozen=True)
class Named:
    """What is known of a set before it is opened."""

    where: str
    """What is looked for below the given path, for messages."""
    find: Callable[[Path, str], Files | Arrays | None] = lambda root, split: None
    """The official files below a root, for a split; None where they are not there."""
    splits: tuple[str, ...] = ("test",)
    folders: tuple[str, ...] = ()
    """Folder of class folders, where it lies below the given path."""
    imagenet: bool = False
    """Whether its classes are ImageNet's."""
    classes: int | None = None
    """Of ImageNet's classes, so many; the others are no candidates."""


def canonical_name(name: str) -> str:
    """The name as in `SETS`, in whatever spelling it comes; "" for one that is not there."""
    plain = re.sub(r"[^0-9a-z]", "", name.lower())
    found = {re.sub(r"[^0-9a-z]", "", known): known for known in SETS}
    return found.get(_ALIASES.get(plain, plain), "")


def words(folder: str) -> str:
    """A folder's name as words."""
    return re.sub(r"\s+", " ", folder.replace("_", " ")).strip()


# ---- arrays -------------------------------------------------------------------------------------------------------------


def _cifar(kind: str, label_key: str, train: tuple[str, ...], test: str) -> Callable[[Path, str], Arrays | None]:
    def find(root: Path, split: str) -> Arrays | None:
        names = (test,) if split == "test" else train
        binary = _folder(root, *((f"{kind}-batches-bin",) if kind == "cifar-10" else (f"{kind}-binary",)), having=f"{names[0]}.bin")
        if binary is not None:  # preferred: no pickle
            files = [binary / f"{name}.bin" for name in names]
            return Arrays(files, lambda: _joined(_cifar_binary(file, 1 if kind == "cifar-10" else 2) for file in files))
        python = _folder(root, f"{kind}-batches-py" if kind == "cifar-10" else f"{kind}-python", having=names[0])
        if python is None:
            return None
        files = [python / name for name in names]
        return Arrays(files, lambda: _joined(_cifar_pickle(file, label_key) for file in files))

    return find


def _cifar_binary(file: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of the labels (the last is the fine one) and 3072 bytes: channel, row, column."""
    data = np.fromfile(_exists(file), np.uint8)
    if data.size == 0 or data.size % (label_bytes + 3072):
        raise InputError(f"{file} has {data.size} bytes, no multiple of {label_bytes + 3072}: it is cut short or no CIFAR file.")
    records = data.reshape(-1, label_bytes + 3072)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, label_bytes - 1]


class _ArraysOnly(pickle.Unpickler):
    """Of all that a pickle may call, what numpy's arrays are made with."""

    def find_class(self, module: str, name: str) -> Any:
        import _codecs

        from numpy._core import multiarray  # type: ignore[attr-defined]

        allowed = {
            ("multiarray", "_reconstruct"): multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _codecs.encode,
        }
        found = allowed.get((module.removeprefix("numpy.core.").removeprefix("numpy._core."), name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


def _cifar_pickle(file: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(_exists(file), "rb") as handle:
            entry = _ArraysOnly(handle, encoding="latin1").load()
        data, labels = entry["data"], np.asarray(entry[label_key], np.int64)
        return np.asarray(data, np.uint8).reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1), labels
    # a damaged pickle raises nearly anything
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no CIFAR batch of arrays and labels, so it is not read: {error}.") from None


def _stl10(root: Path, split: str) -> Arrays | None:
    folder = _folder(root, "stl10_binary", having=f"{split}_X.bin")
    if folder is None:
        return None
    pictures, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"

    def read() -> tuple[np.ndarray, np.ndarray]:
        data = np.fromfile(pictures, np.uint8)
        if data.size % (3 * 96 * 96):
            raise InputError(f"{pictures} has {data.size} bytes, no multiple of {3 * 96 * 96}: it is cut short.")
        # channel, column, row; labels count from 1
        return data.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), np.fromfile(_exists(labels), np.uint8).astype(np.int64) - 1

    return Arrays([pictures, labels], read)


def _svhn(root: Path, split: str) -> Arrays | None:
    folder = _folder(root, "svhn", having=f"{split}_32x32.mat")
    if folder is None:
        return None
    file = folder / f"{split}_32x32.mat"

    def read() -> tuple[np.ndarray, np.ndarray]:
        content = _mat(file, "X", "y")
        return content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1).astype(np.int64) % 10  # 10 stands for the digit 0

    return Arrays([file], read)


def _joined(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = zip(*parts)
    return np.concatenate(pictures), np.concatenate(labels)


# ---- files --------------------------------------------------------------------------------------------------------------


def _caltech101(root: Path, split: str) -> Files | None:
    folder = _folder(root, "caltech101/101_ObjectCategories", "101_ObjectCategories", having="accordion")
    if folder is None:
        return None
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name != "BACKGROUND_Google")
    found = [(f"{name}/{file}", i) for i, name in enumerate(classes) for file in sorted(os.listdir(folder / name)) if file[0] != "."]
    return Files(tuple(CALTECH101.get(name, words(name)) for name in classes), str(folder), *_columns(found))


def _dtd(root: Path, split: str) -> Files | None:
    folder = _folder(root, "dtd/dtd", "dtd", having="labels")
    if folder is None:
        return None
    listed = [line for part in _parts(split) for line in _read_lines(folder / "labels" / f"{part}1.txt")]  # the first of ten splits
    classes = sorted({line.split("/")[0] for line in listed})
    return Files(
        tuple(words(name) for name in classes), str(folder / "images"), listed, [classes.index(line.split("/")[0]) for line in listed]
    )


def _fgvc_aircraft(root: Path, split: str) -> Files | None:
    data = _folder(root, "fgvc-aircraft-2013b/data", "data", having="variants.txt")
    if data is None:
        return None
    names = tuple(_read_lines(data / "variants.txt"))
    file = data / f"images_variant_{split}.txt"
    found = []
    for line in _read_lines(file):
        picture, _, name = line.partition(" ")
        if name.strip() not in names:
            raise InputError(f"{file}: {line!r} names no class of variants.txt.")
        found.append((f"{picture}.jpg", names.index(name.strip())))
    return Files(names, str(data / "images"), *_columns(found))


def _flowers102(root: Path, split: str) -> Files | None:
    folder = _folder(root, "flowers-102", having="setid.mat")
    if folder is None:
        return None
    keys = [{"train": "trnid", "val": "valid", "test": "tstid"}[part] for part in _parts(split)]
    ids = np.concatenate([_mat(folder / "setid.mat", key)[key].reshape(-1) for key in keys]).astype(int)
    label = _mat(folder / "imagelabels.mat", "labels")["labels"].reshape(-1).astype(int)
    if ids.min() < 1 or ids.max() > len(label):
        raise InputError(f"{folder}: setid.mat names picture {ids.max()}, imagelabels.mat has {len(label)} labels.")
    return Files((), str(folder / "jpg"), [f"image_{i:05d}.jpg" for i in ids], [int(label[i - 1]) - 1 for i in ids])


def _food101(root: Path, split: str) -> Files | None:
    folder = _folder(root, "food-101", having="meta")
    if folder is None:
        return None
    classes = sorted(_read_lines(folder / "meta" / "classes.txt"))
    listed = _read_lines(folder / "meta" / f"{split}.txt")
    strange = next((line for line in listed if line.split("/")[0] not in classes), None)
    if strange is not None:
        raise InputError(f"{folder}/meta/{split}.txt: {strange!r} names no class of classes.txt.")
    labels = [classes.index(line.split("/")[0]) for line in listed]
    return Files(tuple(map(words, classes)), str(folder / "images"), [f"{line}.jpg" for line in listed], labels)


def _gtsrb(root: Path, split: str) -> Files | None:
    folder = _folder(root, "gtsrb", having="GTSRB")
    if folder is None:
        return None
    if split == "train":
        pictures = folder / "GTSRB" / "Training"
        if not pictures.is_dir():
            raise InputError(f"{pictures} does not exist; it holds a folder of pictures for each of the 43 signs.")
        classes = sorted(entry.name for entry in os.scandir(pictures) if entry.is_dir())
        found = [(f"{name}/{f}", int(name)) for name in classes for f in sorted(os.listdir(pictures / name)) if f.endswith(".ppm")]
    else:
        pictures, table = folder / "GTSRB" / "Final_Test" / "Images", folder / "GT-final_test.csv"
        try:
            with open(_exists(table), newline="") as file:
                found = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(file, delimiter=";", skipinitialspace=True)]
        except (KeyError, ValueError):
            raise InputError(f"{table} has no columns Filename and ClassId (a number), split at ';'.") from None
    return Files((), str(pictures), *_columns(found))


def _oxford_pets(root: Path, split: str) -> Files | None:
    folder = _folder(root, "oxford-iiit-pet", having="annotations")
    if folder is None:
        return None
    file = folder / "annotations" / f"{'test' if split == 'test' else 'trainval'}.txt"
    rows = [line.split() for line in _read_lines(file) if not line.startswith("#")]
    try:
        found = [(f"{row[0]}.jpg", int(row[1]) - 1) for row in rows]
    except (IndexError, ValueError):
        raise InputError(f"{file}: a line is a picture's name, its class from 1, and two more numbers.") from None
    name_of = {label: words(name.rpartition("_")[0]) for name, label in found}
    if sorted(name_of) != list(range(len(name_of))):
        raise InputError(f"{file}: classes {', '.join(str(n + 1) for n in sorted(name_of))} are not 1, 2, 3 … without a gap.")
    return Files(tuple(name_of[i] for i in range(len(name_of))), str(folder / "images"), *_columns(found))


def _rendered_sst2(root: Path, split: str) -> Files | None:
    folder = _folder(root, "rendered-sst2", having="valid" if split == "val" else split)
    if folder is None:
        return None
    pictures = folder / ("valid" if split == "val" else split)
    found = [
        (f"{name}/{file}", i) for i, name in enumerate(NAMES["rendered_sst2"]) for file in _listed(pictures / name) if file.endswith(".png")
    ]
    return Files((), str(pictures), *_columns(found))


def _cars(root: Path, split: str) -> Files | None:
    folder = _folder(root, "stanford_cars", having="devkit")
    if folder is None:
        return None
    notes = folder / ("cars_test_annos_withlabels.mat" if split == "test" else "devkit/cars_train_annos.mat")
    rows = np.atleast_1d(_mat(notes, "annotations")["annotations"])
    if rows.dtype.names is None or not {"class", "fname"} <= set(rows.dtype.names):
        raise InputError(f"{notes}: its annotations have no class; the file of test pictures with labels is wanted.")
    names = _mat(folder / "devkit" / "cars_meta.mat", "class_names")["class_names"]
    return Files(
        tuple(str(name).strip() for name in np.atleast_1d(names)),
        str(folder / f"cars_{split}"),
        [str(row["fname"]) for row in rows],
        [int(row["class"]) - 1 for row in rows],
    )


# ---- ImageNet's validation set as it is downloaded ----------------------------------------------------------------------


def _imagenet_flat(root: Path, split: str) -> Files | None:
    """ILSVRC2012_img_val.tar, or its pictures in one folder, with ground truth beside them."""
    places = [root, *(root / name for name in ("ILSVRC2012_img_val.tar", "val", "ILSVRC/Data/CLS-LOC/val"))]
    for place in places:
        if place.is_file() and place.suffix == ".tar":
            with Reader(str(place)) as reader:
                members = {m.name.rsplit("/", 1)[-1]: m for m in walk(reader) if m.name.lower().endswith((".jpeg", ".jpg"))}
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
    from datasets.classes import imagenet_synsets

    stems = [name.rsplit(".", 1)[0] for name in files]
    if truth.is_dir():  # the development kit counts synsets in an order of its own
        synsets = np.atleast_1d(_mat(truth / "data" / "meta.mat", "synsets")["synsets"])
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        numbers = _read_lines(truth / "data" / "ILSVRC2012_validation_ground_truth.txt")
        said = {f"ILSVRC2012_val_{i:08d}": synset_of.get(int(number), number) for i, number in enumerate(numbers, 1)}
    elif truth.name == "LOC_val_solution.csv":
        said = {stem: rest.split()[0] for stem, _, rest in (line.partition(",") for line in _read_lines(truth)[1:]) if rest.split()}
    elif truth.name == "val.txt":
        said = {row[0].rsplit("/", 1)[-1].rsplit(".", 1)[0]: row[-1] for row in (line.split() for line in _read_lines(truth))}
    else:
        said = {f"ILSVRC2012_val_{i:08d}": synset for i, synset in enumerate(_read_lines(truth), 1)}
    labels = []
    for stem in stems:
        text = said.get(stem)
        if text is None:
            raise InputError(f"{truth} says nothing about the picture {stem}.")
        label = imagenet_synsets().get(text, int(text) if text.isdecimal() and truth.name == "val.txt" else -1)
        if not 0 <= label < 1000:
            raise InputError(f"{truth}: {stem} is given {text!r}, none of ImageNet's 1000 classes.")
        labels.append(label)
    return labels


# ---- helpers ------------------------------------------------------------------------------------------------------------


def _folder(root: Path, *below: str, having: str) -> Path | None:
    """The first of root/below…, root itself, that has an entry of the name."""
    return next((place for place in (*(root / name for name in below), root) if (place / having).exists()), None)


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "val") if split == "trainval" else (split,)


def _columns(found: list[tuple[str, int]]) -> tuple[list[str], list[int]]:
    return [name for name, _ in found], [label for _, label in found]


def _exists(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{file} does not exist; it belongs to the set, and nothing is downloaded.")
    return file


def _listed(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; it belongs to the set, and nothing is downloaded.")
    return sorted(os.listdir(folder))


def _read_lines(file: Path) -> list[str]:
    return [line.strip() for line in _exists(file).read_text(encoding="utf-8").splitlines() if line.strip()]


def _mat(file: Path, *keys: str) -> dict[str, Any]:
    """Variables of a MATLAB file (version 5; numbers, text and structures)."""
    import scipy.io

    try:
        content = scipy.io.loadmat(str(_exists(file)), squeeze_me=keys != ("X", "y"), variable_names=list(keys))
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (scipy's reader raises nearly anything on a damaged file)
        raise InputError(f"{file} is no MATLAB file that can be read: {error}.") from None
    for key in keys:
        if key not in content:
            raise InputError(f"{file} holds no {key!r}.")
    return {key: np.asarray(content[key]) for key in keys}


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
    "cifar10": Named("cifar-10-batches-bin or cifar-10-batches-py", _cifar("cifar-10", "labels", _TRAIN5, "test_batch"), _TWO),
    "cifar100": Named("cifar-100-binary or cifar-100-python", _cifar("cifar-100", "fine_labels", ("train",), "test"), _TWO),
    "caltech101": Named("caltech101/101_ObjectCategories", _caltech101),
    "dtd": Named("dtd/images and dtd/labels", _dtd, _THREE),
    "fgvc_aircraft": Named("fgvc-aircraft-2013b/data", _fgvc_aircraft, _THREE),
    "flowers102": Named("flowers-102 with jpg, imagelabels.mat and setid.mat", _flowers102, _THREE),
    "food101": Named("food-101 with images and meta", _food101, _TWO),
    "gtsrb": Named("gtsrb with GTSRB/Final_Test/Images, GTSRB/Training and GT-final_test.csv", _gtsrb, _TWO),
    "oxford_pets": Named("oxford-iiit-pet with images and annotations", _oxford_pets, ("test", "train", "trainval")),
    "rendered_sst2": Named("rendered-sst2 with train, valid and test", _rendered_sst2, ("test", "train", "val")),
    "cars": Named("stanford_cars with cars_test, cars_test_annos_withlabels.mat, cars_train and devkit", _cars, _TWO),
    "stl10": Named("stl10_binary", _stl10, _TWO),
    "svhn": Named("test_32x32.mat, train_32x32.mat", _svhn, _TWO),
}  # fmt: skip

_ALIASES = {
    "imagenet": "imagenet1k", "imagenetval": "imagenet1k", "flowers": "flowers102", "aircraft": "fgvcaircraft",
    "pets": "oxfordpets", "oxfordiiitpet": "oxfordpets", "sst2": "renderedsst2", "stanfordcars": "cars", "caltech": "caltech101",
}  # fmt: skip
