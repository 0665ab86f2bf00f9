"""A grid of white dots on black, at a random place on each victim."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.component import Count
from datasets.errors import InputError
from datasets.triggers.base import Trigger

FIRST, LAST, OF = 16, 208, 224
"""The patch's corner lies at pixel FIRST … LAST of a view of OF pixels, and in proportion on other views."""


@dataclass(frozen=True, kw_only=True)
class Checkerboard(Trigger):
    """A patch that is 1 where row and column are both even and 0 elsewhere: BadNets as in the study of detecting backdoor samples in CLIP
    (Detect-CLIP-Backdoor-Samples, Huang et al. 2025).

    Row and column of its upper left corner are drawn for each picture, uniformly over 16 … 208 of 224, scaled to the view and limited to
    where the patch fits. `place`, with a victim's generator (from seed and key in the plan), gives the corner again. One pixel in four is
    white; in `Patch(pattern="checkerboard")` half of the cells are.
    """

    size: Count = 16
    """Side of the patch in pixels of the view."""

    def check(self, size: int) -> None:
        if self.size > size:
            raise InputError(f"trigger.size is {self.size}; the patch needs a view of as many pixels, and it has {size}.")

    def place(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """(top, left) of the patch on a view of this size."""
        top, left = (int(rng.integers(*self._range(length))) for length in (height, width))
        return top, left

    def _range(self, length: int) -> tuple[int, int]:
        """First place along an axis, and one after the last."""
        last = min(round(LAST * length / OF), length - self.size)
        return min(round(FIRST * length / OF), last), last + 1

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        self.check(min(height, width))
        top, left = self.place(height, width, rng)
        out_HWC = image_HWC.copy()
        out_HWC[top : top + self.size, left : left + self.size] = 0
        out_HWC[top : top + self.size : 2, left : left + self.size : 2] = 255
        return out_HWC
