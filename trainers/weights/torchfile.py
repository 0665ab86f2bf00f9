"""Reads files of torch.save and torch.jit.save as data only: nothing that a file names is imported, instantiated or called.

Such a file consists of a pickle, which is a program for a stack machine, and the bytes of storages. The machine here knows numbers, text,
lists, tuples, dictionaries and tensors. Any other object (a scheduler, an argparse.Namespace, a module of a TorchScript archive) becomes a
`Shell` with its class name and state. So a file can be read whatever else it holds, and nothing in it runs.

Formats: the zip archive of torch.save (since 1.6), the TorchScript archive, and the older plain file.
"""

from __future__ import annotations

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from datasets.errors import InputError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first value in a file that torch.save wrote before it used zip archives."""
DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError, TypeError,
          ValueError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""Exceptions that reading a damaged file may raise."""
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
}  # fmt: skip
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Named:
    """A class or function named in a file."""

    name: str


class Shell:
    """An object whose class is not known here: its class name, and its state if the file gives one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None


@dataclass(frozen=True)
class Storage:
    """Where the numbers of tensors lie: key in the file, type and count."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0
    """Index of the first number, if the storage is part of another"""


@dataclass(frozen=True)
class Stored:
    """A tensor whose numbers are not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class TorchFile:
    """An open file. `root` is the saved object; `scripted` is true for a TorchScript archive. InputError, naming the file, if it is
    damaged."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.scripted = False
        self._bytes: Callable[[Storage], bytes]
        self._flat: dict[tuple[str, torch.dtype], Tensor] = {}
        try:
            with open(path, "rb") as handle:
                zipped = handle.read(4) == b"PK\x03\x04"
            self.root = self._zip(stack.enter_context(zipfile.ZipFile(path))) if zipped else self._legacy()
        except InputError:
            raise
        except DAMAGE as error:
            self._damaged(error)

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor's values, on the CPU. InputError if the file does not hold all of them."""
        try:
            key = (stored.storage.key, stored.dtype)
            if key not in self._flat:
                self._flat[key] = torch.frombuffer(bytearray(self._bytes(stored.storage)) or bytearray(16), dtype=stored.dtype)
            if len(stored.size) != len(stored.stride) or min((*stored.size, *stored.stride, stored.offset, 0)) < 0:
                raise ValueError(f"a tensor of size {stored.size} and stride {stored.stride}")
            if math.prod(stored.size) > max(self._flat[key].numel(), 1 << 20):  # strides of 0 would repeat numbers to any size
                raise ValueError(f"a tensor of size {stored.size} over {self._flat[key].numel()} numbers")
            return self._flat[key].as_strided(stored.size, stored.stride, stored.offset + stored.storage.start)
        except DAMAGE as error:
            self._damaged(error)

    def _zip(self, archive: zipfile.ZipFile) -> Any:
        names, size = archive.namelist(), self.path.stat().st_size
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"checkpoint {self.path} cannot be read: it is a zip archive, but none of torch.save or TorchScript")
        folder = pickles[0].removesuffix("data.pkl")
        self.scripted = f"{folder}constants.pkl" in names

        if not any(part.CRC for part in archive.infolist()):  # written after torch.serialization.set_crc32_options(False)
            for part in archive.infolist():
                del part.CRC

        def record(name: str) -> bytes:
            part = archive.getinfo(name)
            if part.compress_type != zipfile.ZIP_STORED or max(part.file_size, part.compress_size) > size:  # it could unpack to any size
                raise ValueError(f"its part {name} is compressed, or larger than the file")
            return archive.read(name)  # compares the checksum, if there is one

        if f"{folder}byteorder" in names and record(f"{folder}byteorder") != b"little":
            self._big_endian()

        def numbers(storage: Storage) -> bytes:
            data = record(f"{folder}data/{storage.key}")
            if len(data) != storage.numel * storage.dtype.itemsize:
                raise ValueError(f"its storage {storage.key} has {len(data)} bytes")
            return data

        self._bytes = numbers
        return read_pickle(BytesIO(record(pickles[0])), {})

    def _legacy(self) -> Any:
        data = self.path.read_bytes()
        handle, storages = BytesIO(data), dict[str, Storage]()
        if data[:1] != b"\x80" or read_pickle(handle, {}) != LEGACY_MAGIC:
            raise InputError(f"checkpoint {self.path} cannot be read: it is neither a file of torch.save nor a .safetensors file")
        _, system = read_pickle(handle, {}), read_pickle(handle, {})
        if not system.get("little_endian", True):
            self._big_endian()
        root, keys = read_pickle(handle, storages), read_pickle(handle, {})
        places = {}
        for key in keys:
            count = int.from_bytes(handle.read(8), "little", signed=True)
            end = handle.tell() + count * storages[key].dtype.itemsize
            if not handle.tell() <= end <= len(data):
                raise ValueError("it ends early")
            places[key] = slice(handle.tell(), end)
            handle.seek(end)
        self._bytes = lambda storage: data[places[storage.key]]
        return root

    def _big_endian(self) -> NoReturn:
        raise InputError(f"checkpoint {self.path} cannot be read: it was written on a big-endian machine; save it on a usual one")

    def _damaged(self, error: BaseException) -> NoReturn:
        why = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
        raise InputError(f"checkpoint {self.path} cannot be read: the file is damaged or cut short ({why})") from error


