"""Total-variation minimisation from half of the values (Guo et al. 2018).

Shape suffixes: B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor

from datasets.component import Count, Positive
from trainers.audit.classifier import Classifier
from trainers.audit.defences.base import Defence

PRIMAL = 2.0
"""Step of the pictures in the search; that of the dual variables is 1/(8·PRIMAL). It changes the speed, not the minimum."""


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Defence):
    """Forgets a random half of a picture's values and replaces the picture by the smoothest one that is near the others.

    It is the z that minimises ½·Σ_kept (z − x)² + weight·TV(z), with TV(z) = Σ √((∂_y z)² + (∂_x z)²) over the pixels of every channel
    (Rudin, Osher and Fatemi 1992). Each value of each channel is forgotten by itself, as in Guo et al.
    """

    drop: Annotated[float, Ge(0), Lt(1)] = 0.5
    """probability that a value is forgotten"""
    weight: Positive = 0.03
    """λ, the weight of the total variation, for values of 0 … 1"""
    steps: Count = 150
    """of the search for the minimum"""
    random: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        kept = np.stack([draw.random(picture_BCHW.shape[1:]) >= self.drop for draw in draws])
        return smoothest(picture_BCHW.detach(), torch.from_numpy(kept).to(picture_BCHW), self.weight, self.steps).clamp(0, 1)


def smoothest(picture_BCHW: Tensor, kept_BCHW: Tensor, weight: float, steps: int) -> Tensor:
    """The minimum over z of ½·Σ kept·(z − x)² + weight·TV(z), by the primal-dual steps of Chambolle and Pock (2011), floats [B, C, H, W].

    `kept`: 1 or 0. Values that are not kept have no influence, not even on the start, which is the mean of the channel's kept values.
    """
    known_BCHW = kept_BCHW * picture_BCHW
    mean_BC11 = known_BCHW.sum((2, 3), keepdim=True) / kept_BCHW.sum((2, 3), keepdim=True).clamp_min(1)
    z_BCHW = known_BCHW + (1 - kept_BCHW) * mean_BC11
    ahead_BCHW = z_BCHW
    down_BCHW, right_BCHW = torch.zeros_like(z_BCHW), torch.zeros_like(z_BCHW)  # the dual variables, at most `weight` long
    dual = 1 / (8 * PRIMAL)  # 8 bounds the squared norm of the gradient operator
    for _ in range(steps):
        down_BCHW[:, :, :-1] += dual * ahead_BCHW.diff(dim=2)
        right_BCHW[..., :-1] += dual * ahead_BCHW.diff(dim=3)
        shrink_BCHW = ((down_BCHW.square() + right_BCHW.square()).sqrt() / weight).clamp_min(1)
        down_BCHW, right_BCHW = down_BCHW / shrink_BCHW, right_BCHW / shrink_BCHW
        before_BCHW = z_BCHW
        free_BCHW = before_BCHW + PRIMAL * divergence(down_BCHW, right_BCHW)
        z_BCHW = (free_BCHW + PRIMAL * known_BCHW) / (1 + PRIMAL * kept_BCHW)
        ahead_BCHW = 2 * z_BCHW - before_BCHW
    return z_BCHW


def divergence(down_BCHW: Tensor, right_BCHW: Tensor) -> Tensor:
    """Minus the adjoint of the forward differences; the last row of `down` and the last column of `right` are 0."""
    out_BCHW = down_BCHW + right_BCHW
    out_BCHW[:, :, 1:] -= down_BCHW[:, :, :-1]
    out_BCHW[..., 1:] -= right_BCHW[..., :-1]
    return out_BCHW
