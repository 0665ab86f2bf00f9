"""Projected gradient descent (Madry et al. 2018): FGSM in small steps from random starts.

Shape suffixes: b pictures that still need work, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.component import Count, NotNegative
from trainers.audit.attacks.base import lengths, project, steepest
from trainers.audit.attacks.work import Ascent, Work, wide


@dataclass(frozen=True, kw_only=True)
class PGD(Ascent):
    """x ← project(x + α·step) from a random point within ε, several times over; the best of all pictures on the way is the result.

    steps + 1 queries a restart of a picture that is never fooled, and one more to find the likeliest or the least likely class.
    """

    steps: Count = 20
    """steps of each restart"""
    alpha: NotNegative | None = None
    """length of a step; none: 2.5·ε/steps"""
    restarts: Count = 1
    """number of starts"""
    random_start: bool = True
    """start at a uniformly drawn point within ε; false: at the picture"""
    stop: bool = True
    """leave a picture alone as soon as it is fooled; false: go on to the end of all restarts and keep the try with the largest margin"""

    @property
    def label(self) -> str:
        return self.called

    def ascend(self, work: Work) -> None:
        alpha = 2.5 * self.eps / self.steps if self.alpha is None else self.alpha
        aim_B = self.known(work.label_B)
        if aim_B is None:
            aim_B = self.aims(work.logits(work.start_BCHW, work.all_B), work.label_B)
        for restart in range(self.restarts):
            at_b = work.standing_b if self.stop else work.all_B
            if not len(at_b):
                break
            self._run(work, at_b, aim_B, alpha, restart)

    def _run(self, work: Work, at_b: Tensor, aim_B: Tensor, alpha: float, restart: int) -> None:
        around_bCHW = work.start_BCHW[at_b]
        here_bCHW = around_bCHW
        if self.random_start:
            here_bCHW = project(around_bCHW + self._starts(work, at_b, restart), around_bCHW, self.eps, self.norm)
        for step in range(self.steps + 1):
            aim_b = aim_B[at_b]

            def loss(logit_bK: Tensor, aim_b: Tensor = aim_b) -> Tensor:
                return self.value(logit_bK, aim_b)

            if step == self.steps:
                logit_bK = work.logits(here_bCHW, at_b)
            else:
                logit_bK, _, slope_bCHW = work.climb(here_bCHW, at_b, loss)
            score_b = self.score(logit_bK, aim_b)
            work.keep(here_bCHW, score_b, score_b > 0, at_b)
            if step == self.steps:
                return
            if self.stop and (score_b > 0).any():
                left_b = score_b <= 0
                at_b, here_bCHW, around_bCHW, slope_bCHW = at_b[left_b], here_bCHW[left_b], around_bCHW[left_b], slope_bCHW[left_b]
                if not len(at_b):
                    return
            here_bCHW = project(here_bCHW + alpha * steepest(slope_bCHW, self.norm), around_bCHW, self.eps, self.norm)

    def _starts(self, work: Work, at_b: Tensor, restart: int) -> Tensor:
        """Changes drawn uniformly from all within ε."""
        shape = work.start_BCHW.shape[1:]
        draws = [self.draw(key, "start", restart) for key in work.keys(at_b)]
        if self.norm == "linf":
            return self.eps * tensor(np.stack([draw.uniform(-1, 1, shape) for draw in draws]), work)
        way_bCHW = torch.from_numpy(np.stack([draw.standard_normal(shape) for draw in draws]))
        far_b = torch.from_numpy(np.stack([draw.random(1) for draw in draws]))[:, 0] ** (1 / shape.numel())
        return (self.eps * wide(far_b / lengths(way_bCHW, "l2")) * way_bCHW).to(work.start_BCHW)


def tensor(value: np.ndarray, work: Work) -> Tensor:
    """As a tensor of the pictures' type on their device."""
    return torch.from_numpy(value).to(work.start_BCHW)
