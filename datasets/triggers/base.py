"""What every trigger is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from datasets.component import Component


@dataclass(frozen=True, kw_only=True)
class Trigger(Component, ABC):
    """A mark that is put on a picture's canonical view, so that all of it is seen at evaluation.

    Shape legend: H height, W width (both the view's side S on canonical views), C = 3 channels.
    """

    @abstractmethod
    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A new uint8 [H, W, 3] array with the mark on it; `image_HWC` (uint8 RGB) is left as it was.

        `rng` gives the noise and the place where they are drawn anew for each picture, and nothing else does.
        """

    def check(self, size: int) -> None:  # noqa: B027 (most triggers fit every view)
        """Raise InputError if the trigger does not fit a view of `size` pixels a side."""
