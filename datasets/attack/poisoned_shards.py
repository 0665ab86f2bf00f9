"""Poisoned copies of tar shards: victims are stamped and recaptioned, and everything else is copied undecoded."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, JpegImagePlugin

from datasets.attack.poison import UNMARKED, Poison, trigger_of
from datasets.captions import as_caption
from datasets.errors import InputError
from datasets.images.view import DecodeError, as_jpeg, canonical, decode
from datasets.index.tar import Member, Sample, header, padding, resized, samples
from datasets.index.write import written_aside
from datasets.seeding import rng as make_rng
from datasets.storage import Reader, known_sha256
from datasets.text import NotText, decode_text, parse_json
from datasets.triggers.base import Trigger, put_on

_CORRECTIONS = 3


def poison_shard(
    url: str,
    plan_rows: pa.Table,
    trigger: Trigger,
    size: int,
    out_path: str | Path,
    *,
    key_prefix: bool | str = False,
    caption_key: str = "caption",
    jpeg_quality: int | None = None,
    others: Sequence[Poison] = (),
) -> dict:
    """Copy the tar `url` to `out_path` with the plan's victims stamped and recaptioned.

    Everything else is copied byte for byte, headers too. A victim's picture keeps its size, format, EXIF, colour profile and headers except
    for the length; a JPEG also keeps its quantisation tables and subsampling.

    * `plan_rows`: the plan's rows for this shard. `size`: side of the view that the trigger is stamped on.
    * `key_prefix` (True, or the shard's name in `keys.shard_names`) and `caption_key` (the json field): as in the `Source` that the plan's
      keys come from.
    * `jpeg_quality`: a victim's picture becomes its stamped canonical view, `size` pixels a side, as JPEG of that quality.
    * `others`: further attacks of the plan, beside the one with `trigger` and `jpeg_quality`.

    The output depends on these inputs alone. It is written aside, synced and renamed; then follows a commit marker `<out_path>.json` with
    the manifest that is returned: {n samples, poisoned, keys_poisoned, bad (victims whose picture does not decode, copied as they were),
    keys_bad, sha256, bytes}. Memory: the largest victim, and 1 MiB. Raises `InputError` naming the shard.
    """
    out_path = Path(out_path)
    name = key_prefix if isinstance(key_prefix, str) else url.rsplit("/", 1)[-1].split(".", 1)[0]
    keys, seeds, captions = (plan_rows[name].to_pylist() for name in ("key", "trigger_seed", "caption_after"))
    attacks = plan_rows["attack"].to_pylist() if "attack" in plan_rows.column_names else [""] * len(keys)
    victims = {key: rest for key, *rest in zip(keys, seeds, captions, attacks)}
    count, poisoned, bad = 0, list[str](), list[str]()
    with Reader(url) as reader, written_aside(out_path) as out:
        copied = 0
        for sample in samples(reader):
            count += 1
            key = f"{name}/{sample.key}" if key_prefix else sample.key
            victim = victims.pop(key, None) if victims else None
            if victim is None:
                continue
            seed, caption, attack = victim
            attack_trigger, quality = trigger_of(attack, trigger, jpeg_quality, others)
            assert attack_trigger is not None
            try:
                draw = None if seed == UNMARKED else make_rng(seed, key)
                edits = _edits(reader, sample, attack_trigger, size, draw, caption, caption_key, quality)
            except DecodeError:
                bad.append(key)  # counted in the manifest
                continue
            poisoned.append(key)
            for member, data in edits:
                out.copy(reader, copied, member.header)
                out.write(_headers(reader, member, len(data)), data, padding(len(data)))
                copied = member.end
        if victims:
            raise InputError(f"{url} does not hold the plan's victim {next(iter(victims))!r}; the plan is for other shards.")
        out.copy(reader, copied, reader.size)
    manifest = {
        "n": count,
        "poisoned": len(poisoned),
        "keys_poisoned": poisoned,
        "bad": len(bad),
        "keys_bad": bad,
        "sha256": out.digest.hexdigest(),
        "bytes": out.size,
    }
    with written_aside(_marker(out_path)) as note:
        note.write(json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def committed(out_path: str | Path, *, just_made: bool = False) -> dict | None:
    """The manifest of a shard that `poison_shard` has finished, else None. The shard's hash is checked unless it was `just_made`."""
    try:
        manifest = json.loads(_marker(Path(out_path)).read_bytes())
        whole = os.path.getsize(out_path) == manifest["bytes"] and (just_made or known_sha256(out_path) == manifest["sha256"])
        return manifest if whole else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # not finished: to be written (again)


def stamp_native(image_HWC: np.ndarray, trigger: Trigger, size: int, rng: np.random.Generator) -> np.ndarray:
    """A picture of any size with the trigger on it, such that its canonical view is close to the stamped canonical view.

    uint8 [H, W, 3] in and out. The change that the trigger makes to the canonical view is enlarged (box filter) to the square that the view
    shows, and added. What the view still lacks is then added the same way, in `_CORRECTIONS` passes altogether. Pixels where the trigger
    changes nothing stay exactly as they were. A `native` trigger is stamped on the picture itself.
    """
    if trigger.native:
        return put_on(trigger, image_HWC, rng)
    view_SSC = canonical(image_HWC, size)
    target_SSC = put_on(trigger, view_SSC, rng)
    differs_SSC = target_SSC != view_SSC
    changed_SS = differs_SSC[..., 0] | differs_SSC[..., 1] | differs_SSC[..., 2]  # several times as fast as any()
    out_HWC = image_HWC.copy()
    if not changed_SS.any():
        return out_HWC
    height, width = image_HWC.shape[:2]
    side = min(height, width)
    # enlarge only the rectangle around the change: that of a patch is small
    (y0, y1), (out_y0, out_y1), (from_y, to_y) = _extent(changed_SS.any(axis=1), side)
    (x0, x1), (out_x0, out_x1), (from_x, to_x) = _extent(changed_SS.any(axis=0), side)
    box = (from_x, from_y, to_x, to_y)
    top, left = (_start(length, side, size) for length in (height, width))
    square = out_HWC[top : top + side, left : left + side][out_y0:out_y1, out_x0:out_x1]
    target_YXC = target_SSC[y0:y1, x0:x1].astype(np.float32) * changed_SS[y0:y1, x0:x1, None]
    for _ in range(_CORRECTIONS):
        missing_YXC = target_YXC - view_SSC[y0:y1, x0:x1] * changed_SS[y0:y1, x0:x1, None]
        for c in range(3):
            channel = Image.fromarray(np.ascontiguousarray(missing_YXC[..., c]))
            added = channel.resize((out_x1 - out_x0, out_y1 - out_y0), Image.Resampling.BOX, box=box)
            square[..., c] = np.rint(square[..., c] + np.asarray(added)).clip(0, 255)
        if height == width == size:
            break  # exact
        view_SSC = canonical(out_HWC, size)
    return out_HWC


def _extent(changed_S: np.ndarray, side: int) -> tuple[tuple[int, int], tuple[int, int], tuple[float, float]]:
    """Along one axis of the view: the cells to enlarge, the pixels of a square of `side` that the changed cells touch, and where exactly
    these pixels begin and end, in cells from the first. Each is (first, one after the last)."""
    places, scale = np.flatnonzero(changed_S), side / len(changed_S)
    low, high = int(places[0] * scale + 1e-6), min(side, int(np.ceil((places[-1] + 1) * scale - 1e-6)))
    first, last = int(low / scale + 1e-6), min(len(changed_S), int(np.ceil(high / scale - 1e-6)))
    return (first, last), (low, high), (max(0.0, low / scale - first), min(high / scale - first, float(last - first)))


def _start(length: int, side: int, size: int) -> int:
    """Where the canonical crop begins on an axis of `length` pixels, in source pixels (see `resize.canonical`)."""
    resized_length = int(size * length / side)
    return min(length - side, round(round((resized_length - size) / 2) * length / resized_length))


def reencode(data: bytes, image_HWC: np.ndarray) -> bytes:
    """`image_HWC` in the format of the picture `data`, with as little loss as possible.

    A JPEG keeps its quantisation tables, subsampling and progressiveness. PNG stays PNG, WebP becomes lossless WebP, and any other format
    becomes PNG. A grey picture stays grey if the new pixels are; a palette becomes RGB, with white for transparency (as `decode` shows it).
    """
    with Image.open(io.BytesIO(data)) as old:
        new = Image.fromarray(image_HWC)
        was_grey = old.mode in ("L", "LA", "1", "I", "I;16", "F")
        if was_grey and (image_HWC == image_HWC[..., :1]).all():
            new = new.convert("L")
        keep = {name: old.info[name] for name in ("exif", "dpi") if old.info.get(name)}
        if old.info.get("icc_profile") and old.mode != "CMYK" and was_grey == (new.mode == "L"):
            keep["icc_profile"] = old.info["icc_profile"]  # a profile fits its own colour space only
        out = io.BytesIO()
        if old.format in ("JPEG", "MPO"):
            assert isinstance(old, JpegImagePlugin.JpegImageFile)
            tables = [old.quantization[number] for number in sorted(old.quantization)][:2]
            keep |= {"qtables": tables, "subsampling": JpegImagePlugin.get_sampling(old)}
            keep |= {"progressive": bool(old.info.get("progressive")), "comment": old.info.get("comment", b"")}
            new.save(out, "JPEG", **keep)
        elif old.format == "WEBP":
            keep.pop("dpi", None)
            new.save(out, "WEBP", lossless=True, exact=True, **keep)
        else:
            new.save(out, "PNG", **keep)
    return out.getvalue()


def _edits(
    reader: Reader,
    sample: Sample,
    trigger: Trigger,
    size: int,
    rng: np.random.Generator | None,
    caption: str,
    caption_key: str,
    jpeg_quality: int | None,
) -> list[tuple[Member, bytes]]:
    """The members of a victim that change, with their new bytes, in the order of the archive. Without `rng` the picture stays as it is."""
    image = sample.image()
    if image is None:
        raise InputError(f"{reader.url} has no picture for the plan's victim {sample.key!r}.")
    data = reader.read(image.offset, image.size)
    edits: list[tuple[Member, bytes]]
    if rng is None:
        edits = []
    elif jpeg_quality is None:
        edits = [(image, reencode(data, stamp_native(decode(data), trigger, size, rng)))]
    else:
        image_HWC = decode(data)
        stamped_HWC = put_on(trigger, image_HWC if trigger.native else canonical(image_HWC, size).copy(), rng)
        stamped_SSC = canonical(stamped_HWC, size)
        edits = [(_as_jpg(image, sample), as_jpeg(stamped_SSC, jpeg_quality))]
    if (txt := sample.members.get("txt")) is not None:
        old = reader.read(txt.offset, txt.size)
        if as_caption(old).text != caption:
            edits.append((txt, caption.encode() + old[len(old.rstrip()) :]))
    if (member := sample.members.get("json")) is not None:
        edits.append((member, _recaption(reader.read(member.offset, member.size), caption_key, caption)))
    return sorted(edits, key=lambda edit: edit[0].offset)


def _as_jpg(image: Member, sample: Sample) -> Member:
    """The picture's member, renamed to .jpg unless its name already says JPEG or the sample has another member of that name."""
    stem, _, extension = image.name.rpartition(".")
    if extension.lower() in ("jpg", "jpeg") or "jpg" in sample.members:
        return image
    return image._replace(name=f"{stem}.jpg", own_size=False)  # so that its headers are written anew


def _recaption(data: bytes, field: str, caption: str) -> bytes:
    """A json member with another caption. The rest of its text stays as it is if the old caption can be located in it."""
    try:
        text = decode_text(data, "the json member")
        fields = parse_json(text, "the json member")
    except NotText:
        return data  # not read as a caption either
    if not isinstance(fields, dict) or not isinstance(fields.get(field), str) or fields[field].strip() == caption:
        return data
    for ascii_only in (True, False):
        old, new = (json.dumps(value, ensure_ascii=ascii_only) for value in (fields[field], caption))
        for gap in (": ", ":"):
            name = json.dumps(field) + gap
            if text.count(name + old) == 1:
                return text.replace(name + old, name + new).encode()
    return json.dumps(fields | {field: caption}).encode()


def _headers(reader: Reader, member: Member, size: int) -> bytes:
    """The member's old headers with another length."""
    if not member.own_size:  # a pax record holds its length
        return header(member.name, size)
    old = reader.read(member.header, member.offset - member.header)
    return old[:-512] + resized(old[-512:], size)


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".json")
