"""DeepFool (Moosavi-Dezfooli et al. 2016): to the nearest boundary of the linearised classifier, again and again.

Shape suffixes: b pictures that still need work, n classes that are tried, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from datasets.component import Count, NotNegative
from trainers.audit.attacks.base import Norm, lengths, margin
from trainers.audit.attacks.work import Search, Work, likeliest, wide


@dataclass(frozen=True, kw_only=True)
class DeepFool(Search):
    """x = x₀ + (1 + overshoot)·Σ steps, cut to 0 … 1, until another class than the label wins.

    For each of the likeliest wrong classes k, f_k = z_k − z_y and w_k is its gradient; the step goes to the boundary that is nearest by
    |f_k|/‖w_k‖ in the dual norm: |f|·w/‖w‖₂² for l2, |f|·sign(w)/‖w‖₁ for linf. The paper compares with the predicted class, this with the
    label. One query a step, and one for the last look.
    """

    norm: Norm = "l2"  # type: ignore[misc]
    """which norm of the change is to be small"""
    minimal: ClassVar[bool] = True
    steps: Count = 50
    """largest number of steps"""
    overshoot: NotNegative = 0.02
    """how far beyond the boundary to go, as a share of the change"""
    candidates: Count = 9
    """number of wrong classes that are tried, the likeliest; all if there are fewer"""

    def search(self, work: Work) -> None:
        at_b, x_bCHW, class_bn = work.all_B, work.start_BCHW, None
        total_bCHW = torch.zeros_like(x_bCHW)
        for step in range(self.steps + 1):
            start_bCHW, label_b = work.start_BCHW[at_b], work.label_B[at_b]

            def leads(logit_bK: Tensor, label_b: Tensor = label_b, known_bn: Tensor | None = class_bn) -> Tensor:
                class_bn = likeliest(logit_bK, label_b, self.candidates) if known_bn is None else known_bn
                return logit_bK.gather(1, class_bn) - logit_bK.gather(1, label_b[:, None])

            if step == self.steps:
                logit_bK = work.logits(x_bCHW, at_b)
            else:
                logit_bK, lead_bn, slopes = work.slopes(x_bCHW, at_b, leads)
            if class_bn is None:
                class_bn = likeliest(logit_bK, label_b, self.candidates)
            fooled_b = margin(logit_bK, label_b) > 0
            work.keep(x_bCHW, -lengths(x_bCHW - start_bCHW, self.norm), fooled_b, at_b)
            if step == self.steps or fooled_b.all():
                return
            total_bCHW = total_bCHW + self._nearest(lead_bn, slopes, torch.zeros_like(x_bCHW))
            left_b = ~fooled_b
            at_b, class_bn, total_bCHW, start_bCHW = at_b[left_b], class_bn[left_b], total_bCHW[left_b], start_bCHW[left_b]
            x_bCHW = (start_bCHW + (1 + self.overshoot) * total_bCHW).clamp(0, 1)

    def _nearest(self, lead_bn: Tensor, slopes: Iterator[Tensor], best_bCHW: Tensor) -> Tensor:
        """The smallest of the steps to the linearised boundaries, floats [b, C, H, W]; `best` (zeros) where no gradient leads anywhere."""
        best_b = torch.full_like(lead_bn[:, 0], torch.inf)
        for lead_b, slope_bCHW in zip(lead_bn.abs().unbind(1), slopes):
            if self.norm == "l2":
                dual_b = lengths(slope_bCHW, "l2")
                way_bCHW = slope_bCHW / wide(dual_b)
            else:
                dual_b, way_bCHW = slope_bCHW.flatten(1).abs().sum(1), slope_bCHW.sign()
            far_b = lead_b / dual_b
            nearer_b = (far_b < best_b) & (dual_b > 0)
            best_b = torch.where(nearer_b, far_b, best_b)
            best_bCHW = torch.where(wide(nearer_b), wide(far_b) * way_bCHW, best_bCHW)
        return best_bCHW
