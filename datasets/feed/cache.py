"""Decoded pictures, kept on this machine: a data set's canonical views in one memory-mapped file that all processes share.

A file's name follows from everything that determines its bytes. The file is complete or absent: it is written aside, under a lock that dies
with its process, then synced and renamed. A process that has it open holds a shared lock, so only unused files make room for others. The
locks are on the files themselves and last as long as the mapping; the filelock package has no shared lock of this kind.

The views are those before any trigger, so victims are stamped just as when they are read from shards. CRC-32 sums follow the views, and
each process checks a view against its sum when it first reads it.

Shape legend: N samples, S side of the view, 3 channels; pictures are uint8 RGB.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import inspect
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datasets.errors import InputError
from datasets.feed.decode import ahead, canonical_views
from datasets.images import resize, view
from datasets.index.addresses import file_of
from datasets.index.pairs import Pairs
from datasets.storage import changed_at, is_at, sync

BUDGET_BYTES = 64 << 30
"""Largest size of a cache folder. If a new file would exceed it, those that were used longest ago are removed."""
SPARE_BYTES = 1 << 30
"""Bytes that are left free on the disk."""
CHUNK = 64
"""Pictures decoded at once."""
LOOKED_UP = 4096
"""Records looked up at once."""
SUM = np.dtype("<u4")
"""Type of a view's checksum."""
AGAIN = "read from the shards in every epoch"
POLL_S = 0.1
"""Seconds between two checks whether another process is done."""


def cache_folder(setting: str) -> Path | None:
    """The folder that `setting` means (`auto`, `off` or a path), created if it is missing; None for `off`.

    `auto` is this user's own folder in the system's temporary one, closed to others. InputError if it belongs to somebody else or is open
    to others, and for a path that others, or a group, can write to, because they could put other pictures there. OSError if it cannot be
    created.
    """
    if setting == "off":
        return None
    if setting != "auto":
        folder = Path(setting)
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        info = folder.stat()
        if info.st_uid not in (os.getuid(), 0):
            raise InputError(f"--cache {folder} belongs to another user (id {info.st_uid}); give a folder of yours.")
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = f"{stat.S_IMODE(info.st_mode):04o}"
            raise InputError(f"--cache {folder} can be written by other users (mode {mode}); give a folder of yours, or `chmod go-w` it.")
        return folder
    folder = Path(tempfile.gettempdir()) / f"cleansweep-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise InputError(f"{folder} is not a folder of yours that is closed to others (mode 0700).")
    return folder


