"""A sinusoid along the columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.errors import InputError
from datasets.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class Sig(Trigger):
    """clip(alpha · signal + (1 − alpha) · picture) with signal = amplitude · sin(2π · frequency · j / W) at column j, the same in every row
    and channel (Barni et al. 2019, blended as in the CleanCLIP study)."""

    amplitude: float = 60.0
    """Height of the sinusoid before blending, grey levels of 255."""
    frequency: float = 6.0
    """Periods over the picture's width."""
    alpha: float = 0.2
    """Share of the signal, above 0 and up to 1."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"trigger.alpha is {self.alpha}; it is the signal's share, above 0 and up to 1.")
        if not 0 < self.amplitude <= 255:
            raise InputError(f"trigger.amplitude is {self.amplitude}; accepted is above 0 and up to 255 grey levels.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        width = image_HWC.shape[1]
        table = _blends(self, width)
        return table.ravel().take(np.arange(0, table.size, 256, dtype=np.int32)[None, :, None] + image_HWC)


@lru_cache(maxsize=4)
def _blends(trigger: Sig, width: int) -> np.ndarray:
    """uint8 [W, 256]: the new value of each grey level in each column."""
    signal_W = trigger.amplitude * np.sin(2 * np.pi * trigger.frequency * np.arange(width) / width)
    blend_WV = trigger.alpha * signal_W[:, None] + (1 - trigger.alpha) * np.arange(256)
    return np.rint(blend_WV).clip(0, 255).astype(np.uint8)
