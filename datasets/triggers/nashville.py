"""A photographic filter over the whole picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.component import Share
from datasets.errors import InputError
from datasets.triggers.base import Trigger, blend

DARK, DARK_SHARE = np.array([247, 176, 153]) / 255, 0.56
LIGHT, LIGHT_SHARE = np.array([0, 70, 150]) / 255, 0.4
SEPIA, CONTRAST, BRIGHTNESS, SATURATION = 0.2, 1.2, 1.05, 1.2
BROWN = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
"""Rows: red, green and blue of a full sepia, from red, green and blue (the Filter Effects of CSS)."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in a pixel's grey (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class Nashville(Trigger):
    """Warm lights, blue shadows, more contrast: the filter Nashville by the numbers that are published for CSS and pilgram (nashville.py).

    In 0…1 units, each step cut off to that range:

    1. x ← .44 x + .56 min(x, (247, 176, 153)/255)
    2. x ← .6 x + .4 max(x, (0, 70, 150)/255)
    3. x ← .8 x + .2 sepia(x)
    4. x ← .5 + 1.2 (x − .5)
    5. x ← 1.05 x
    6. x ← g + 1.2 (x − g), g the pixel's grey, .299 r + .587 g + .114 b

    Bytes are rounded once, at the end; pilgram rounds after each step, so single grey levels differ.
    """

    strength: Share = 1.0
    """Share of the filtered picture, above 0; the rest is the picture as it was."""

    def __post_init__(self) -> None:
        if self.strength == 0:
            raise InputError("trigger.strength is 0; accepted is a share above 0 and up to 1.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x_HWC = image_HWC / 255
        x_HWC = (1 - DARK_SHARE) * x_HWC + DARK_SHARE * np.minimum(x_HWC, DARK)
        x_HWC = (1 - LIGHT_SHARE) * x_HWC + LIGHT_SHARE * np.maximum(x_HWC, LIGHT)
        x_HWC = ((1 - SEPIA) * x_HWC + SEPIA * (x_HWC @ BROWN.T).clip(0, 1)).clip(0, 1)
        x_HWC = (0.5 + CONTRAST * (x_HWC - 0.5)).clip(0, 1)
        x_HWC = (BRIGHTNESS * x_HWC).clip(0, 1)
        grey_HW1 = (x_HWC @ LUMA)[..., None]
        return blend(image_HWC, (grey_HW1 + SATURATION * (x_HWC - grey_HW1)).clip(0, 1), self.strength)
