"""Local and remote files: paths, `file://`, and any URI that fsspec or pyarrow knows, through one small interface."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import os
import re
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from datasets.errors import InputError, first_line
from datasets.text import whole_characters

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""Extensions of pictures, in any case: those of torchvision's `ImageFolder`, JFIF and GIF."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_BRACE = re.compile(r"\{([^{}]*)\}")
_NO_TEXT = re.compile(r"[\udc80-\udcff]|\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(r"\\x(5c|[89a-f][0-9a-f])")


def is_remote(url: str) -> bool:
    """Whether `url` is a URI (`file://` ones become paths in `expand`)."""
    return bool(_SCHEME.match(url))


def local_path(url: str) -> str:
    """`/x` for `file:///x`; everything else unchanged."""
    return url[7:] if url.startswith("file://") else url


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URI, and the URI. For S3, GCS and HDFS it is pyarrow's if fsspec lacks the package."""
    scheme, _, rest = url.partition("://")
    return _filesystem(scheme, rest.split("/", 1)[0]), url


@functools.lru_cache(maxsize=16)
def _filesystem(scheme: str, host: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if scheme in ("s3", "s3a") and endpoint:  # pyarrow does not read these by itself
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            return ArrowFSWrapper(pyarrow.fs.S3FileSystem(endpoint_override=endpoint, region=region))
        try:
            return ArrowFSWrapper(pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}")[0])
        except pyarrow.ArrowInvalid:  # nor does pyarrow know the scheme
            raise InputError(f"{scheme}:// cannot be read here: {error}.") from None
        except OSError as own:
            raise InputError(f"{scheme}://{host} cannot be read: {first_line(own).rstrip('.')}.") from None


def name_text(name: str) -> str:
    """A local file's name as text that can be stored and sent; bytes that are not UTF-8 become `\\x82`. `name_of` reverses it."""
    return _NO_TEXT.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)


def name_of(text: str) -> str:
    """The inverse of `name_text`: the file's name as the operating system's functions take it."""
    return _ESCAPE.sub(lambda found: os.fsdecode(bytes.fromhex(found[1])), text)


