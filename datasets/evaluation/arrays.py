"""Reads the arrays of CIFAR, STL-10 and SVHN from their authors' files.

CIFAR's Python version is a pickle; the unpickler here can create numpy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import InputError


@dataclass(frozen=True)
class Arrays:
    """Pictures in files of arrays."""

    files: list[Path]
    """The files that determine the pictures."""
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    """(uint8 [N, H, W, 3], labels [N])"""


def cifar(kind: str, label_key: str, train: tuple[str, ...], test: str) -> Callable[[Path, str], Arrays | None]:
    def find(root: Path, split: str) -> Arrays | None:
        names = (test,) if split == "test" else train
        binary = first_folder(root, *((f"{kind}-batches-bin",) if kind == "cifar-10" else (f"{kind}-binary",)), having=f"{names[0]}.bin")
        if binary is not None:  # preferred: no pickle
            files = [binary / f"{name}.bin" for name in names]
            return Arrays(files, lambda: _joined(_cifar_binary(file, 1 if kind == "cifar-10" else 2) for file in files))
        python = first_folder(root, f"{kind}-batches-py" if kind == "cifar-10" else f"{kind}-python", having=names[0])
        if python is None:
            return None
        files = [python / name for name in names]
        return Arrays(files, lambda: _joined(_cifar_pickle(file, label_key) for file in files))

    return find


def _cifar_binary(file: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels from records of the labels (the last is the fine one) and 3072 bytes: channel, row, column."""
    data = _bytes_of(file)
    if data.size == 0 or data.size % (label_bytes + 3072):
        raise InputError(f"{file} has {data.size} bytes, no multiple of {label_bytes + 3072}: it is cut short or no CIFAR file.")
    records = data.reshape(-1, label_bytes + 3072)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, label_bytes - 1]


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that allows only the callables that make numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        import _codecs

        from numpy._core import multiarray  # type: ignore[attr-defined]

        allowed = {
            ("multiarray", "_reconstruct"): multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _codecs.encode,
        }
        maker = allowed.get((module.removeprefix("numpy.core.").removeprefix("numpy._core."), name))
        if maker is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return maker


def _cifar_pickle(file: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open(existing(file), "rb") as handle:
            entry = _ArraysOnly(handle, encoding="latin1").load()
        data, labels = np.asarray(entry["data"]), np.asarray(entry[label_key])
        if data.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise ValueError(f"its pictures are {data.dtype} and its labels {labels.dtype}")
        return data.reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)
    # a damaged pickle raises almost any error
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError, MemoryError, OverflowError,
            RuntimeError, OSError) as error:  # fmt: skip
        raise InputError(f"{file} is no CIFAR batch of arrays and labels, so it is not read: {error}.") from None


def stl10(root: Path, split: str) -> Arrays | None:
    folder = first_folder(root, "stl10_binary", having=f"{split}_X.bin")
    if folder is None:
        return None
    pictures, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"

    def read() -> tuple[np.ndarray, np.ndarray]:
        data = _bytes_of(pictures)
        if data.size == 0 or data.size % (3 * 96 * 96):
            raise InputError(f"{pictures} has {data.size} bytes, no multiple of {3 * 96 * 96}: it is cut short.")
        # channel, column, row; labels count from 1
        return data.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), _bytes_of(labels).astype(np.int64) - 1

    return Arrays([pictures, labels], read)


def svhn(root: Path, split: str) -> Arrays | None:
    folder = first_folder(root, "svhn", having=f"{split}_32x32.mat")
    if folder is None:
        return None
    file = folder / f"{split}_32x32.mat"

    def read() -> tuple[np.ndarray, np.ndarray]:
        picture_HWCN, label_N = matlab(file, "X", "y").values()
        if picture_HWCN.ndim != 4 or picture_HWCN.shape[2] != 3 or picture_HWCN.dtype != np.uint8:
            raise InputError(f"{file}: X is {picture_HWCN.dtype} {picture_HWCN.shape}; bytes of [height, width, 3, pictures] are wanted.")
        label_N = whole_numbers(label_N, f"{file}: y")
        if label_N.size and not 1 <= label_N.min() <= label_N.max() <= 10:
            raise InputError(f"{file}: y holds {label_N.min()} … {label_N.max()}; its labels are 1 … 10.")
        return picture_HWCN.transpose(3, 0, 1, 2), label_N % 10  # 10 stands for the digit 0

    return Arrays([file], read)


def _joined(parts: Any) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = zip(*parts)
    return np.concatenate(pictures), np.concatenate(labels)


def first_folder(root: Path, *below: str, having: str) -> Path | None:
    """The first of root/below… and root itself that has an entry called `having`; None if there is none."""
    return next((place for place in (*(root / name for name in below), root) if (place / having).exists()), None)


def existing(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{file} does not exist; it belongs to the set, and nothing is downloaded.")
    return file


def matlab(file: Path, *keys: str) -> dict[str, Any]:
    """The named variables of a MATLAB file (version 5; numbers, text and structures). Raises InputError naming the file."""
    import scipy.io

    try:
        content = scipy.io.loadmat(str(existing(file)), squeeze_me=keys != ("X", "y"), variable_names=list(keys))
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (scipy's reader raises nearly anything on a damaged file)
        raise InputError(f"{file} is no MATLAB file that can be read: {error}.") from None
    for key in keys:
        if key not in content:
            raise InputError(f"{file} holds no {key!r}.")
    return {key: np.asarray(content[key]) for key in keys}


def whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """int64 [N] from a MATLAB variable, where numbers are mostly floats. Raises InputError for anything that is no whole number."""
    try:
        numbers = values.reshape(-1).astype(np.float64)
    except (ValueError, TypeError):
        raise InputError(f"{what} is no list of numbers.") from None
    if not (np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all() and (abs(numbers) < 1 << 53).all()):
        raise InputError(f"{what} holds what is no whole number.")
    return numbers.astype(np.int64)


def _bytes_of(file: Path) -> np.ndarray:
    try:
        return np.fromfile(existing(file), np.uint8)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.") from None
