"""Pack pictures and captions into shards: `00000.tar` … with members jpg|png|webp, txt, json (and cls)."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.captions import NO_CAPTION, NOT_TEXT, Caption, as_caption, chosen
from datasets.errors import InputError, said
from datasets.images.view import DecodeError, decode
from datasets.index import parquet, tables
from datasets.index.addresses import file_place, read_file
from datasets.index.dropped import dropped_csv
from datasets.index.source import EXTENSIONS
from datasets.index.write import write_tar
from datasets.storage import PICTURES, is_remote, size_of

_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class _Pair:
    picture: str | bytes
    """Path or bytes; an empty path means that there is no picture."""
    name: str
    """The name of the picture in the source."""
    file: str
    """The file that holds it: the table's name, or the picture's own."""
    line: int | None
    caption: Caption
    label: int


class Packed(NamedTuple):
    """A picture in a shard."""

    data: bytes
    extension: str
    width: int
    height: int
    original_width: int
    original_height: int


_Usable = tuple[_Pair, bytes, str, int, int]
"""Pair, picture's bytes, extension, width, height."""


def ingest(
    source_path: str | Path,
    out: str | Path,
    *,
    shard_size: int = 1000,
    image_key: str = "auto",
    caption_key: str = "auto",
    label_key: str = "label",
    delimiter: str = "auto",
    captions: str = "txt",
    classes: str = "none",
    min_caption_length: int = 0,
    resize: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Pack a folder of pictures, or the pairs of a CSV, TSV or Parquet file, into shards in the new folder `out`.

    A folder gives all pictures in it and below, in the order of their paths; links are followed.

    * `captions`: `txt` (the file of the same name with that extension, in any case) or `folder` (the name of the picture's folder, `_` and
      `-` as spaces).
    * `classes`: `folder` numbers the top folders in order of name, writes `cls` members and `classnames.txt`, and refuses a folder without
      a usable picture; `none` writes no labels.

    A table is read as `Source` reads it, with the same keys: a CSV has a header line, paths are relative to the table, and a `label_key`
    column of numbers becomes `cls` members. If a Parquet column holds lists of captions, `captions` takes the `first`, a `random` one or
    `each`.

    With `resize`, pictures whose shorter side is longer than that many pixels are shrunk to it (bicubic) and packed as JPEG of quality 95.
    All others stay as they are: JPEG, PNG and WebP byte for byte, other formats as PNG. A key is the shard's number in 5 digits and the
    place in 4.

    Pairs that cannot be used, and captions without a picture, are counted by reason and listed in `dropped.csv`. So are the folder's other
    files, as `unknown_extension` or `hidden` (a hidden folder counts once); `passed_over` is their number. The shards depend on the input
    alone. Everything is written aside and renamed, so `out` is complete or absent. `progress(done, all)` is called along the way.

    Returns the content of `manifest.json`: {n, dropped {reason: count}, passed_over (other files of the folder), columns {image, caption},
    shards {name: {n, bytes, sha256}}, classes, with `classes` without_class (packed pictures beside the class folders), …}. Raises
    `InputError` for a source without pictures, or an `out` that exists and is not empty.
    """
    source_path, out = Path(source_path).absolute(), Path(out).absolute()
    choices = ("txt", "folder", *(choice for choice in tables.CHOICES if choice != "one"))
    for field, value, accepted in (("captions", captions, choices), ("classes", classes, ("none", "folder"))):
        if value not in accepted:
            raise InputError(f"ingest: {field} is {value!r}; accepted are {', '.join(accepted)}.")
    if not 1 <= shard_size <= 10_000:
        raise InputError(f"ingest: shard_size is {shard_size}; accepted are 1 … 10000.")
    if resize is not None and resize < 1:
        raise InputError(f"ingest: resize is {resize}; accepted is the shorter side in pixels, at least 1.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"ingest: {out} exists and is not empty; name a new folder.")
    names: list[str] = []
    others: dict[str, str] = {}
    notes: dict[str, object] = {}
    pairs: Iterable[_Pair]
    if source_path.is_dir():
        if captions not in ("txt", "folder"):
            raise InputError(f"ingest: captions is {captions!r}, but {source_path} is a folder; accepted are txt, folder.")
        if out.is_relative_to(source_path):
            raise InputError(f"ingest: {out} lies inside {source_path}, which is being packed; name a folder elsewhere.")
        pairs, names, others = _from_folder(source_path, captions, classes)
        notes["passed_over"], total = len(others), len(pairs)
    elif source_path.is_file():
        if captions == "folder" or classes != "none":
            raise InputError(f"ingest: captions and classes go by folders, but {source_path} is a table.")
        pairs, total = _from_table(source_path, tables.Keys(image_key, caption_key, label_key, ""), delimiter, captions, notes)
    else:
        raise InputError(f"ingest: {source_path} does not exist.")
    if not total:
        raise InputError(f"ingest: {source_path} holds no pictures ({', '.join(PICTURES)}).")

    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        dropped: Counter[str] = Counter()
        with dropped_csv(aside / "dropped.csv") as add:

            def leave_out(pair: _Pair, reason: str) -> None:
                dropped[reason] += 1
                add(_printable(pair.name), _printable(pair.file), pair.line, reason)

            labels: Counter[int] = Counter()
            usable = _noting(labels, _usable(pairs, total, min_caption_length, resize, leave_out, progress))
            shards = dict(_write_shards(usable, aside, shard_size))
            for other, reason in others.items():
                add(_printable(other), _printable(other), None, reason)
        if not shards:
            raise InputError(f"ingest: none of the {sum(dropped.values())} pairs of {source_path} can be used: {_reasons(dropped)}.")
        if without := [name for i, name in enumerate(names) if i not in labels]:
            raise _no_class(source_path, without[0], f": all its pairs are left out ({_reasons(dropped)} in the whole folder)")
        manifest = {
            "n": sum(shard["n"] for shard in shards.values()),
            "dropped": dict(sorted(dropped.items())),
            **notes,
            **({"without_class": labels[-1]} if classes == "folder" else {}),
            "shard_size": shard_size,
            "classes": names,
            "shards": shards,
        }
        if names:
            (aside / "classnames.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        with open(aside / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)  # the target may be an empty folder
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"ingest: {error.filename or out} cannot be read or written: {error.strerror}.") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return manifest


def _from_table(
    path: Path, keys: tables.Keys, delimiter: str, captions: str, notes: dict[str, object]
) -> tuple[Iterable[_Pair], int]:
    """The table's pairs and its number of rows; writes the columns that are read to `notes`."""
    if path.suffix.lower() in (".json", ".jsonl"):
        raise InputError(
            f"ingest: {path} is JSON; a CSV, TSV or Parquet file is read. Write one with the columns image and caption; of COCO's "
            "captions a line for each annotation: the file_name of the image that it names, and its caption."
        )
    if path.suffix.lower() in EXTENSIONS["webdataset"]:
        raise InputError(f"ingest: {path} is a shard already; name it in source.urls.")
    note = lambda keys: notes.update(columns={"image": keys.image, "caption": keys.caption})
    folder = str(path.parent)

    def pairs(rows: Iterable[tables.Row], choice: str) -> Iterator[_Pair]:
        for row in rows:
            if row.path and row.path.startswith(("http://", "https://")):
                raise InputError(f"ingest: {path}: {row.path} is a web address; `cleansweep fetch {path} FOLDER` downloads such a list.")
            name = row.path or row.key or f"{path.stem}-{row.line - 1:08d}"
            picture = row.data if row.data is not None else file_place(folder, row.path) if row.path else ""
            for caption in chosen(row.captions, choice, name):
                yield _Pair(picture, name, path.name, row.line, caption, row.label)

    if path.suffix.lower() in EXTENSIONS["parquet"]:
        choice = "one" if captions == "txt" else captions
        return pairs(parquet.parquet_rows(str(path), keys, choice, found=note), choice), parquet.open_parquet(str(path)).metadata.num_rows
    listed = list(pairs(tables.csv_rows(str(path), delimiter, keys, note), "one"))
    return listed, len(listed)


def _from_folder(folder: Path, captions: str, classes: str) -> tuple[list[_Pair], list[str], dict[str, str]]:
    """The folder's pictures with captions and labels, the names of the classes, and why each other file is passed over."""
    hidden: list[Path] = []
    files = sorted(_files(folder, hidden), key=lambda path: path.relative_to(folder).parts)
    paths = [path for path in files if path.name.lower().endswith(PICTURES)]
    without = {path.with_suffix("") for path in paths}
    texts = {path.with_suffix(""): path for path in files if captions == "txt" and path.suffix.lower() == ".txt"}
    alone = [path for stem, path in texts.items() if stem not in without]
    tops = sorted(_below(folder, [entry.name for entry in os.scandir(folder) if entry.is_dir()])) if classes == "folder" else []
    if bad := next((top for top in tops if top != _printable(top)), None):
        raise InputError(f"ingest: the folder {_printable(bad)!r} has a name that is not UTF-8, so it names no class; rename it.")
    filled = {path.relative_to(folder).parts[0] for path in paths if path.parent != folder}
    if empty := [top for top in tops if top not in filled] if filled else []:
        raise _no_class(folder, empty[0], f" ({', '.join(PICTURES)})")
    number = {top: i for i, top in enumerate(tops)}
    pairs, used = [], set[Path]()
    for path in paths:
        relative = path.relative_to(folder)
        caption = NO_CAPTION
        if captions == "folder":
            name = path.parent.name
            caption = NOT_TEXT if name != _printable(name) else Caption(" ".join(name.replace("_", " ").replace("-", " ").split()))
        elif (text := texts.get(path.with_suffix(""))) is not None and text.is_file():
            used.add(text)
            caption = as_caption(text.read_bytes())
        pairs.append(_Pair(str(path), relative.as_posix(), relative.as_posix(), None, caption, number.get(relative.parts[0], -1)))
    for path in alone:
        relative = path.relative_to(folder)
        pairs.append(_Pair("", relative.as_posix(), relative.as_posix(), None, NO_CAPTION, -1))
    known = {*paths, *used, *alone}
    others = {path.relative_to(folder).as_posix(): "unknown_extension" for path in files if path not in known}
    return pairs, tops, others | {path.relative_to(folder).as_posix(): "hidden" for path in sorted(hidden)}


def _files(folder: Path, hidden: list[Path]) -> Iterator[Path]:
    """The files in a folder and below. Hidden files and folders go to `hidden` instead, a folder as one entry. Links to folders are
    followed, but never in circles."""

    def fail(error: OSError) -> None:
        raise error

    for parent, below, files in os.walk(folder, onerror=fail, followlinks=True):
        hidden += [Path(parent, name) for name in (*below, *files) if name.startswith(".")]
        below[:] = _below(Path(parent), below)
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _below(parent: Path, names: Iterable[str]) -> list[str]:
    """The folders in `parent` that are neither hidden nor links to a folder above."""
    above = {os.path.realpath(place) for place in (parent, *parent.parents)}
    return [name for name in names if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in above]


def _no_class(folder: Path, name: str, why: str) -> InputError:
    return InputError(
        f"ingest: {folder}: the class folder {name!r} has no usable picture{why}; remove the folder or put its pictures there."
    )


def _printable(name: str) -> str:
    """A file's name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _usable(
    pairs: Iterable[_Pair],
    total: int,
    min_length: int,
    resize: int | None,
    leave_out: Callable[[_Pair, str], None],
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Usable]:
    """The pairs that can be used; the others go to `leave_out` with the reason."""
    for done, pair in enumerate(pairs, 1):
        if progress is not None:
            progress(min(done, total), total)
        reason = "no_image" if pair.picture == "" else pair.caption.drop_reason(min_length)
        if not reason:
            where = f"ingest: the picture {_printable(pair.name)[:200]!r} of {_printable(pair.file)}"
            try:
                data = _bytes_of(pair.picture)
                packed = pack(data, resize) if data is not None else None
                reason = "" if packed else "no_image"
            except DecodeError as error:
                packed, reason = None, error.reason
            except InputError as error:  # an unknown scheme
                raise InputError(f"{where}: {error}") from None
            except (OSError, MemoryError) as error:  # no permission, or a failing disk
                raise InputError(f"{where} cannot be read: {said(error)}.") from error
            if packed:
                yield pair, packed.data, packed.extension, packed.width, packed.height
        if reason:
            leave_out(pair, reason)


def _noting(labels: Counter[int], usable: Iterator[_Usable]) -> Iterator[_Usable]:
    """The same pairs; counts their labels in `labels`."""
    for one in usable:
        labels[one[0].label] += 1
        yield one


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))


def _bytes_of(picture: str | bytes) -> bytes | None:
    """The picture's bytes; None if there is no such file."""
    if isinstance(picture, bytes):
        return picture
    return None if size_of(picture) < 0 or (not is_remote(picture) and os.path.isdir(picture)) else read_file(picture)


def pack(data: bytes, resize: int | None) -> Packed:
    """A picture as it is written into a shard, its shorter side at most `resize` pixels. Raises `DecodeError`."""
    image_HWC = decode(data)
    original_height, original_width = image_HWC.shape[:2]
    with Image.open(io.BytesIO(data)) as opened:
        extension = _KEPT.get(opened.format or "", "")
    if resize is not None and min(image_HWC.shape[:2]) > resize:
        image_HWC = _shrink(image_HWC, resize)
        data, extension = _encoded(image_HWC, "JPEG", quality=95, subsampling=0), "jpg"
    elif not extension:
        data, extension = _encoded(image_HWC, "PNG"), "png"
    return Packed(data, extension, image_HWC.shape[1], image_HWC.shape[0], original_width, original_height)


def _encoded(image_HWC: np.ndarray, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, kind, **options)
    return out.getvalue()


def _shrink(image_HWC: np.ndarray, shorter: int) -> np.ndarray:
    """uint8 [H, W, 3] with the shorter side at `shorter` pixels, its proportions kept."""
    height, width = image_HWC.shape[:2]
    scale = shorter / min(height, width)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    return np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BICUBIC))


def _write_shards(usable: Iterator[_Usable], folder: Path, shard_size: int) -> Iterator[tuple[str, dict]]:
    for number in itertools.count():
        first = next(usable, None)
        if first is None:
            return
        shard = itertools.chain([first], itertools.islice(usable, shard_size - 1))
        name = f"{number:05d}.tar"
        yield name, write_tar(folder / name, _samples(number, shard))


def _samples(number: int, shard: Iterable[_Usable]) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    for place, (pair, data, extension, width, height) in enumerate(shard):
        key = f"{number:05d}{place:04d}"
        caption = pair.caption.text or ""
        fields = {"key": key, "source": _printable(pair.name), "caption": caption, "width": width, "height": height}
        members: dict[str, bytes | str] = {extension: data, "txt": caption}
        if pair.label >= 0:
            members["cls"] = str(pair.label)
            fields["label"] = pair.label
        yield key, members | {"json": json.dumps(fields, ensure_ascii=False)}
