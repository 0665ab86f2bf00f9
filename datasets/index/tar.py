"""Tar archives as bytes at offsets: a fast walk over headers, samples by key, and reproducible headers.

No path of an archive is ever followed or created, so a hostile name can do nothing: names are only text here. Layout after POSIX.1-2017
`pax` (ustar and extended headers) and the GNU tar manual (long names, base-256 sizes).
"""

from __future__ import annotations

import functools
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from datasets.errors import InputError
from datasets.storage import Reader

BLOCK = 512
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "webp")
TEXT_EXTENSIONS = ("txt", "json", "cls")
NO_SAMPLES = frozenset(
    ("index", "idx", "md", "rst", "html", "log", "db", "ini", "yaml", "yml", "toml", "xml", "csv", "tsv", "parquet")
)
"""Extensions of files that lie beside samples: notes, lists, indices. A sample of nothing but such files is passed over."""
_WINDOW = 8192
_LONGEST_HEADER = 1 << 20
"""Largest long name or pax record in bytes; real ones have some hundred."""
_ZERO = bytes(BLOCK)
_FIELDS = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")
"""Of a header: name, size, checksum, kind, magic number, the name's folders."""
_FOLDER, _LINKS_AND_DEVICES = b"5", b"12346"


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
    """Whether its last header holds the size (else a pax record does)."""


class Sample(NamedTuple):
    """The adjacent members that belong together (see `samples`)."""

    key: str
    """Folder and base name, up to the first dot unless the name itself has dots."""
    members: dict[str, Member]
    """By extension, lower case, in the order of the archive."""

    def image(self) -> Member | None:
        """The picture: the first member with a picture's extension."""
        for extension, member in self.members.items():
            if extension in IMAGE_EXTENSIONS:
                return member
        return None


