"""Another picture blended over the whole picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.component import Share
from datasets.errors import InputError
from datasets.triggers.base import blend
from datasets.triggers.file import FileTrigger


@dataclass(frozen=True, kw_only=True)
class BlendedPicture(FileTrigger):
    """alpha · given picture + (1 − alpha) · picture, with the given one squeezed to the view's size, bicubic (Chen et al. 2017; with alpha
    0.2 in Detect-CLIP-Backdoor-Samples). `Blended` does the same with noise."""

    alpha: Share = 0.2
    """Share of the given picture, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == 0:
            raise InputError("trigger.alpha is 0; accepted is a share above 0 and up to 1.")

    def check(self, size: int) -> None:
        self._picture(size, size)

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return blend(image_HWC, self._picture(*image_HWC.shape[:2]), self.alpha)

    def _picture(self, height: int, width: int) -> np.ndarray:
        """float64 [H, W, 3] in 0…1."""
        return _read(self.whole(), self.sha256, height, width)


@lru_cache(maxsize=4)
def _read(path: str, sha256: str, height: int, width: int) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"trigger.path {path} is no picture that can be decoded: {error}.") from None
    return np.asarray(resized) / 255
