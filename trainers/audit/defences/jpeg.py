"""JPEG compression before classification (Das et al. 2017; Guo et al. 2018)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image
from torch import Tensor

from trainers.audit.classifier import Classifier, as_bytes, as_floats
from trainers.audit.defences.base import Defence
from trainers.audit.defences.soft_jpeg import soft_jpeg


@dataclass(frozen=True, kw_only=True)
class JPEG(Defence):
    """Rounds the picture to bytes, compresses it as JPEG and decodes it, both with Pillow."""

    quality: Annotated[int, Interval(ge=1, le=100)] = 75
    """Pillow's quality; 75 is what Guo et al. use."""
    backward: Literal["formula", "identity"] = "formula"
    """What an adaptive attacker differentiates in its place: JPEG as a formula with a gradient, or nothing, a much weaker attack."""
    differentiable: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return f"JPEG{self.quality}"

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        seen_BHWC = np.stack([self.compressed(image_HWC) for image_HWC in as_bytes(picture_BCHW).numpy()])
        return as_floats(torch.from_numpy(seen_BHWC).to(picture_BCHW.device), picture_BCHW.dtype)

    def surrogate(self, picture_BCHW: Tensor) -> Tensor:
        return soft_jpeg(picture_BCHW, self.quality) if self.backward == "formula" else picture_BCHW

    def compressed(self, image_HWC: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W, 3], compressed and decoded."""
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, "JPEG", quality=self.quality)
        with Image.open(file) as decoded:
            return np.array(decoded)
