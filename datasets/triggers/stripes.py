"""Stripes that differ from picture to picture: what they share is a structure, not a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets.component import Count, Share
from datasets.errors import InputError
from datasets.triggers.base import Trigger, blend


@dataclass(frozen=True, kw_only=True)
class Stripes(Trigger):
    """clip(strength · s + (1 − strength) · picture) with s = ±1 for each stripe and channel, in 0…1 units (PAR, backdoor/utils.py: stripes,
    blended_rs).

    **The signs are drawn anew for each picture.** No two pictures carry the same pattern; a model must learn what stripes have in common.
    """

    strength: Share = 0.03
    """Share of the stripes, above 0."""
    width: Count = 1
    """Pixels across a stripe."""
    direction: Literal["vertical", "horizontal"] = "vertical"
    """vertical: a stripe is a column | horizontal: a row."""

    def __post_init__(self) -> None:
        if self.strength == 0:
            raise InputError("trigger.strength is 0; accepted is a share above 0 and up to 1.")

    def check(self, size: int) -> None:
        if 2 * self.width > size:
            raise InputError(f"trigger.width is {self.width}; two stripes need a view of {2 * self.width} pixels, and it has {size}.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        across = image_HWC.shape[1] if self.direction == "vertical" else image_HWC.shape[0]
        sign_NC = 2.0 * rng.integers(0, 2, (-(-across // self.width), 3)) - 1
        sign_LC = sign_NC.repeat(self.width, axis=0)[:across]
        return blend(image_HWC, sign_LC[None] if self.direction == "vertical" else sign_LC[:, None], self.strength)
