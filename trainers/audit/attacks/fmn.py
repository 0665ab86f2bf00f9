"""Fast minimum-norm attack (Pintor et al. 2021): the smallest change that fools, and from it robust accuracy at every ε.

Shape suffixes: b pictures that still need work, N pictures, E values of ε, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from datasets.component import Count, Positive
from trainers.audit.attacks.base import Norm, lengths, margin
from trainers.audit.attacks.work import Search, Work, wide

Factor = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class FMN(Search):
    """Steps along the gradient of the margin within a radius r of its own for each picture, which shrinks by the factor 1 − γ where the
    picture fools and grows by 1 + γ where it does not.

    Before a picture has fooled for the first time, r is 1 + γ times the length of its change plus the distance to the linearised boundary,
    |margin|/‖gradient‖ in the dual norm, or 1 + γ times r, whichever is more (the paper's r has no such factor: it ends exactly on the
    boundary of a linear classifier and stays there). Pixels that the box stops are left out of the gradient (the paper's r never gets long
    enough where the box stops many of them). α and γ fall to their final values along half a cosine. Nothing is drawn at random. steps + 1
    queries.
    """

    norm: Norm = "l2"  # type: ignore[misc]
    """which norm of the change is to be small"""
    minimal: ClassVar[bool] = True
    steps: Count = 100
    """number of steps"""
    alpha: Positive = 1.0
    """length (in l2) of the first step; the last is a hundredth of it"""
    gamma: Factor = 0.05
    """γ of the first step"""
    last_gamma: Factor = 0.001
    """γ of the last step"""

    def search(self, work: Work) -> None:
        at_b, start_bCHW = work.all_B, work.start_BCHW
        here_bCHW = start_bCHW
        widest_b = lengths(torch.maximum(start_bCHW, 1 - start_bCHW), self.norm)
        radius_b = torch.full_like(widest_b, torch.inf)
        for step in range(self.steps + 1):
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            alpha = self.alpha * (0.01 + 0.99 * cosine)
            gamma = self.last_gamma + (self.gamma - self.last_gamma) * cosine
            change_bCHW, label_b = here_bCHW - start_bCHW, work.label_B[at_b]

            def loss(logit_bK: Tensor, label_b: Tensor = label_b) -> Tensor:
                return margin(logit_bK, label_b)

            if step == self.steps:
                margin_b = margin(work.logits(here_bCHW, at_b), label_b)
            else:
                _, margin_b, slope_bCHW = work.climb(here_bCHW, at_b, loss)
            fooled_b, long_b = margin_b > 0, lengths(change_bCHW, self.norm)
            work.keep(here_bCHW[fooled_b], -long_b[fooled_b], fooled_b[fooled_b], at_b[fooled_b])
            if step == self.steps:
                return
            if step == 0 and fooled_b.any():  # nothing is smaller than no change
                left_b = ~fooled_b
                at_b, start_bCHW, here_bCHW = at_b[left_b], start_bCHW[left_b], here_bCHW[left_b]
                change_bCHW, slope_bCHW = change_bCHW[left_b], slope_bCHW[left_b]
                margin_b, fooled_b, long_b, widest_b, radius_b = (v[left_b] for v in (margin_b, fooled_b, long_b, widest_b, radius_b))
            if not len(at_b):
                return
            slope_bCHW = torch.where(_stopped(here_bCHW, slope_bCHW), 0, slope_bCHW)
            radius_b = self._radius(work, at_b, radius_b, gamma, fooled_b, long_b + margin_b.abs() / _positive(self._dual(slope_bCHW)))
            radius_b = torch.minimum(radius_b, widest_b)
            change_bCHW = change_bCHW + alpha * slope_bCHW / wide(_positive(lengths(slope_bCHW, "l2")))
            if self.norm == "linf":
                change_bCHW = change_bCHW.clamp(-wide(radius_b), wide(radius_b))
            else:
                change_bCHW = change_bCHW * wide((radius_b / _positive(lengths(change_bCHW, "l2"))).clamp_max(1))
            here_bCHW = (start_bCHW + change_bCHW).clamp(0, 1)

    def _radius(self, work: Work, at_b: Tensor, radius_b: Tensor, gamma: float, fooled_b: Tensor, linear_b: Tensor) -> Tensor:
        """The next radius: smaller where the picture fools, larger where it once did, else just beyond the linearised boundary."""
        smallest_b = torch.where(work.fooled_B[at_b], -work.score_B[at_b], torch.inf)
        first_b = (1 + gamma) * torch.where(radius_b.isinf(), linear_b, torch.maximum(radius_b, linear_b))
        smaller_b = torch.minimum(radius_b * (1 - gamma), smallest_b)
        return torch.where(fooled_b, smaller_b, torch.where(work.fooled_B[at_b], radius_b * (1 + gamma), first_b))

    def _dual(self, slope_bCHW: Tensor) -> Tensor:
        """The norm that is dual to `norm`: l1 for linf."""
        return slope_bCHW.flatten(1).abs().sum(1) if self.norm == "linf" else lengths(slope_bCHW, "l2")


def robust_accuracy(distance_N: np.ndarray, eps_E: Sequence[float]) -> np.ndarray:
    """Share of pictures that no change of length ε fools, for each ε, floats [E] of 0 … 1.

    `distance_N`: the length of the smallest change that fools each picture; 0 for one that is misclassified anyway, infinite for one that
    was never fooled. The norm is that of the attack.
    """
    ordered_N = np.sort(np.asarray(distance_N, np.float64))
    return 1 - np.searchsorted(ordered_N, np.asarray(eps_E, np.float64), side="right") / len(ordered_N)


def _stopped(picture_bCHW: Tensor, slope_bCHW: Tensor) -> Tensor:
    """bool [b, C, H, W]: the pixel is at the end to which the gradient pushes it."""
    return ((picture_bCHW >= 1) & (slope_bCHW > 0)) | ((picture_bCHW <= 0) & (slope_bCHW < 0))


def _positive(value_b: Tensor) -> Tensor:
    return value_b.clamp_min(torch.finfo(value_b.dtype).tiny)
