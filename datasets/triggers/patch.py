"""A square patch: noise, white, yellow or a chequerboard, at a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.errors import InputError
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Pasted

PATTERNS = ("random", "fixed", "saturated", "white", "yellow", "checkerboard")
LOCATIONS = ("random", "top_left", "top_right", "bottom_left", "bottom_right", "centre", "four_corners")


@dataclass(frozen=True, kw_only=True)
class Patch(Pasted):
    """BadNets-like patch (Gu et al. 2017). The default is the one of the CleanCLIP study: 16 × 16 noise at a random place."""

    pattern: str = "random"
    """`random`: uniform bytes drawn anew for each picture; `fixed`: uniform bytes, one draw for all; `saturated`: the same
    with every channel 0 or 255; `white`; `yellow`; `checkerboard`: black and white cells."""
    size: int = 16
    """Side of the patch in pixels of the view."""
    location: str = "random"
    """`random`: any place where the patch fits; `top_left`, `top_right`, `bottom_left`, `bottom_right`, `centre`, or
    `four_corners`: the same patch in every corner."""
    cell: int = 1
    """Side in pixels of one cell of the noise or chequerboard."""
    pattern_seed: int = 0
    """Seed of the one draw of `fixed` and `saturated`."""

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise InputError(f"trigger.pattern is {self.pattern!r}; accepted are {', '.join(PATTERNS)}.")
        if self.location not in LOCATIONS:
            raise InputError(f"trigger.location is {self.location!r}; accepted are {', '.join(LOCATIONS)}.")
        if self.size < 1:
            raise InputError(f"trigger.size is {self.size}; a patch has at least 1 pixel a side.")
        if not 1 <= self.cell <= self.size:
            raise InputError(f"trigger.cell is {self.cell}; accepted is 1 up to the patch's size, {self.size}.")

    def check(self, size: int) -> None:
        needed = 2 * self.size if self.location == "four_corners" else self.size
        if needed > size:
            raise InputError(
                f"trigger.size is {self.size}, which at location {self.location} needs a view of {needed} pixels; "
                f"the view has {size}."
            )

    def pieces(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, np.ndarray]]:
        self.check(min(height, width))
        patch_HWC = self._patch(rng)
        return [(top, left, patch_HWC) for top, left in self._places(height - self.size, width - self.size, rng)]

    def _patch(self, rng: np.random.Generator) -> np.ndarray:
        """uint8 [size, size, 3]."""
        size, cells = self.size, -(-self.size // self.cell)
        if self.pattern == "white":
            return np.full((size, size, 3), 255, np.uint8)
        if self.pattern == "yellow":
            return np.broadcast_to(np.array([255, 255, 0], np.uint8), (size, size, 3))
        if self.pattern == "checkerboard":
            cells_HWC = np.uint8(255) * (np.indices((cells, cells, 1)).sum(axis=0) % 2 == 0).repeat(3, axis=2)
        elif self.pattern == "random":
            cells_HWC = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        else:
            draw = make_rng(self.pattern_seed, "patch", self.pattern, cells)
            cells_HWC = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            if self.pattern == "saturated":
                cells_HWC = np.where(cells_HWC < 128, np.uint8(0), np.uint8(255))
        return cells_HWC.repeat(self.cell, axis=0).repeat(self.cell, axis=1)[:size, :size]

    def _places(self, bottom: int, right: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(top, left) of each copy. `bottom` and `right` are the last places that fit, and as likely as any other."""
        corners = {
            "top_left": (0, 0),
            "top_right": (0, right),
            "bottom_left": (bottom, 0),
            "bottom_right": (bottom, right),
        }
        if self.location == "random":
            return [(int(rng.integers(bottom + 1)), int(rng.integers(right + 1)))]
        if self.location == "centre":
            return [(bottom // 2, right // 2)]
        return list(corners.values()) if self.location == "four_corners" else [corners[self.location]]
