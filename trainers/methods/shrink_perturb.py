"""Shrink and perturb (Ash and Adams 2020) before another cleaning method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datasets.component import NotNegative, Share
from trainers.methods.base import Method, Run
from trainers.methods.finetune import CleanCLIP

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ShrinkPerturb(Method):
    """p ← λ·p + γ·p_fresh for every parameter, once, before the first step; then another method trains.

    "Every parameter" includes norms, biases and the logarithm of the logit scale, as in the study. Running statistics of batch
    normalisation are not parameters and stay. So the metrics of epoch 0, which is measured after this, are those of a model whose
    statistics do not fit its weights; training repairs that.
    """

    shrink_lambda: Share = 0.95
    """λ, factor of the old weights"""
    perturb_gamma: NotNegative = 1e-4
    """γ, factor of the newly drawn weights"""
    then: Method = field(default_factory=CleanCLIP)
    """the method that trains afterwards"""

    @property
    def label(self) -> str:
        return f"shrink-perturb + {self.then.label}"

    def train(self, model: Encoder, run: Run) -> Encoder:
        import torch

        fresh = dict(run.fresh().model.named_parameters())
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                noise = fresh[name].to(parameter.device, parameter.dtype)
                parameter.mul_(self.shrink_lambda).add_(noise, alpha=self.perturb_gamma)
        return self.then.train(model, run)