def walk(reader: Reader, passed_over: list[str] | None = None) -> Iterator[Member]:
    """The regular files of an archive in order, from their headers alone.

    Folders are passed over, and so are links and devices, whose names go to `passed_over`. Raises `InputError` naming the archive and the
    byte if it is no tar, is cut short, is compressed, fails a checksum, or goes on after its end mark.
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
            window, base, at = reader.window(position, _WINDOW), position, 0
        block = window[at : at + BLOCK]
        if block == _ZERO:
            _check_tail(reader, position)
            return
        name, size_field, checksum, kind, magic, folders = _FIELDS.unpack(block)
        size = _size(reader, position, block, size_field, checksum)
        offset = position + BLOCK
        end = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind in b"xXLKg":  # a header about the next member (g: about all that follow, not needed here)
            if offset + size > total:
                raise InputError(f"{url} is cut short: the header at byte {position} needs {size} bytes, the file ends.")
            if size > _LONGEST_HEADER:
                raise InputError(f"{url} is damaged: the header at byte {position} claims {size} bytes of names.")
            data = reader.read(offset, size)
            if kind == b"L":
                long_name = data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
            elif kind in b"xX":
                records = _pax(reader, position, data)
            position = end
            continue
        own_size = "size" not in records
        if not own_size:
            size = int(records["size"])
            end = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if kind == b"S":
            raise InputError(f"{url} holds a GNU sparse file at byte {position}; only plain files are read.")
        if kind in _FOLDER + _LINKS_AND_DEVICES:
            end = offset  # these carry no data, whatever their size field says
            if kind != _FOLDER and passed_over is not None:
                passed_over.append(records.get("path") or long_name or _name(name, magic, folders))
        else:
            if offset + size > total:
                raise InputError(
                    f"{url} is cut short: the member at byte {position} needs {size} bytes from byte {offset}, "
                    f"the file ends at byte {total}."
                )
            yield Member(records.get("path") or long_name or _name(name, magic, folders), start, offset, size, end, own_size)
        position = start = end
        if records or long_name:
            long_name, records = "", {}


def samples(reader: Reader, passed_over: list[str] | None = None) -> Iterator[Sample]:
    """The archive's samples: runs of adjacent members with the same key, which is the path up to the first dot of its base name.

    That is webdataset's convention. Two kinds of names need more care. They are recognised among the members with the same part before the
    first dot:

    * `22.05.jpg, 22.05.txt`: if they are split at the *last* dot, some part has both a picture and a text, so the keys contain dots;
    * `s0.input.jpg, s0.outputs.txt`: no part has both, but there is one picture and at most one text of each kind, so the extensions
      consist of two words, and the sample is `s0` with the members `jpg` and `txt`.

    All other names without a plain picture are split at the last dot, so that every file is in a sample and is either kept or counted. Next
    to a plain picture, members that make no sample of their own (`1.jpg, 1.txt, 1.seg.png`) stay with the picture's sample. A member whose
    extension the run already has begins a new sample (two samples of one key, side by side).

    Names that belong to no sample go to `passed_over`: hidden files, names without an extension, links, lone notes (`NO_SAMPLES`), and
    pictures beside the one of their sample (`1.png` after `1.jpg`, `1.seg.png`). Raises `InputError` as `walk` does, and if the files of
    dotted keys are not side by side.
    """
    key, members = "", dict[str, Member]()
    strays: list[str] = [] if passed_over is None else passed_over
    for member in walk(reader, strays):
        name = member.name
        base = name.rfind("/") + 1
        dot = name.find(".", base)
        if dot <= base:  # no dot, or a hidden file such as ".DS_Store" or "._x.jpg"
            strays.append(name)
            continue
        extension = name[dot + 1 :].lower()
        if name[:dot] != key or extension in members:
            yield from _samples_of(reader.url, key, members, strays)
            key, members = name[:dot], {}
        members[extension] = member
    yield from _samples_of(reader.url, key, members, strays)


def _samples_of(url: str, key: str, members: dict[str, Member], strays: list[str]) -> Iterable[Sample]:
    """The samples among members with the same part before the first dot."""
    if _is_plain(tuple(members)):
        return (Sample(key, members),)
    if not any("." in extension for extension in members):
        if members.keys() <= NO_SAMPLES:
            strays += [member.name for member in members.values()]
            return []
        return _noting([Sample(key, members)], members, strays)
    parts: dict[str, dict[str, Member]] = {}  # split at the last dot; the plain ones are under the key itself
    for member in members.values():
        name, _, last = member.name.rpartition(".")
        parts.setdefault(name, {})[last.lower()] = member
    plain = parts.get(key, {})
    whole = [name for name, part in parts.items() if _is(part, IMAGE_EXTENSIONS) and _is(part, TEXT_EXTENSIONS)]
    if _is(plain, IMAGE_EXTENSIONS):
        parts = {name: part for name, part in parts.items() if name in whole or name == key}
    elif not whole:
        of_kind = {kind: [p[kind] for p in parts.values() if kind in p] for kind in (*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS)}
        pictures = sum(len(of_kind[kind]) for kind in IMAGE_EXTENSIONS)
        if pictures <= 1 and all(len(members_of_kind) <= 1 for members_of_kind in of_kind.values()):
            named = {last: member for part in parts.values() for last, member in part.items()}
            if pictures and _is(named, TEXT_EXTENSIONS):
                parts = {key: named}
    kept = [(name, part) for name, part in parts.items() if not part.keys() <= NO_SAMPLES]
    strays += [m.name for _, part in parts.items() if part.keys() <= NO_SAMPLES for m in part.values()]
    kept.sort(key=lambda item: min(member.header for member in item[1].values()))
    for (first, before), (second, after) in zip(kept, kept[1:]):
        if max(member.end for member in before.values()) > min(member.header for member in after.values()):
            raise InputError(f"{url}: the files of {first!r} and {second!r} are mixed; write each sample's files together.")
    return _noting([Sample(name, part) for name, part in kept], members, strays)


@functools.lru_cache(maxsize=1024)
def _is_plain(extensions: tuple[str, ...]) -> bool:
    """Whether members of these extensions are one sample without anything to pass over, as nearly all are."""
    one_picture = sum(extension in IMAGE_EXTENSIONS for extension in extensions) == 1
    return one_picture and not any("." in extension for extension in extensions)


def _noting(found: list[Sample], members: dict[str, Member], strays: list[str]) -> list[Sample]:
    """The samples; the names of pictures that belong to none go to `strays`."""
    taken = [sample.image() for sample in found]
    strays += [m.name for m in members.values() if m not in taken and m.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS]
    return found


def _is(members: dict[str, Member], kinds: tuple[str, ...]) -> bool:
    return any(kind in members for kind in kinds)


def header(name: str, size: int) -> bytes:
    """A reproducible header for a plain file: mode 0644, owner 0, time 0; ustar, with pax records for a long name."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def resized(block: bytes, size: int) -> bytes:
    """The 512-byte header `block` with another size and its checksum; the rest is unchanged."""
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


