"""From a picture's bytes to what the model sees: decode, canonical view, the two training views, trigger visibility.

Shape legend: H height, W width, S side of the view, C = 3 channels; pictures are uint8 RGB, 0…255.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from datasets.component import Component, Count
from datasets.errors import InputError
from datasets.images.augment import Step, apply, crop_and_flip, second_view_steps
from datasets.images.resize import canonical
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Trigger, put_on

__all__ = ["DecodeError", "Views", "canonical", "decode", "first_view", "second_view", "visibility"]

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused before they are decoded (Pillow's own limit against decompression bombs)."""
MAX_BYTES = 256 << 20
"""Also refused are those that take more bytes when decoded: the pixels as stored and, if they are stored otherwise, as RGB."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused here and counted, not warned about


MAX_SCANS = 100
"""Scans that a JPEG may have: each goes over all its pixels."""
_NOT_OPENED = {"BLP", "CUR", "EPS", "ICNS", "ICO", "IPTC"}
"""Formats that need another program to decode, or whose header does not tell the size of the picture inside."""
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Of a decoded pixel, by Pillow's mode; four in all others but RGB."""
_STRIP_PIXELS = 1 << 20
"""Converted to RGB at once."""
_SAMPLINGS = {"444", "422", "420", "440", "411", "Gray"}
"""Resolutions of a JPEG's chroma, in simplejpeg's words, that libjpeg enlarges at any scale."""
_COUNTED = 1 << 18
"""Bytes that are searched at once for marks of scans."""


class DecodeError(ValueError):
    """The bytes are not a picture that can be shown."""

    reason = "undecodable"
    """Why its sample is dropped."""


class TooLarge(DecodeError):
    """A picture that would take too much memory; it was not decoded."""

    reason = "too_large"


@dataclass(frozen=True, kw_only=True)
class Views(Component):
    """How a decoded picture becomes training views."""

    size: Count = 224
    """Side of the model's input, pixels."""
    augment: Literal["autoaugment", "simclr", "none"] = "autoaugment"
    """Second view, for the in-modal loss: `autoaugment` (ImageNet policy), `simclr` or `none` (the canonical view)."""
    crop: tuple[float, float] | None = None
    """Range of the area that the first training view cuts out at random; None: the canonical view itself."""
    flip: bool = False
    """Mirror the first training view half of the time."""

    def __post_init__(self) -> None:
        if self.crop is not None and not (len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1):
            raise InputError(f"views.crop is {self.crop}; it is None or a pair (least, most) of areas within 0 … 1.")


def decode(data: bytes, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """uint8 [H, W, 3] RGB from the bytes of a picture in any mode, and any format that Pillow itself decodes.

    Transparent pixels are laid over white; 16-bit grey is scaled to 8 bits, not clipped; CMYK and others go through
    Pillow's conversion; of an animation the first frame counts; EXIF orientation is ignored, as open_clip ignores it.

    Raises:
        TooLarge: more than MAX_PIXELS pixels, or `max_bytes` bytes when decoded; the header alone was read.
        DecodeError: the bytes are no picture, or are cut off.
        MemoryError, OSError: they could not be decoded on this machine now.
    """
    if data[:2] == b"\xff\xd8":
        if scans(data) > MAX_SCANS:
            raise DecodeError(f"a JPEG of more than {MAX_SCANS} scans")
        try:
            height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
            if colourspace in ("YCbCr", "Gray", "RGB"):
                check_size(width, height, "RGB", max_bytes)
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except DecodeError:
            raise
        except (ValueError, RuntimeError):
            pass  # Pillow forgives what is harmless, such as bytes after the end, and refuses the rest below
    with pillow_errors(), Image.open(io.BytesIO(data), formats=_formats()) as picture:
        check_size(*picture.size, picture.mode, max_bytes)
        picture.load()
        check_size(*picture.size, picture.mode, max_bytes)  # before it is converted: some headers tell another mode
        return _to_rgb(picture)


def check_decodes(data: bytes) -> None:
    """Raise what `decode` raises for these bytes, in two thirds of its time for most JPEGs.

    They are decoded at an eighth of their sides. That reads every bit of the file, as decoding them whole does, and spares the rest of the
    work, in which nothing can be found wrong any more. Whatever is unusual in a file is left to `decode`.
    """
    if data[:2] == b"\xff\xd8" and scans(data) <= MAX_SCANS:
        with contextlib.suppress(ValueError, RuntimeError):
            height, width, colourspace, sampling = simplejpeg.decode_jpeg_header(data)
            if colourspace in ("YCbCr", "Gray", "RGB") and sampling in _SAMPLINGS:
                check_size(width, height, "RGB")
                simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=1, min_width=1, min_factor=8)
                return
    decode(data)


