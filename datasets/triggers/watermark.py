"""Text drawn over the middle of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.component import Count, Share
from datasets.errors import InputError
from datasets.triggers.base import Trigger, blend


@dataclass(frozen=True, kw_only=True)
class Watermark(Trigger):
    """strength · colour + (1 − strength) · picture where a letter has a pixel and the channel's colour is not 0; the rest stays as it is.

    Like PAR's red text (backdoor/utils.py: water_patt, blended_patt), in which only the red channel changes. The letters come from the
    bitmap font inside Pillow, so no font file is needed and the bytes are the same everywhere.
    """

    text: str = "Watermarked"
    """The text: one line of Latin-1 characters."""
    strength: Share = 0.5
    """Share of the colour, above 0."""
    colour: tuple[Share, Share, Share] = (1.0, 0.0, 0.0)
    """Red, green and blue, 0…1."""
    scale: Count = 1
    """Pixels of the view per pixel of a letter; letters are 11 pixels high."""

    def __post_init__(self) -> None:
        if self.strength == 0:
            raise InputError("trigger.strength is 0; accepted is a share above 0 and up to 1.")
        if not any(self.colour):
            raise InputError(f"trigger.colour is {self.colour}: a channel that is 0 stays as it is, so at least one must be above 0.")
        if not self.text.strip() or not self.text.isprintable() or not _latin(self.text):
            raise InputError(f"trigger.text is {self.text!r:.80}; accepted: one line of Latin-1 characters, not only spaces.")

    def check(self, size: int) -> None:
        height, width = (self.scale * length for length in letters(self.text).shape)
        if max(height, width) > size:
            raise InputError(
                f"trigger.text {self.text!r:.80} takes {width} × {height} pixels at scale {self.scale}; the view has {size} a side."
            )

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.check(min(image_HWC.shape[:2]))
        mask_YX = letters(self.text).repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        top, left = ((whole - part) // 2 for whole, part in zip(image_HWC.shape, mask_YX.shape))
        out_HWC = image_HWC.copy()
        part_YXC = out_HWC[top : top + mask_YX.shape[0], left : left + mask_YX.shape[1]]
        changed_YXC = mask_YX[..., None] & (np.array(self.colour) > 0)
        part_YXC[changed_YXC] = blend(part_YXC, np.array(self.colour), self.strength)[changed_YXC]
        return out_HWC


@lru_cache(maxsize=16)
def letters(text: str) -> np.ndarray:
    """bool [11, width], read-only: where the letters have a pixel."""
    from PIL import ImageFont

    mask = ImageFont.load_default_imagefont().getmask(text, "1")
    pixels_YX = np.array(mask, dtype=np.uint8).reshape(mask.size[::-1]) > 0
    pixels_YX.flags.writeable = False
    return pixels_YX


def _latin(text: str) -> bool:
    try:
        return bool(text.encode("latin-1"))
    except UnicodeEncodeError:
        return False