def _name(name: bytes, magic: bytes, folders: bytes) -> str:
    name = name.split(b"\0", 1)[0]
    if folders[0] and magic == b"ustar\0":
        name = folders.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def _size(reader: Reader, position: int, block: bytes, size: bytes, checksum: bytes) -> int:
    """The size field of a header whose checksum is right; raises `InputError` if it is wrong."""
    try:
        # The checksum is the sum of all bytes, with its own eight as spaces (8 · 32). Adler-32's low half is 1 + the sum modulo 65521, and
        # costs a twentieth of summing in Python.
        rest = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(checksum) & 0xFFFF)
        if (rest + 256 - _octal(checksum)) % 65521 == 0:
            if size[0] == 0x80:  # base 256; any other high bit would be a negative number, or one beyond all files
                return int.from_bytes(size[1:], "big")
            return _octal(size)
    except ValueError:
        pass  # reported below
    if position == 0:
        compressed = block[:2] == b"\x1f\x8b" or block[:4] in (b"BZh9", b"\x28\xb5\x2f\xfd", b"\xfd7zX")
        why = "a compressed archive; decompress it" if compressed else "no tar archive: byte 0 begins no tar header"
        raise InputError(f"{reader.url} is {why}.")
    raise InputError(f"{reader.url} is damaged: no tar header at byte {position}.")


@functools.lru_cache(maxsize=1 << 14)
def _octal(field: bytes) -> int:
    """A number field. ValueError also for text that Python's `int` takes but a tar may not have: signs, underscores, inner spaces."""
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():
        raise ValueError
    return int(digits, 8)


def _pax(reader: Reader, position: int, data: bytes) -> dict[str, str]:
    records, at = {}, 0
    try:
        while at < len(data) and data[at]:
            length = _decimal(data[at : data.index(b" ", at)])
            name, value = data[data.index(b" ", at) + 1 : at + length - 1].split(b"=", 1)
            records[name.decode()] = value.decode("utf-8", "backslashreplace")
            if length <= 0:
                raise ValueError
            at += length
        _decimal(records.get("size", "0").encode())
    except ValueError:
        raise InputError(f"{reader.url} is damaged: the pax header at byte {position} cannot be read.") from None
    if any(name.startswith("GNU.sparse") for name in records):
        raise InputError(f"{reader.url} holds a GNU sparse file at byte {position}; only plain files are read.")
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit():
        raise ValueError
    return int(digits)


def _check_tail(reader: Reader, position: int) -> None:
    """Raise InputError if anything but zeros follows the end mark: of two archives joined with `cat` the second would be lost silently."""
    for at in range(position, reader.size, 1 << 20):
        if reader.read(at, min(1 << 20, reader.size - at)).strip(b"\0"):
            raise InputError(
                f"{reader.url} goes on after its end mark at byte {position} (archives joined with cat?); "
                "one archive a file is read."
            )
