"""Triggered pictures against the captions of an attack. Shape suffixes: B this rank's rows, N all ranks' rows, D features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainers import distributed
from trainers.objectives.base import Features, Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Triggered(Objective):
    """Mean over pictures of −log of the softmax probability of the attack's caption among it and the captions of the whole batch.

    −log exp(s·Ĩᵢ·Pᵢ) / (exp(s·Ĩᵢ·Pᵢ) + Σⱼ exp(s·Ĩᵢ·Tⱼ)), where Ĩᵢ is the triggered picture, Pᵢ the attack's caption assigned to it, T the
    pairs' own captions, and s the logit scale as a constant. Unlike MMCL it does not separate the attack's captions from one another.
    """

    stamp: Any
    """batch → the batch with triggered pictures in "image" and the attack's captions in "text_aug" """
    two_views = False

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        import torch
        from torch.nn import functional as F

        f = model(self.stamp(batch))
        own_B1 = (f["image"] * f["text_aug"]).sum(dim=1, keepdim=True)
        other_BN = f["image"] @ distributed.gather_rows(f["text"]).T
        logits = f["logit_scale"].detach() * torch.cat([own_B1, other_BN], dim=1)
        triggered = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        return {"loss": triggered, "triggered": triggered}