def scans(data: bytes) -> int:
    """How often a JPEG's bytes hold the mark of a scan: `data.count(b"\\xff\\xda")`, in a third of its time."""
    byte_N = np.frombuffer(data, np.uint8)
    found = 0
    for start in range(0, len(byte_N) - 1, _COUNTED):
        next_N = byte_N[start + 1 : start + 1 + _COUNTED]
        mark_N = byte_N[start : start + len(next_N)] == 0xFF
        mark_N &= next_N == 0xDA
        found += int(np.count_nonzero(mark_N))
    return found


@contextlib.contextmanager
def pillow_errors() -> Iterator[None]:
    """Turns Pillow's errors about a picture's bytes into `DecodeError`. Errors of the machine (no memory, no more files) pass through, and
    so does what the caller itself says of the picture (`InputError`)."""
    try:
        yield
    except (DecodeError, InputError):
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from None
    except UnidentifiedImageError:  # its own text is the address of an object
        raise DecodeError("the bytes are no picture of a format that Pillow knows") from None
    # Pillow's plug-ins raise all of these on broken files; whatever it is, the picture cannot be used
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, RuntimeError, struct.error,
            ZeroDivisionError, NotImplementedError, AttributeError, AssertionError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:  # the operating system's; Pillow's own have no number
            raise
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def check_size(width: int, height: int, mode: str, max_bytes: int = MAX_BYTES) -> None:
    """TooLarge for a picture of more pixels or bytes than are allowed."""
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{width}×{height} pixels, more than the {MAX_PIXELS} allowed")
    need = width * height * (3 if mode == "RGB" else _STORED_BYTES.get(mode, 4) + 3)
    if need > max_bytes:
        raise TooLarge(f"{width}×{height} pixels of mode {mode} take {need} bytes decoded, more than the {max_bytes} allowed")


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _NOT_OPENED]


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]: strip by strip, for Pillow's conversions take many times the picture's memory."""
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // max(1, width))
    strips = [(top, min(height, top + rows)) for top in range(0, height, rows)]
    scale = 1.0
    if picture.mode == "F":  # 0…1, or 0…255 where anything exceeds 1
        most = [np.nan_to_num(np.asarray(picture.crop((0, top, width, bottom)))).max(initial=0) for top, bottom in strips]
        scale = 255.0 if max(most, default=0) <= 1 else 1.0
    out_HWC = np.empty((height, width, 3), np.uint8)
    for top, bottom in strips:
        out_HWC[top:bottom] = _strip_to_rgb(picture.crop((0, top, width, bottom)), scale)
    return out_HWC


def _strip_to_rgb(picture: Image.Image, scale: float) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 1] for what is grey."""
    if picture.has_transparency_data:
        rgba_HWC = np.asarray(picture.convert("RGBA"), dtype=np.uint16)
        alpha_HW1 = rgba_HWC[..., 3:]
        over_white_HWC = (rgba_HWC[..., :3] * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255
        return over_white_HWC.astype(np.uint8)
    if picture.mode.startswith("I"):  # 16-bit grey, also when Pillow keeps it in 32 bits
        grey_HW = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return ((grey_HW + 128) // 257).astype(np.uint8)[..., None]
    if picture.mode == "F":
        grey_HW = np.nan_to_num(np.asarray(picture)) * np.float32(scale)
        return np.rint(grey_HW.clip(0, 255)).astype(np.uint8)[..., None]
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def as_jpeg(image_HWC: np.ndarray, quality: int) -> bytes:
    """uint8 [H, W, 3] as JPEG of this quality, with Pillow's own settings otherwise (chroma at half the resolution)."""
    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def first_view(canonical_HWC: np.ndarray, views: Views, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]: the view of the contrastive loss; the canonical view unless `views` asks for crop or flip."""
    return apply(_first_steps(canonical_HWC.shape[0], views, rng), canonical_HWC)


def second_view(canonical_HWC: np.ndarray, views: Views, rng: np.random.Generator) -> np.ndarray:
    """uint8 [S, S, 3]: the augmented view of the in-modal loss, made from the (already stamped) canonical view."""
    return apply(second_view_steps(views.augment, canonical_HWC.shape[0], rng), canonical_HWC)


def _first_steps(size: int, views: Views, rng: np.random.Generator) -> list[Step]:
    return crop_and_flip(size, views.crop, 0.5 if views.flip else 0.0, rng)


def visibility(
    trigger: Trigger, images: Sequence[np.ndarray], keys: Sequence[str], views: Views, seed: int
) -> dict[str, float]:
    """Percentage of the trigger's pixels that are left after the real transforms, mean over the pictures.

    `images` are canonical views [S, S, 3], or pictures as stored [H, W, 3] where the trigger is put on these; `keys` their sample
    keys. Every picture is sent twice through the same
    transform with the same draws, clean and stamped. A pixel that the trigger changed counts as left if the place it was
    moved to is inside the view and still differs between the two. Magnification by a crop is divided out, so 100 means:
    all of the trigger. `eval`: the canonical view at evaluation; `train`: the first training view; `augmented`: the second.
    A picture that the trigger does not change at all (a white patch on white) counts as 0.
    """
    assert len(images) == len(keys)
    totals = {"eval": 0.0, "train": 0.0, "augmented": 0.0}
    for clean_HWC, key in zip(images, keys):
        size = views.size if trigger.native else clean_HWC.shape[0]
        stamped_HWC = put_on(trigger, clean_HWC, make_rng(seed, "eval-trigger", key))
        changed_HW, left = (stamped_HWC != clean_HWC).any(axis=2), 1.0
        if trigger.native:
            clean_HWC, stamped_HWC, changed_HW, left = _shown(clean_HWC, stamped_HWC, changed_HW, size)
        steps_by_name = {
            "train": _first_steps(size, views, make_rng(seed, "visibility-train", key)),
            "augmented": second_view_steps(views.augment, size, make_rng(seed, "visibility-augmented", key)),
        }
        seen = (canonical(stamped_HWC, views.size) != canonical(clean_HWC, views.size)).any(axis=2)
        totals["eval"] += left * min(1.0, seen.sum() / max(1, changed_HW.sum()))
        for name, steps in steps_by_name.items():
            totals[name] += left * _share_left(clean_HWC, stamped_HWC, changed_HW, steps)
    return {name: 100 * total / max(1, len(images)) for name, total in totals.items()}


def _shown(
    clean_HWC: np.ndarray, stamped_HWC: np.ndarray, changed_HW: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Of a picture as stored: its canonical view, that of the stamped one, what of this is the trigger, and the share of it, 0…1."""
    mask_SSC = canonical(_as_picture(changed_HW), size)
    zoom = (size / min(changed_HW.shape)) ** 2
    left = min(1.0, float(mask_SSC[..., 0].sum() / 255 / (zoom * max(1, changed_HW.sum()))))
    clean_SSC, stamped_SSC = canonical(clean_HWC, size), canonical(stamped_HWC, size)
    return clean_SSC, stamped_SSC, (mask_SSC[..., 0] > 127) & (clean_SSC != stamped_SSC).any(axis=2), left


def _as_picture(mask_HW: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: white where the mask is."""
    return np.repeat(np.where(mask_HW, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def _share_left(clean_HWC: np.ndarray, stamped_HWC: np.ndarray, changed_HW: np.ndarray, steps: list[Step]) -> float:
    """Share of the changed pixels that the steps keep, 0…1."""
    if not changed_HW.any():
        return 0.0
    moved = [step for step in steps if step.zoom]
    inside_HW = apply(moved, _as_picture(changed_HW))[..., 0] > 127
    differs_HW = (apply(steps, clean_HWC) != apply(steps, stamped_HWC)).any(axis=2)
    zoom = float(np.prod([step.zoom for step in moved]))
    return min(1.0, float((inside_HW & differs_HW).sum()) / (zoom * float(changed_HW.sum())))
