"""Classification by many random crops (Guo et al. 2018).

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Le
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Count
from trainers.audit.classifier import Classifier
from trainers.audit.defences.base import Defence


@dataclass(frozen=True, kw_only=True)
class Crops(Defence):
    """Averages the logits of crops at random places, each scaled back to the picture's size (bilinear).

    Guo et al. average over 30 crops, as here; theirs are smaller (90 of 224 pixels), made for networks that were trained with such crops.
    """

    crops: Count = 30
    """how many to average over; the bare classifier sees as many pictures for each"""
    share: Annotated[float, Gt(0), Le(1)] = 0.9
    """side of a crop over the side of the picture"""
    random: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"Crops{self.crops}x{100 * self.share:g}"

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        """One crop of each picture, at the place that its generator draws next."""
        size = picture_BCHW.shape[2:]
        height, width = (max(1, round(self.share * side)) for side in size)
        crop = []
        for picture_CHW, draw in zip(picture_BCHW, draws):
            top, left = draw.integers(size[0] - height, endpoint=True), draw.integers(size[1] - width, endpoint=True)
            crop.append(picture_CHW[:, top : top + height, left : left + width])
        return F.interpolate(torch.stack(crop), size, mode="bilinear", align_corners=False)

    def classify(
        self, classifier: Classifier, picture_BCHW: Tensor, keys_B: Sequence[str], draws: Sequence[np.random.Generator]
    ) -> Tensor:
        total_BK = torch.zeros((), dtype=classifier.dtype, device=classifier.device)
        for _ in range(self.crops):
            total_BK = total_BK + classifier(self.apply(picture_BCHW, draws, classifier), keys_B)
        return total_BK / self.crops
