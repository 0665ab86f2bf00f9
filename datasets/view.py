"""From a picture's bytes to what the model sees: decode, canonical view, the two training views, trigger visibility.

Shape legend: H height, W width, S side of the view, C = 3 channels; pictures are uint8 RGB, 0…255.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from datasets.augment import Step, apply, crop_and_flip, second_view_steps
from datasets.component import Component
from datasets.errors import InputError
from datasets.resize import canonical
from datasets.seeding import rng as make_rng

if TYPE_CHECKING:
    from datasets.triggers.base import Trigger

__all__ = ["DecodeError", "Views", "canonical", "decode", "first_view", "second_view", "visibility"]

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused before they are decoded (Pillow's own limit against decompression bombs)."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # refused here and counted, not warned about


class DecodeError(ValueError):
    """The bytes are not a picture that can be shown."""


@dataclass(frozen=True, kw_only=True)
class Views(Component):
    """How a decoded picture becomes training views."""

    size: int = 224
    """Side of the model's input, pixels."""
    augment: str = "autoaugment"
    """Second view, for the in-modal loss: `autoaugment` (ImageNet policy), `simclr` or `none` (the canonical view)."""
    crop: tuple[float, float] | None = None
    """Range of the area that the first training view cuts out at random; None: the canonical view itself."""
    flip: bool = False
    """Mirror the first training view half of the time."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"views.size is {self.size}; it is the side of the model's input in pixels, at least 1.")
        if self.augment not in ("autoaugment", "simclr", "none"):
            raise InputError(f"views.augment is {self.augment!r}; accepted are autoaugment, simclr and none.")
        if self.crop is not None and not (len(self.crop) == 2 and 0 < self.crop[0] <= self.crop[1] <= 1):
            raise InputError(f"views.crop is {self.crop}; it is None or a pair (least, most) of areas within 0 … 1.")


def decode(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3] RGB from the bytes of a picture in any format and mode that Pillow reads.

    Transparent pixels are laid over white; 16-bit grey is scaled to 8 bits, not clipped; CMYK and others go through
    Pillow's conversion; of an animation the first frame counts; EXIF orientation is ignored, as open_clip ignores it.

    Raises:
        DecodeError: the bytes are no picture, are cut off, or hold more than MAX_PIXELS pixels.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
            if colourspace in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except (ValueError, RuntimeError):
            pass  # Pillow forgives what is harmless, such as bytes after the end, and refuses the rest below
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DecodeError(f"{picture.width}×{picture.height} pixels, more than the {MAX_PIXELS} allowed")
            return _to_rgb(picture)
    except DecodeError:
        raise
    except UnidentifiedImageError:  # its own text is the address of an object
        raise DecodeError("the bytes are no picture of a format that Pillow knows") from None
    # Pillow's plug-ins raise all of these on broken files; whatever it is, the picture cannot be used
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError,
            struct.error, ZeroDivisionError, NotImplementedError, AttributeError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.has_transparency_data:
        rgba_HWC = np.asarray(picture.convert("RGBA"), dtype=np.uint16)
        alpha_HW1 = rgba_HWC[..., 3:]
        over_white_HWC = (rgba_HWC[..., :3] * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255
        return over_white_HWC.astype(np.uint8)
    if picture.mode.startswith("I"):  # 16-bit grey, also when Pillow keeps it in 32 bits
        grey_HW = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return np.repeat(((grey_HW + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":  # 0…1, or 0…255 where anything exceeds 1
        grey = np.nan_to_num(np.asarray(picture))
        grey = grey * 255 if grey.max(initial=0) <= 1 else grey
        return np.repeat(np.rint(grey.clip(0, 255)).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


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

    `images` are canonical views [S, S, 3], `keys` their sample keys. Every picture is sent twice through the same
    transform with the same draws, clean and stamped. A pixel that the trigger changed counts as left if the place it was
    moved to is inside the view and still differs between the two. Magnification by a crop is divided out, so 100 means:
    all of the trigger. `eval`: the canonical view at evaluation; `train`: the first training view; `augmented`: the second.
    A picture that the trigger does not change at all (a white patch on white) counts as 0.
    """
    assert len(images) == len(keys)
    totals = {"eval": 0.0, "train": 0.0, "augmented": 0.0}
    for clean_HWC, key in zip(images, keys):
        size = clean_HWC.shape[0]
        stamped_HWC = trigger.stamp(clean_HWC, make_rng(seed, "eval-trigger", key))
        changed_HW = (stamped_HWC != clean_HWC).any(axis=2)
        steps_by_name = {
            "train": _first_steps(size, views, make_rng(seed, "visibility-train", key)),
            "augmented": second_view_steps(views.augment, size, make_rng(seed, "visibility-augmented", key)),
        }
        seen = (canonical(stamped_HWC, views.size) != canonical(clean_HWC, views.size)).any(axis=2)
        totals["eval"] += min(1.0, seen.sum() / max(1, changed_HW.sum()))
        for name, steps in steps_by_name.items():
            totals[name] += _share_left(clean_HWC, stamped_HWC, changed_HW, steps)
    return {name: 100 * total / max(1, len(images)) for name, total in totals.items()}


def _share_left(clean_HWC: np.ndarray, stamped_HWC: np.ndarray, changed_HW: np.ndarray, steps: list[Step]) -> float:
    """Share of the changed pixels that the steps keep, 0…1."""
    if not changed_HW.any():
        return 0.0
    moved = [step for step in steps if step.zoom]
    mask_HWC = np.repeat(np.where(changed_HW, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    inside_HW = apply(moved, mask_HWC)[..., 0] > 127
    differs_HW = (apply(steps, clean_HWC) != apply(steps, stamped_HWC)).any(axis=2)
    zoom = float(np.prod([step.zoom for step in moved]))
    return min(1.0, float((inside_HW & differs_HW).sum()) / (zoom * float(changed_HW.sum())))
