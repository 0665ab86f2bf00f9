"""The fast gradient sign method (Goodfellow et al. 2015): one step of length ε.

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trainers.audit.attacks.base import project, steepest
from trainers.audit.attacks.work import Ascent, Work


@dataclass(frozen=True, kw_only=True)
class FGSM(Ascent):
    """x + ε·sign(∇ₓ loss) for linf, x + ε·∇ₓ loss/‖∇ₓ loss‖₂ for l2, cut to 0 … 1. One query."""

    @property
    def label(self) -> str:
        return self.called

    def ascend(self, work: Work) -> None:
        def loss(logit_BK: Tensor) -> Tensor:
            return self.value(logit_BK, self.aims(logit_BK, work.label_B))

        _, _, slope_BCHW = work.climb(work.start_BCHW, work.all_B, loss)
        work.best_BCHW = project(work.start_BCHW + self.eps * steepest(slope_BCHW, self.norm), work.start_BCHW, self.eps, self.norm)
