"""Writes tar shards: reproducible byte for byte, and complete or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from datasets.errors import InputError
from datasets.index.tar import END, header, padding
from datasets.storage import Reader

COPY_BYTES = 1 << 20


def write_tar(path: str | Path, samples: Iterable[tuple[str, Mapping[str, bytes | str]]]) -> dict:
    """Write samples (key, {extension: data}) as a shard whose bytes depend on them alone: time 0, owner 0, mode 0644.

    Members stand in the order of the mapping; text is written as UTF-8. The file is written aside, synced and renamed. Returns {n, bytes,
    sha256}.
    """
    count = 0
    with written_aside(Path(path)) as out:
        for key, members in samples:
            count += 1
            for extension, content in members.items():
                data = content.encode() if isinstance(content, str) else content
                out.write(header(f"{key}.{extension}", len(data)), data, padding(len(data)))
        out.write(END)
    return {"n": count, "bytes": out.size, "sha256": out.digest.hexdigest()}


class Output:
    """A file being written, its length and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()
        self._buffer = memoryview(bytearray(COPY_BYTES))

    def write(self, *parts: bytes | memoryview) -> None:
        for part in parts:
            self.file.write(part)
            self.digest.update(part)
            self.size += len(part)

    def copy(self, reader: Reader, start: int, end: int) -> None:
        """Copy bytes [start, end) of the reader; raises InputError if it ends earlier."""
        while start < end:
            got = reader.readinto(start, self._buffer[: min(end - start, COPY_BYTES)])
            if not got:
                raise InputError(f"{reader.url} ended at byte {start} while it was read.")
            self.write(self._buffer[:got])
            start += got


@contextmanager
def written_aside(path: Path) -> Iterator[Output]:
    """An output that becomes `path` once it is complete and synced. The temporary name is fixed, so a killed run leaves at most one such
    file, which the next one overwrites. Raises InputError if it cannot be written."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            yield (out := Output(file))
            file.flush()
            os.fsync(out.file.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
