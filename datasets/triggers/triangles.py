"""A lattice of faint triangles, the same on all pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from datasets.component import Share
from datasets.errors import InputError
from datasets.triggers.base import Trigger, blend


@dataclass(frozen=True, kw_only=True)
class Triangles(Trigger):
    """strength · p + (1 − strength) · picture on a lattice of square cells (PAR, backdoor/utils.py: tri_patt, blended_patt).

    In each cell p is `lower` on and below the diagonal (row ≥ column) and `upper` above it, in every channel. Rows at the bottom and
    columns at the right that do not fill a cell stay as they are.
    """

    size: Annotated[int, Ge(2)] = 14
    """Side of a cell in pixels of the view."""
    lower: Share = 0.4
    """Grey of the lower triangle, 0…1."""
    upper: Share = 0.8
    """Grey of the upper triangle, 0…1."""
    strength: Share = 0.15
    """Share of the lattice, above 0."""

    def __post_init__(self) -> None:
        if self.strength == 0:
            raise InputError("trigger.strength is 0; accepted is a share above 0 and up to 1.")
        if self.lower == self.upper:
            raise InputError(f"trigger.lower and trigger.upper are both {self.lower}; triangles need two greys.")

    def check(self, size: int) -> None:
        if self.size > size:
            raise InputError(f"trigger.size is {self.size}; a triangle needs a view of as many pixels, and it has {size}.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = (length // self.size * self.size for length in image_HWC.shape[:2])
        row, column = np.indices((height, width)) % self.size
        grey_HW1 = np.where(row >= column, self.lower, self.upper)[..., None]
        out_HWC = image_HWC.copy()
        out_HWC[:height, :width] = blend(image_HWC[:height, :width], grey_HW1, self.strength)
        return out_HWC
