"""The attack of Carlini and Wagner (2017) for the L2 norm.

Shape suffixes: b pictures that still need work, B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from datasets.component import Count, NotNegative, Positive
from trainers.audit.attacks.base import margin
from trainers.audit.attacks.work import Search, Work, wide

INSIDE = 0.999999
"""Pictures are drawn together by this factor (less for half precision) before arctanh, which is infinite at the ends."""
LARGEST = 1e10
"""c grows to this at most."""


@dataclass
class Descent:
    """Adam for each picture."""

    at: Tensor
    """its position in the batch"""
    free: Tensor
    """w, of which the picture is ½(tanh w + 1)"""
    first: Tensor
    second: Tensor
    """Adam's running means of the gradient and of its square"""
    last: Tensor
    """the loss when it was last looked at"""

    def only(self, left_b: Tensor) -> Descent:
        """Those pictures alone."""
        return Descent(*(getattr(self, field.name)[left_b] for field in fields(self)))


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Search):
    """‖x' − x‖₂² + c·max(z_y − max of the others, −κ) is made small by Adam over w, with x' = ½(tanh w + 1), for several c.

    z are logits. c is multiplied by 10 until the picture fools with a margin of κ, then searched by bisection; the nearest picture that
    fooled so is the result. A search ends early for a picture whose loss has not fallen by a ten-thousandth over a tenth of the steps. It
    draws nothing at random. At most searches·steps queries.
    """

    norm: ClassVar[str] = "l2"
    minimal: ClassVar[bool] = True
    kappa: NotNegative = 0.0
    """κ, the margin by which the other class must win"""
    c: Positive = 1e-3
    """the first c"""
    searches: Count = 9
    """number of values of c"""
    steps: Count = 1000
    """steps of Adam for each c"""
    lr: Positive = 0.01
    """Adam's learning rate"""

    def search(self, work: Work) -> None:
        c_B = torch.full_like(work.score_B, self.c)
        low_B, high_B = torch.zeros_like(c_B), torch.full_like(c_B, torch.inf)
        for _ in range(self.searches):
            found_B = self._descend(work, c_B)
            high_B = torch.where(found_B, torch.minimum(high_B, c_B), high_B)
            low_B = torch.where(found_B, low_B, torch.maximum(low_B, c_B))
            c_B = torch.where(high_B.isinf(), (10 * c_B).clamp_max(min(LARGEST, torch.finfo(c_B.dtype).max)), (low_B + high_B) / 2)

    def _descend(self, work: Work, c_B: Tensor) -> Tensor:
        """bool [B]: the picture fooled with this c."""
        free_BCHW = torch.atanh((2 * work.start_BCHW - 1) * min(INSIDE, 1 - torch.finfo(c_B.dtype).eps))
        zero_BCHW = torch.zeros_like(free_BCHW)
        state = Descent(work.all_B, free_BCHW, zero_BCHW, zero_BCHW, torch.full_like(c_B, torch.inf))
        found_B = torch.zeros_like(work.fooled_B)
        look = max(1, self.steps // 10)
        for step in range(1, self.steps + 1):
            start_bCHW, label_b, c_b = work.start_BCHW[state.at], work.label_B[state.at], c_B[state.at]
            picture_bCHW = (torch.tanh(state.free) + 1) / 2
            change_bCHW = picture_bCHW - start_bCHW
            square_b = change_bCHW.square().flatten(1).sum(1)

            def loss(logit_bK: Tensor, label_b: Tensor = label_b) -> Tensor:
                return margin(logit_bK, label_b)

            _, margin_b, slope_bCHW = work.climb(picture_bCHW, state.at, loss)
            fooled_b = (margin_b > 0) & (margin_b >= self.kappa)
            work.keep(picture_bCHW[fooled_b], -square_b.sqrt()[fooled_b], fooled_b[fooled_b], state.at[fooled_b])
            found_B[state.at[fooled_b]] = True
            slope_bCHW = 2 * change_bCHW - wide(c_b * (margin_b < self.kappa)) * slope_bCHW
            slope_bCHW = slope_bCHW * 2 * picture_bCHW * (1 - picture_bCHW)  # ∂x'/∂w = ½(1 − tanh²w) = 2x'(1 − x')
            self._adam(state, slope_bCHW, step)
            if step % look == 0:
                loss_b = square_b + c_b * (self.kappa - margin_b).clamp_min(0)
                left_b = loss_b <= 0.9999 * state.last
                state.last = loss_b
                state = state.only(left_b)
                if not len(state.at):
                    break
        return found_B

    def _adam(self, state: Descent, slope_bCHW: Tensor, step: int) -> None:
        state.first = 0.9 * state.first + 0.1 * slope_bCHW
        state.second = 0.999 * state.second + 0.001 * slope_bCHW.square()
        mean_bCHW, square_bCHW = state.first / (1 - 0.9**step), state.second / (1 - 0.999**step)
        state.free = state.free - self.lr * mean_bCHW / (square_bCHW.sqrt() + 1e-8)
