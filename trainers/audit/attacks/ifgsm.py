"""FGSM in small steps (Kurakin et al. 2017).

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from datasets.component import Count, NotNegative
from trainers.audit.attacks.base import project, steepest
from trainers.audit.attacks.work import Ascent, Work


@dataclass(frozen=True, kw_only=True)
class IFGSM(Ascent):
    """x ← project(x + α·step) from the picture itself, where step is FGSM's. The last picture is the result, as published, even if an
    earlier one was better. One query a step."""

    steps: Count = 10
    """number of steps"""
    alpha: NotNegative | None = None
    """length of a step; none: ε/4"""

    @property
    def label(self) -> str:
        return self.called

    def ascend(self, work: Work) -> None:
        alpha = self.eps / 4 if self.alpha is None else self.alpha
        aim_B = self.known(work.label_B)

        def loss(logit_BK: Tensor) -> Tensor:
            nonlocal aim_B
            if aim_B is None:  # the first step's logits are those of the unchanged pictures
                aim_B = self.aims(logit_BK, work.label_B)
            return self.value(logit_BK, aim_B)

        for _ in range(self.steps):
            _, _, slope_BCHW = work.climb(work.best_BCHW, work.all_B, loss)
            step_BCHW = alpha * steepest(slope_BCHW, self.norm)
            work.best_BCHW = project(work.best_BCHW + step_BCHW, work.start_BCHW, self.eps, self.norm)