class Decoded:
    """A data set's canonical views, uint8 [N, S, S, 3], by position. Its file is not removed while this object lives. Pickles as its
    path."""

    def __init__(self, path: Path, count: int, size: int) -> None:
        """FileNotFoundError where there is no such file, ValueError where it has another size."""
        self.path, self.count, self.size = path, count, size
        self._views, self._sums = self._map()
        self._compared = np.zeros(count, dtype=bool)

    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        with open(self.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # the mapping duplicates the descriptor, and so keeps the lock
            shape = (self.count, self.size, self.size, 3)
            if os.fstat(file.fileno()).st_size != _bytes(self.count, self.size):
                raise ValueError(f"{self.path} is not of shape {shape}")
            with suppress(OSError):  # a file of another user, in a shared folder
                os.utime(file.fileno())
            views = np.memmap(file, np.uint8, "r", shape=shape)
            file.seek(views.nbytes)
            return views, np.fromfile(file, SUM, self.count)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3]: a copy of the views at `positions`. InputError if one differs from what was written."""
        view_BHWC = np.asarray(self._views[positions])
        for position, view_HWC in zip(positions, view_BHWC):
            if not self._compared[position]:
                if zlib.crc32(view_HWC) != self._sums[position]:
                    what = f"picture {position} is not as it was decoded"
                    raise InputError(f"{self.path} is damaged: {what}. Delete this file of the cache; it is made anew.")
                self._compared[position] = True
        return view_BHWC

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "count": self.count, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def decoded(
    pairs: Pairs, size: int, folder: Path, identity: str, *, threads: int = 1, say: Callable[[str], None] = print
) -> Decoded | None:
    """The views of `pairs`, kept in `folder`. The first process decodes them into it, and others wait for it.

    `identity` determines the samples and their order. It may know files by name and size alone; views are decoded again anyway if a file
    has changed since. Returns None, after telling the user, if the views cannot be kept: the disk is too full, or the folder cannot be
    written. InputError for a picture that cannot be decoded, as when it is read from the shards.
    """
    count = len(pairs)
    if not count:  # nothing to map
        return None
    digest = hashlib.sha256("|".join([identity, str(count), str(size), decoder(), _changes(pairs)]).encode()).hexdigest()
    path = folder / f"{digest[:24]}-{size}px.views"
    try:
        while True:
            with suppress(FileNotFoundError, ValueError):
                return Decoded(path, count, size)
            with _claim(path.with_suffix(".partial")) as file:
                if file is None:
                    time.sleep(POLL_S)
                elif _size(path) != (need := _bytes(count, size)):  # else another process wrote it meanwhile
                    if not _make_room(folder, need):
                        say(f"NOTE {folder} has no room for {need / 1e9:.1f} GB of decoded pictures: they are {AGAIN}.")
                        return None
                    _write(pairs, size, file, path, threads)
    except OSError as error:
        say(f"NOTE decoded pictures cannot be kept in {folder} ({error.strerror or error}): they are {AGAIN}.")
        return None


def _changes(pairs: Pairs) -> str:
    """A digest of when the files that hold the pictures were last changed."""
    digest, seen = hashlib.sha256(), set[str]()
    for start in range(0, len(pairs), LOOKED_UP):
        records = pairs.records(np.arange(start, min(start + LOOKED_UP, len(pairs))))
        for place in zip(*(records[name].to_pylist() for name in ("url", "offset", "member"))):
            file = file_of(*place)
            if file not in seen:
                seen.add(file)
                digest.update(b"%d " % changed_at(file))
    return digest.hexdigest()


def _write(pairs: Pairs, size: int, file: BinaryIO, path: Path, threads: int) -> None:
    """Decode all pictures into `file` and give it its name."""

    def views(start: int) -> np.ndarray:
        return canonical_views(pairs.records(np.arange(start, min(start + CHUNK, len(pairs)))), size)

    sums = []
    for view_BHWC in ahead(views, range(0, len(pairs), CHUNK), threads):
        file.write(view_BHWC.data)
        sums += [zlib.crc32(view_HWC) for view_HWC in view_BHWC]
    file.write(np.array(sums, dtype=SUM).tobytes())
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    sync(path.parent)


@contextmanager
def _claim(path: Path) -> Iterator[BinaryIO | None]:
    """The file, empty and locked by this process; None while another process has it, or if that process has renamed it meanwhile.
    Afterwards the file is removed unless it was renamed. OSError if the name is that of a link, or of anything but this user's own file,
    which would be overwritten."""
    with open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or info.st_uid != os.getuid():
            raise FileExistsError(errno.EEXIST, f"{path.name} is there and is not a file of yours", str(path))
        mine = False
        try:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = is_at(file, path)
            if mine:
                file.truncate(0)  # left by a killed process
            yield file if mine else None
        finally:
            if mine and is_at(file, path):
                path.unlink()


def _make_room(folder: Path, need: int) -> bool:
    """Remove what killed processes left, then unused files, the longest unused first, until `need` more bytes fit into the budget and onto
    the disk. Returns whether the disk has the room."""
    for partial in folder.glob("*.partial"):
        _remove_unused(partial)
    files = []
    for path in folder.glob("*.views"):
        with suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total + need <= BUDGET_BYTES and _free(folder) >= need:
            break
        if _remove_unused(path):
            total -= size
    return _free(folder) >= need


def _remove_unused(path: Path) -> bool:
    """Remove the file unless a process has it open. Returns whether it was removed."""
    with suppress(BlockingIOError, FileNotFoundError, PermissionError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(file, path):
            path.unlink()
            return True
    return False


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return -1


def _free(folder: Path) -> int:
    """Bytes that may be written into the folder; if it lies in memory, at most half of what is free."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize - SPARE_BYTES
    with suppress(OSError):
        device = os.stat(folder).st_dev
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if kind in ("tmpfs", "ramfs") and os.path.exists(mount) and os.stat(mount).st_dev == device:
                memory = dict(entry.split(":") for entry in Path("/proc/meminfo").read_text().splitlines())
                return min(free, int(memory["MemAvailable"].split()[0]) * 1024 // 2)
    return free


def _bytes(count: int, size: int) -> int:
    return count * (size * size * 3 + SUM.itemsize)


@cache
def decoder() -> str:
    """What determines a canonical view apart from the picture's bytes: the code and the libraries that decode and resize it."""
    code = "".join(inspect.getsource(part) for part in (canonical_views, view, resize))
    digest = hashlib.sha256(code.encode()).hexdigest()
    return " ".join([digest, *(metadata.version(name) for name in ("simplejpeg", "pillow", "torch", "numpy"))])
