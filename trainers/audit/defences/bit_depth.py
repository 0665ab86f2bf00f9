"""Fewer grey levels before classification (Xu, Evans and Qi 2018; Guo et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Interval
from torch import Tensor

from trainers.audit.classifier import Classifier
from trainers.audit.defences.base import Defence


@dataclass(frozen=True, kw_only=True)
class BitDepth(Defence):
    """Rounds every value to the nearest of 2^bits levels, spread evenly from 0 to 1: round(x·(2^bits − 1))/(2^bits − 1)."""

    bits: Annotated[int, Interval(ge=1, le=8)] = 3
    """3 bits are 8 levels."""
    differentiable: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return f"BitDepth{self.bits}"

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        steps = 2**self.bits - 1
        return (picture_BCHW * steps).round() / steps
