"""The interface of a defence at test time: something that is done to a picture before it is classified.

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from datasets.component import Component
from datasets.seeding import rng
from trainers.audit.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Defence(Component, ABC):
    """Transforms pictures before they are classified. To add one, subclass this in its own file.

    An oblivious attacker attacks the bare classifier. An adaptive one attacks `guard`'s: through random parts with EOT, through parts
    without a gradient with BPDA (`defences/adaptive.py`).
    """

    seed: int = 0
    random: ClassVar[bool] = False
    """Whether two calls of the same picture may differ."""
    differentiable: ClassVar[bool] = True
    """Whether `apply` has a useful gradient; else adaptive attackers use that of `surrogate`."""

    @abstractmethod
    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        """The transformed pictures, floats [B, C, H, W] in 0 … 1. `draws`: the random numbers of each picture. `classifier`: the one that
        is defended, for defences that look at it."""

    def ready(self, image_NHWC: np.ndarray) -> Defence:
        """The defence with what it needs of clean pictures (uint8 [N, H, W, 3]); most need nothing and are returned as they are."""
        return self

    def surrogate(self, picture_BCHW: Tensor) -> Tensor:
        """A differentiable stand-in for `apply`, whose gradient BPDA uses; by default the picture itself."""
        return picture_BCHW

    def guard(self, classifier: Classifier, first: int = 0) -> Classifier:
        """The defended classifier. Each call for a key takes fresh draws, by (seed, defence, key, number of the call for that key); `first`
        is the number of the first call."""
        calls: Counter[str] = Counter()

        def logits(picture_BCHW: Tensor, keys_B: Sequence[str]) -> Tensor:
            draws = [self._draw(key, calls, first) for key in keys_B]
            return self.classify(classifier, picture_BCHW, keys_B, draws)

        return Classifier(logits, classifier.classes, classifier.device, classifier.dtype)

    def classify(
        self, classifier: Classifier, picture_BCHW: Tensor, keys_B: Sequence[str], draws: Sequence[np.random.Generator]
    ) -> Tensor:
        """Logits [B, K] of the defended classifier; a defence that averages over several views overrides this."""
        return classifier(self.apply(picture_BCHW, draws, classifier), keys_B)

    def _draw(self, key: str, calls: Counter[str], first: int) -> np.random.Generator:
        number, calls[key] = first + calls[key], calls[key] + 1
        return rng(self.seed, type(self).id, key, number)
