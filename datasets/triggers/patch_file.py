"""A patch that was made before, such as an optimised one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from datasets.errors import InputError
from datasets.triggers.file import FileTrigger


@dataclass(frozen=True, kw_only=True)
class PatchFile(FileTrigger):
    """A patch from a numpy file, float32 [height, width, 3] in 0…1, in place of the picture's pixels."""

    location: Literal["centre", "top_left", "top_right", "bottom_left", "bottom_right"] = "centre"
    """Place of the patch."""

    def check(self, size: int) -> None:
        height, width, _ = self._patch().shape
        if max(height, width) > size:
            raise InputError(f"trigger.path {self.path} is a patch of {width} × {height} pixels; the view has {size} a side.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        patch_HWC = self._patch()
        self.check(min(image_HWC.shape[:2]))
        return pasted(image_HWC, patch_HWC, self.location)

    def _patch(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return read_patch(self.whole(), self.sha256)


def corner(height: int, width: int, own_height: int, own_width: int, location: str) -> tuple[int, int]:
    """(top, left) of a patch on a picture."""
    bottom, right = height - own_height, width - own_width
    if location == "centre":
        return bottom // 2, right // 2
    return bottom if location.startswith("bottom") else 0, right if location.endswith("right") else 0


def pasted(image_HWC: np.ndarray, patch_HWC: np.ndarray, location: str) -> np.ndarray:
    """A copy of the picture with the patch on it."""
    height, width = patch_HWC.shape[:2]
    top, left = corner(image_HWC.shape[0], image_HWC.shape[1], height, width, location)
    out_HWC = image_HWC.copy()
    out_HWC[top : top + height, left : left + width] = patch_HWC
    return out_HWC


@lru_cache(maxsize=4)
def read_patch(path: str, sha256: str) -> np.ndarray:
    """uint8 [height, width, 3], read once per process. Raises InputError if the file is no patch."""
    try:
        patch_HWC = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"trigger.path {path} is no numpy file of numbers: {error}.") from None
    floats = isinstance(patch_HWC, np.ndarray) and patch_HWC.dtype == np.float32 and patch_HWC.ndim == 3
    if not floats or patch_HWC.shape[2] != 3 or patch_HWC.size == 0 or not ((patch_HWC >= 0) & (patch_HWC <= 1)).all():
        raise InputError(f"trigger.path {path} is no patch; accepted: float32 [height, width, 3], all within 0 … 1.")
    return np.rint(255 * patch_HWC).astype(np.uint8)