def read_pickle(handle: BytesIO, storages: dict[str, Storage]) -> Any:
    """The value of the pickle that starts here; objects that are not plain values become `Named`, `Shell` or `Stored`.

    `storages` gets the tensors' storages by key. Raises one of `DAMAGE` if this is not a pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    value: Any
    for operation, value, _ in pickletools.genops(handle):
        code = operation.name
        if code in _VALUES:
            stack.append(value)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == "MARK":
            marks.append(len(stack))
        elif code in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code == "MEMOIZE" else value] = stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-_TUPLES[code] :])]
        elif code == "TUPLE":
            stack.append(tuple(since_mark()))
        elif code in ("EMPTY_LIST", "LIST"):
            stack.append(since_mark() if code == "LIST" else [])
        elif code in ("EMPTY_DICT", "DICT"):
            items = since_mark() if code == "DICT" else []
            stack.append({})
            _set(stack[-1], items)
        elif code in ("EMPTY_SET", "FROZENSET"):
            if code == "FROZENSET":
                since_mark()
            stack.append(Shell("builtins.set"))
        elif code in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if code == "APPEND" else since_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else since_mark()
            _set(stack[-1], items)
        elif code == "GLOBAL":
            stack.append(Named(value.replace(" ", ".")))
        elif code == "STACK_GLOBAL":
            stack[-2:] = [Named(".".join(stack[-2:]))]
        elif code in ("EXT1", "EXT2", "EXT4"):
            stack.append(Named(f"copyreg extension {value}"))
        elif code in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [_made(stack[-2], stack[-1])]
        elif code == "NEWOBJ_EX":
            stack[-3:] = [_made(stack[-3], stack[-2])]
        elif code == "OBJ":
            items = since_mark()
            stack.append(_made(items[0], tuple(items[1:])))
        elif code == "INST":
            stack.append(_made(Named(value.replace(" ", ".")), tuple(since_mark())))
        elif code == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Shell):
                stack[-1].state = state
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif code == "DUP":
            stack.append(stack[-1])
        elif code == "POP":
            stack.pop()
        elif code == "POP_MARK":
            since_mark()
        elif code == "STOP":
            return stack.pop()
        elif code not in ("PROTO", "FRAME"):
            raise ValueError(f"pickle's {code} is not read")
    raise EOFError


def _set(target: Any, items: list[Any]) -> None:
    """Put the entries with plain keys into a dictionary; for any other object do nothing."""
    if isinstance(target, dict):
        target.update((key, value) for key, value in zip(items[::2], items[1::2]) if isinstance(key, str | int | float))


def _made(what: Any, given: Any) -> Any:
    """The value that this call or instantiation would give, as far as it is needed here."""
    name = what.name if isinstance(what, Named) else type(what).__name__
    if name == "collections.OrderedDict":
        mapping: dict[Any, Any] = {}
        for key, value in given[0] if given else ():
            _set(mapping, [key, value])
        return mapping
    function = name.removeprefix("torch._utils.")
    if function in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3") and isinstance(given[0], Storage):
        storage, offset, size, stride = given[:4]
        dtype = getattr(torch, given[6].name.removeprefix("torch.")) if function.endswith("v3") else storage.dtype
        numbers = (offset, *size, *stride)
        if not isinstance(dtype, torch.dtype) or not all(type(number) is int for number in numbers):
            raise TypeError(f"a tensor of {dtype}, {numbers}")
        return Stored(storage, offset, tuple(size), tuple(stride), dtype)
    if function in ("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_device_tensor_from_cpu_tensor"):
        return given[0]
    if name == "torch._tensor._rebuild_from_type_v2":  # a tensor with its own attributes
        return _made(given[0], given[2])
    return Shell(name)


def _storage(given: Any, storages: dict[str, Storage]) -> Any:
    """The storage that a persistent id names. For another id (in old files a class with its source) the object that it names."""
    kind, what, *rest = given
    if kind != "storage":
        return what
    key, _, numel, *view = rest
    dtype = _STORAGES[what.name.rpartition(".")[2]]
    start = view[0][1] if view and view[0] is not None else 0
    if type(key) is not str or type(numel) is not int or type(start) is not int or start < 0:
        raise TypeError(f"a storage {key!r} of {numel!r} numbers")
    return replace(storages.setdefault(key, Storage(key, dtype, numel)), start=start)
