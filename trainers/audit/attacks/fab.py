"""Fast adaptive boundary attack (Croce and Hein 2020), aimed at one class after another (FAB-T, as in AutoAttack).

Shape suffixes: b pictures that still need work, C channels, H and W height and width, K classes, T target classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from datasets.component import Count, Share
from trainers.audit.attacks.base import Distance, Norm, lengths, margin
from trainers.audit.attacks.plane import onto_plane
from trainers.audit.attacks.work import Search, Work, likeliest, wide


@dataclass(frozen=True, kw_only=True)
class FAB(Search):
    """The smallest change that makes another class win, by going along the linearised boundary between the label and a target class.

    With d the step from x to the boundary within the box and d₀ that from the original picture x₀, a = min(‖d‖/(‖d‖ + ‖d₀‖), α) and
    x ← (1 − a)·(x + η·d) + a·(x₀ + η·d₀). A picture that fools is kept if it is nearer than those before, and the next step begins at
    x₀ + β·(x − x₀). It draws nothing at random.

    1 query, and for each target class 2 a step: one with a gradient, one that looks whether the step has fooled the classifier.
    """

    norm: Norm = "l2"  # type: ignore[misc]
    """which norm of the change is to be small"""
    minimal: ClassVar[bool] = True
    targets: Count = 9
    """number of target classes, the likeliest wrong ones; all if there are fewer"""
    steps: Count = 100
    """steps towards each class"""
    alpha: Share = 0.1
    """α, the largest pull back to the original picture"""
    eta: Annotated[float, Ge(1)] = 1.05
    """η, how far to step beyond the boundary"""
    beta: Share = 0.9
    """β, how much of the change is kept after a picture has fooled"""
    enough: Distance = 0.0
    """leave a picture alone once a change this small fools; 0: always look for a smaller one"""

    def search(self, work: Work) -> None:
        logit_BK = work.logits(work.start_BCHW, work.all_B)
        wrong_B = margin(logit_BK, work.label_B) > 0
        work.keep(work.start_BCHW, torch.where(wrong_B, 0, -torch.inf).to(logit_BK), wrong_B, work.all_B)
        for aim_B in likeliest(logit_BK, work.label_B, self.targets).unbind(1):
            self._towards(work, aim_B)

    def _towards(self, work: Work, aim_B: Tensor) -> None:
        at_b = self._left(work, work.all_B).nonzero()[:, 0]
        x_bCHW = work.start_BCHW[at_b]
        for _ in range(self.steps):
            if not len(at_b):
                return
            start_bCHW, pair_b2 = work.start_BCHW[at_b], torch.stack([aim_B[at_b], work.label_B[at_b]], 1)

            def lead(logit_bK: Tensor, pair_b2: Tensor = pair_b2) -> Tensor:
                aim_b, own_b = logit_bK.gather(1, pair_b2).unbind(1)
                return aim_b - own_b

            _, lead_b, slope_bCHW = work.climb(x_bCHW, at_b, lead)
            from_start_b = ((x_bCHW - start_bCHW) * slope_bCHW).flatten(1).sum(1) - lead_b
            step_bCHW = onto_plane(x_bCHW, slope_bCHW, -lead_b, self.norm)
            start_step_bCHW = onto_plane(start_bCHW, slope_bCHW, from_start_b, self.norm)
            long_b, start_long_b = (lengths(value, self.norm).clamp_min(1e-7) for value in (step_bCHW, start_step_bCHW))
            a_b = wide((long_b / (long_b + start_long_b)).clamp_max(self.alpha))
            x_bCHW = (1 - a_b) * (x_bCHW + self.eta * step_bCHW) + a_b * (start_bCHW + self.eta * start_step_bCHW)
            x_bCHW = x_bCHW.clamp(0, 1)
            fooled_b = margin(work.logits(x_bCHW, at_b), work.label_B[at_b]) > 0
            work.keep(x_bCHW[fooled_b], -lengths(x_bCHW - start_bCHW, self.norm)[fooled_b], fooled_b[fooled_b], at_b[fooled_b])
            x_bCHW = torch.where(wide(fooled_b), start_bCHW + self.beta * (x_bCHW - start_bCHW), x_bCHW)
            left_b = self._left(work, at_b)
            if not left_b.all():
                at_b, x_bCHW = at_b[left_b], x_bCHW[left_b]

    def _left(self, work: Work, at_b: Tensor) -> Tensor:
        """bool [b]: a smaller change is worth looking for."""
        return -work.score_B[at_b] > self.enough
