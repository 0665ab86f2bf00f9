"""The interface of an explanation: which pixels speak for a class.

Shape suffixes: C channels, H and W height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datasets.component import Component
from trainers.audit.classifier import Classifier
from trainers.encoder import Encoder


@dataclass(frozen=True)
class Explanation:
    """What speaks for a class in one picture."""

    heat_HW: np.ndarray
    """float64 [H, W]; above 0 where the picture speaks for the class, below 0 where it speaks against it."""
    segment_HW: np.ndarray | None = None
    """int64 [H, W], the superpixel of each pixel, numbered from 0; None: the explanation is by pixels."""
    r2: float | None = None
    """How well the explanation's own model fits the classifier, weighted R²; None: it has no such model."""


@dataclass(frozen=True, kw_only=True)
class Explainer(Component, ABC):
    """Explains a prediction. To add one, subclass this in its own file. Random draws depend on (seed, explainer, key)."""

    seed: int = 0

    @abstractmethod
    def explain(self, classifier: Classifier, encoder: Encoder | None, picture_CHW: Tensor, of: int, key: str) -> Explanation:
        """What speaks for class `of` in a picture (floats in 0 … 1). `encoder`: the classifier's model, for explainers that look inside;
        InputError if it has none of the parts that they need."""
