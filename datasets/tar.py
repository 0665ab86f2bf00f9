"""Tar archives as bytes at offsets: a fast header walk, samples by key, and headers written reproducibly.

No path of an archive is ever followed or created, so a hostile name can do nothing: names are only text here.
Layout after POSIX.1-2017 `pax` (ustar and extended headers) and the GNU tar manual (long names, base-256 sizes).
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from datasets.errors import InputError
from datasets.storage import Reader

BLOCK = 512
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_WINDOW = 8192
_ZERO = bytes(BLOCK)
_LINKS_AND_FOLDERS = b"123456"


class Member(NamedTuple):
    """One regular file of an archive."""

    name: str
    """Its whole name."""
    header: int
    """Byte where its headers begin, extended ones included."""
    offset: int
    """Byte where its data begin; its last header is the 512 bytes before."""
    size: int
    """Bytes of data."""
    end: int
    """Byte after its padding."""
    own_size: bool
    """Whether the size stands in its last header (else in a pax record)."""


class Sample(NamedTuple):
    """The adjacent members that share a key."""

    key: str
    """Folder and base name up to the first dot."""
    members: dict[str, Member]
    """By extension, lower case, in the order of the archive."""

    def image(self) -> Member | None:
        """The picture: the first member with a picture's extension."""
        return next((member for ext, member in self.members.items() if ext in IMAGE_EXTENSIONS), None)


def walk(reader: Reader) -> Iterator[Member]:
    """The regular files of an archive in order, from their headers alone.

    Links, folders and devices are passed over. Raises `InputError` naming the archive and the byte for what is no tar,
    is cut short, is compressed, fails a checksum, or goes on after its end mark.
    """
    url, total = reader.url, reader.size
    if total == 0:
        raise InputError(f"{url} is empty (0 bytes); a tar archive is expected.")
    position = start = 0
    window, base = b"", 0
    long_name, records = "", dict[str, str]()
    while True:
        if position + BLOCK > total:
            raise InputError(f"{url} is cut short: it ends at byte {total} without the end mark of a tar archive.")
        at = position - base
        if at < 0 or at + BLOCK > len(window):
            window, base, at = reader.read(position, _WINDOW), position, 0
        block = window[at : at + BLOCK]
        if block == _ZERO:
            _check_tail(reader, position)
            return
        size = _size(reader, position, block)
        kind = block[156:157]
        offset = position + BLOCK
        end = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in b"xLKg":  # a header about the next member (g: about all that follow, of no use here)
            if offset + size > total:
                raise InputError(f"{url} is cut short: the header at byte {position} needs {size} bytes, the file ends.")
            data = reader.read(offset, size)
            if kind == b"L":
                long_name = data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
            elif kind == b"x":
                records = _pax(reader, position, data)
            position = end
            continue
        own_size = "size" not in records
        if not own_size:
            size = int(records["size"])
            end = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind == b"S":
            raise InputError(f"{url} holds a GNU sparse file at byte {position}; only plain files are read.")
        if kind in _LINKS_AND_FOLDERS:
            end = offset  # these carry no data, whatever their size field says
        else:
            if offset + size > total:
                raise InputError(
                    f"{url} is cut short: the member at byte {position} needs {size} bytes from byte {offset}, "
                    f"the file ends at byte {total}."
                )
            yield Member(records.get("path") or long_name or _name(block), start, offset, size, end, own_size)
        position = start = end
        long_name, records = "", {}


def samples(reader: Reader) -> Iterator[Sample]:
    """The archive's samples: runs of adjacent members with one key. Names without an extension are passed over.

    A member whose extension the run already has begins a new sample (two samples of one key, side by side).
    """
    key, members = "", dict[str, Member]()
    for member in walk(reader):
        name = member.name
        dot = name.find(".", name.rfind("/") + 1)
        if dot <= name.rfind("/") + 1:  # no dot, or a hidden file such as ".DS_Store" or "._x.jpg"
            continue
        extension = name[dot + 1 :].lower()
        if name[:dot] != key or extension in members:
            if members:
                yield Sample(key, members)
            key, members = name[:dot], {}
        members[extension] = member
    if members:
        yield Sample(key, members)


def header(name: str, size: int) -> bytes:
    """A reproducible header for a plain file: mode 0644, owner 0, time 0; ustar, with pax records for a long name."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def resized(block: bytes, size: int) -> bytes:
    """The 512-byte header `block` with another size and its checksum; all else as it was."""
    patched = bytearray(block)
    patched[124:136] = b"%011o\0" % size
    patched[148:156] = b" " * 8
    patched[148:156] = b"%06o\0 " % sum(patched)
    return bytes(patched)


def padding(size: int) -> bytes:
    """Zero bytes that bring `size` to whole blocks."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)
"""The end mark."""


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _size(reader: Reader, position: int, block: bytes) -> int:
    """Size field of a header whose checksum is right, else `InputError`."""
    try:
        # The checksum is the sum of all bytes, its own eight as spaces. Adler-32's low half is 1 + that sum modulo 65521,
        # at a twentieth of the price of summing in Python.
        own = block[148:156]
        checksum = int(own.strip(b" \0"), 8)
        if (zlib.adler32(block) & 0xFFFF) == (1 + checksum + sum(own) - 256) % 65521:
            if block[124] & 0x80:
                return int.from_bytes(block[125:136], "big")
            return int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        pass  # not octal: reported below
    if position == 0:
        compressed = block[:2] == b"\x1f\x8b" or block[:4] in (b"BZh9", b"\x28\xb5\x2f\xfd", b"\xfd7zX")
        why = "a compressed archive; decompress it" if compressed else "no tar archive: byte 0 begins no tar header"
        raise InputError(f"{reader.url} is {why}.")
    raise InputError(f"{reader.url} is damaged: no tar header at byte {position}.")


def _pax(reader: Reader, position: int, data: bytes) -> dict[str, str]:
    records, at = {}, 0
    try:
        while at < len(data) and data[at]:
            length = int(data[at : data.index(b" ", at)])
            name, value = data[data.index(b" ", at) + 1 : at + length - 1].split(b"=", 1)
            records[name.decode()] = value.decode("utf-8", "backslashreplace")
            if length <= 0:
                raise ValueError
            at += length
        if int(records.get("size", 0)) < 0:
            raise ValueError
    except ValueError:
        raise InputError(f"{reader.url} is damaged: the pax header at byte {position} cannot be read.") from None
    if any(name.startswith("GNU.sparse") for name in records):
        raise InputError(f"{reader.url} holds a GNU sparse file at byte {position}; only plain files are read.")
    return records


def _check_tail(reader: Reader, position: int) -> None:
    """After the end mark come zeros only: two archives joined with `cat` would otherwise lose the second silently."""
    for at in range(position, reader.size, 1 << 20):
        if reader.read(at, min(1 << 20, reader.size - at)).strip(b"\0"):
            raise InputError(
                f"{reader.url} goes on after its end mark at byte {position} (archives joined with cat?); "
                "one archive a file is read."
            )
