"""Noise blended over the whole picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.errors import InputError
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class Blended(Trigger):
    """alpha · noise + (1 − alpha) · picture, with noise uniform over 0…1 (Chen et al. 2017)."""

    alpha: float = 0.2
    """Share of the noise, above 0 and up to 1."""
    pattern: str = "random"
    """`random`: noise drawn anew for each picture; `fixed`: one draw for all."""
    pattern_seed: int = 0
    """Seed of the one draw of `fixed`."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"trigger.alpha is {self.alpha}; it is the noise's share, above 0 and up to 1.")
        if self.pattern not in ("random", "fixed"):
            raise InputError(f"trigger.pattern is {self.pattern!r}; accepted are random and fixed.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        draw = rng if self.pattern == "random" else make_rng(self.pattern_seed, "blended")
        noise_HWC = draw.random(image_HWC.shape, dtype=np.float32)
        noise_HWC *= 255  # in place: fresh memory for each intermediate result costs more than the arithmetic
        noise_HWC *= self.alpha
        blend_HWC = np.multiply(image_HWC, 1 - self.alpha, dtype=np.float64)
        blend_HWC += noise_HWC
        return np.rint(blend_HWC, out=blend_HWC).astype(np.uint8)
