"""The pairwise sigmoid loss (Zhai et al. 2023). Shape suffixes: B this rank's rows, N all ranks' rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from datasets.component import Positive
from datasets.errors import InputError
from trainers import distributed
from trainers.objectives.base import Features, Objective

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SigLIP(Objective):
    """weight · Σᵢⱼ −log σ(zᵢⱼ(s·Iᵢ·Tⱼ + b)), where z is 1 on the diagonal and −1 off it, divided by N² (pairs) or N (samples)."""

    weight: Positive = 1.0
    """weight of the whole loss"""
    per: Literal["pairs", "samples"] = "pairs"
    """pairs: the mean over all N² pairs; samples: the sum divided by N, as published"""
    bias: bool = False
    """add the model's learnt logit bias b, which the model must have; otherwise b = 0"""

    @property
    def two_views(self) -> bool:
        return False

    @property
    def uses_logit_bias(self) -> bool:
        return self.bias

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        import torch
        from torch.nn import functional as F

        f = model(batch)
        logits_BN = f["logit_scale"] * f["image"] @ distributed.gather_rows(f["text"]).T
        if self.bias:
            if "logit_bias" not in f:
                raise InputError("siglip with bias=True needs a model with a logit bias; set the model's logit_bias")
            logits_BN = logits_BN + f["logit_bias"]
        rows, columns = logits_BN.shape
        own_B = torch.arange(rows, device=logits_BN.device)
        sign_BN = torch.full_like(logits_BN, -1.0)
        sign_BN[own_B, own_B + distributed.rank() * rows] = 1.0
        mean = -F.logsigmoid(sign_BN * logits_BN).mean()
        siglip = mean if self.per == "pairs" else mean * columns
        return {"loss": self.weight * siglip, "siglip": siglip}
