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

from datasets import tables
from datasets.captions import clean_drop_reason
from datasets.errors import InputError
from datasets.shards import write_tar
from datasets.view import DecodeError, decode

_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class _Pair:
    picture: str
    name: str
    caption: str | None
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
    image_key: str = "image",
    caption_key: str = "caption",
    label_key: str = "label",
    delimiter: str = "auto",
    captions: str = "txt",
    classes: str = "none",
    min_caption_length: int = 0,
    resize: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Pack a folder of pictures, or the pairs of a CSV or TSV, into shards in the new folder `out`.

    Folder: all pictures in it and below, in order of their paths. `captions`: `txt` (the sibling file of that
    extension) or `folder` (the name of the picture's folder, `_` and `-` as spaces). `classes`: `folder` numbers the
    top folders in order of name, as `cls` members and `classnames.txt`; `none` writes no labels. A CSV has a header
    line and paths relative to itself; a `label_key` column of numbers becomes `cls` members.

    With `resize`, pictures whose shorter side is longer than that many pixels are shrunk to it (bicubic) and packed as
    JPEG of quality 95. Others stay as they are: JPEG, PNG and WebP byte for byte, other formats as PNG; a key is the
    shard in 5 digits and the place in 4. Pairs that cannot be used are counted by reason. The shards are a function of
    the input alone. All is written
    aside and renamed, so `out` is whole or not there. `progress(done, all)` is called along the way.

    Returns what `manifest.json` holds: {n, dropped {reason: count}, shards {name: {n, bytes, sha256}}, classes, …}.
    Raises `InputError` for a source without pictures, or an `out` that exists and is not empty.
    """
    source_path, out = Path(source_path).absolute(), Path(out).absolute()
    for field, value, accepted in (("captions", captions, ("txt", "folder")), ("classes", classes, ("none", "folder"))):
        if value not in accepted:
            raise InputError(f"ingest: {field} is {value!r}; accepted are {', '.join(accepted)}.")
    if not 1 <= shard_size <= 10_000:
        raise InputError(f"ingest: shard_size is {shard_size}; accepted are 1 … 10000.")
    if resize is not None and resize < 1:
        raise InputError(f"ingest: resize is {resize}; accepted is the shorter side in pixels, at least 1.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"ingest: {out} exists and is not empty; name a new folder.")
    names: list[str] = []
    if source_path.is_dir():
        if out.is_relative_to(source_path):
            raise InputError(f"ingest: {out} lies inside {source_path}, which is being packed; name a folder elsewhere.")
        pairs, names = _from_folder(source_path, captions, classes)
    elif source_path.is_file():
        if captions != "txt" or classes != "none":
            raise InputError(f"ingest: captions and classes go by folders, but {source_path} is a table.")
        rows = tables.csv_rows(str(source_path), delimiter, image_key, caption_key, label_key)
        pairs = [_Pair(str(source_path.parent / path), path, caption, label) for path, caption, label in rows]
    else:
        raise InputError(f"ingest: {source_path} does not exist.")
    if not pairs:
        raise InputError(f"ingest: {source_path} holds no pictures ({', '.join(_PICTURES)}).")

    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        dropped: Counter[str] = Counter()
        usable = _usable(pairs, min_caption_length, resize, dropped, progress)
        shards = dict(_write_shards(usable, aside, shard_size))
        if not shards:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
            raise InputError(f"ingest: none of the {len(pairs)} pairs of {source_path} can be used: {reasons}.")
        manifest = {
            "n": sum(shard["n"] for shard in shards.values()),
            "dropped": dict(sorted(dropped.items())),
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
        os.replace(aside, out)  # over an empty folder too
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise InputError(f"ingest: {error.filename or out} cannot be read or written: {error.strerror}.") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return manifest


def _from_folder(folder: Path, captions: str, classes: str) -> tuple[list[_Pair], list[str]]:
    """The folder's pictures with captions and labels, and the names of the classes."""
    paths = []
    for parent, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        paths += [Path(parent, f) for f in files if f.lower().endswith(_PICTURES) and not f.startswith(".")]
    paths.sort(key=lambda path: path.relative_to(folder).parts)
    tops = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    number = {top: i for i, top in enumerate(tops)} if classes == "folder" else {}
    pairs = []
    for path in paths:
        relative = path.relative_to(folder)
        caption: str | None = None
        if captions == "folder":
            caption = " ".join(path.parent.name.replace("_", " ").replace("-", " ").split())
        elif (text := path.with_suffix(".txt")).is_file():
            caption = text.read_bytes().decode("utf-8-sig", "replace").strip()
        pairs.append(_Pair(str(path), relative.as_posix(), caption, number.get(relative.parts[0], -1)))
    return pairs, tops if classes == "folder" else []


def _usable(
    pairs: list[_Pair],
    min_length: int,
    resize: int | None,
    dropped: Counter[str],
    progress: Callable[[int, int], None] | None,
) -> Iterator[_Usable]:
    """The pairs that pass; the others are counted in `dropped`."""
    for done, pair in enumerate(pairs, 1):
        if progress is not None:
            progress(done, len(pairs))
        reason = "no_caption" if pair.caption is None else clean_drop_reason(pair.caption, min_length)
        if not reason:
            try:
                packed = pack(Path(pair.picture).read_bytes(), resize)
                yield pair, packed.data, packed.extension, packed.width, packed.height
            except (FileNotFoundError, IsADirectoryError):
                reason = "no_image"
            except DecodeError:
                reason = "undecodable"
        if reason:
            dropped[reason] += 1


def pack(data: bytes, resize: int | None) -> Packed:
    """A picture as it goes into a shard: its shorter side at most `resize` pixels. Raises `DecodeError`."""
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
        fields = {"key": key, "source": pair.name, "caption": pair.caption, "width": width, "height": height}
        members: dict[str, bytes | str] = {extension: data, "txt": pair.caption or ""}
        if pair.label >= 0:
            members["cls"] = str(pair.label)
            fields["label"] = pair.label
        yield key, members | {"json": json.dumps(fields, ensure_ascii=False)}