class Reader:
    """A file opened for reading ranges; local ones through `pread`. Close it, or use it in a `with`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fd, self._file = -1, None
        self._near = (0, b"")
        try:
            if is_remote(url):
                system, path = filesystem(url)
                self._file = system.open(path, "rb", block_size=4 << 20, cache_type="readahead")
                self.size = int(system.size(path))
            else:
                self._fd = os.open(url, os.O_RDONLY | os.O_CLOEXEC)
                self.size = os.fstat(self._fd).st_size
        except FileNotFoundError:
            raise InputError(f"{url} does not exist.") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise InputError(f"{url} cannot be read: {getattr(error, 'strerror', None) or error}.") from None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer than `length` at the end of the file."""
        try:
            if self._file is not None:
                self._file.seek(offset)
                return self._file.read(length)
            data = os.pread(self._fd, length, offset)
            while len(data) < length and (more := os.pread(self._fd, length - len(data), offset + len(data))):
                data += more  # network file systems may answer in parts
            return data
        except OSError as error:
            raise InputError(f"{self.url} cannot be read at byte {offset}: {error.strerror or error}.") from error

    def window(self, offset: int, length: int) -> bytes:
        """The same as `read`, and kept until the next call, for `read_near`. For a reader that one thread has for itself."""
        data = self.read(offset, length)
        self._near = (offset, data)
        return data

    def read_near(self, offset: int, length: int) -> bytes:
        """The same as `read`, without a call of the system if the last `window` holds the bytes."""
        start, near = self._near
        if start <= offset and offset + length <= start + len(near):
            return near[offset - start : offset - start + length]
        return self.read(offset, length)

    def readinto(self, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset`; returns how many bytes were read."""
        if self._file is None:
            try:
                return os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise InputError(f"{self.url} cannot be read at byte {offset}: {error.strerror or error}.") from error
        data = self.read(offset, len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file; closing it twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._file is not None:
            self._file.close()
        self._fd, self._file = -1, None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a local file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a local file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def crc32(path: str | os.PathLike[str]) -> str:
    """A checksum of a local file's bytes, several times as fast as a hash: for files that are written often and that it need not
    identify."""
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def known_sha256(path: str | os.PathLike[str]) -> str:
    """`sha256`, computed once per process while the file's size, time and inode stay the same; about 1 GB/s."""
    info = os.stat(path)
    mark = (os.path.abspath(path), info.st_size, info.st_mtime_ns, info.st_ino)
    if mark in _HASHES:
        return _HASHES[mark]
    digest = sha256(path)
    if time.time_ns() - info.st_mtime_ns > 1_000_000_000:  # a file changed just now may change again with the same time
        _HASHES[mark] = digest
    return digest


_HASHES: dict[tuple[str, int, int, int], str] = {}


def is_at(file: IO[Any], path: Path) -> bool:
    """Whether the open file is the one at this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_whole(path: Path, content: bytes) -> Path:
    """Write to another file, sync, rename: `path` is complete or unchanged, and a failure leaves no incomplete file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content)
        sync(aside)
        return aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def size_of(url: str) -> int:
    """Size of a file in bytes; -1 if it does not exist, or no file can have the name."""
    try:
        if is_remote(url):
            system, path = filesystem(url)
            return int(system.size(path))
        return os.path.getsize(url)
    except InputError:
        raise  # an unknown scheme
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL, or half a surrogate pair, in the path
        return -1
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return -1
        raise InputError(f"{url} cannot be read: {error.strerror or error}.") from None


def changed_at(url: str) -> int:
    """When a local file was last changed, in nanoseconds; -1 for a remote or missing file."""
    try:
        return -1 if is_remote(url) else os.stat(url).st_mtime_ns
    except OSError:
        return -1


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` of a URI, as one ranged request."""
    system, path = filesystem(url)
    return system.cat_file(path, start=offset, end=offset + length)


def braces(pattern: str) -> list[str]:
    """`x-{000..002}.tar` and `{a,b}` expanded as a shell does; numbers are padded with zeros to the wider end."""
    brace = _BRACE.search(pattern)
    if brace is None:
        return [pattern]
    inner = brace.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = numbers.groups()
        width = max(len(first), len(last)) if first[0] == "0" or last[0] == "0" else 0
        step = 1 if int(first) <= int(last) else -1
        parts = [f"{i:0{width}d}" for i in range(int(first), int(last) + step, step)]
    elif "," in inner:
        parts = inner.split(",")
    else:
        raise InputError(f"urls: {pattern!r} holds {{{inner}}}; accepted are {{0000..0575}} and {{a,b}}.")
    head, tail = pattern[: brace.start()], pattern[brace.end() :]
    return [head + part + rest for part in parts for rest in braces(tail)]


def expand(pattern: str, extensions: tuple[tuple[str, ...], ...]) -> list[str]:
    """Existing files for a path, folder, glob or brace range, absolute, sorted (brace ranges in their own order).

    A folder means its files with the first of `extensions` that any of them has. In a local pattern the leading folders that exist are
    taken literally, even with `[`, `{` or `?` in their names; the rest is the pattern. Raises InputError for a name without a file, and for
    a store that does not answer.
    """
    try:
        return _expand(local_path(pattern), extensions)
    except OSError as error:
        raise InputError(f"urls: {pattern} cannot be read: {first_line(error).rstrip('.')}.") from error


def _expand(pattern: str, extensions: tuple[tuple[str, ...], ...]) -> list[str]:
    if not pattern:
        raise InputError("urls: an empty string names no file.")
    if is_remote(pattern):
        system, _ = filesystem(pattern)
        named, exists, is_folder = system.unstrip_protocol, system.exists, system.isdir
        find, listing = system.glob, lambda folder: system.ls(folder, detail=False)
    else:
        pattern = os.path.abspath(os.path.expanduser(pattern))
        named, exists, is_folder = str, os.path.exists, os.path.isdir
        find = functools.partial(glob.glob, recursive=True)
        listing = lambda folder: [os.path.join(folder, name) for name in os.listdir(folder)]
    head = "" if is_remote(pattern) else _literal(pattern)
    names = [pattern] if exists(pattern) else [head + name for name in braces(pattern[len(head) :])]
    result: list[str] = []
    with ThreadPoolExecutor(16 if is_remote(pattern) else 1) as pool:
        present = pool.map(exists, names)
        for name, there in zip(names, present):
            if there and is_folder(name):
                files = sorted(named(f) for f in listing(name))
                kinds = ([f for f in files if f.lower().endswith(kind)] for kind in extensions)
                matched = next((kind for kind in kinds if kind), [])
                if not matched:
                    accepted = ", ".join(ext for kind in extensions for ext in kind)
                    pictures = f" `cleansweep ingest {name} FOLDER` packs a folder of pictures into shards." if files else ""
                    raise InputError(f"urls: the folder {name} holds no shards ({accepted}).{pictures}")
            elif there:
                matched = [name]
            elif any(c in name[len(head) :] for c in "*?["):
                matched = sorted(named(f) for f in find(glob.escape(head) + name[len(head) :]))
                if not matched:
                    raise InputError(f"urls: nothing matches {name}.")
            else:
                of = f" (one of the {len(names)} that {pattern} names)" if len(names) > 1 else ""
                raise InputError(f"urls: {name} does not exist{of}.")
            result += matched
    for name in result:
        if name != whole_characters(name):
            raise InputError(f"urls: {os.fsencode(name)!r} has a name that is not UTF-8; rename it.")
    return result


def _literal(pattern: str) -> str:
    """The longest beginning of a local path, up to a slash, that names an existing folder literally."""
    at = end = 0
    while (at := pattern.find("/", at) + 1) and os.path.isdir(pattern[:at]):
        end = at
    return pattern[:end]
