"""MMCL combined with a push away from the model at the start of training. Shape suffixes: B this rank's rows, D features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Positive
from trainers import distributed
from trainers.objectives.base import Features, Loss, Objective
from trainers.objectives.contrastive import matching_loss

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Apart(Objective):
    """MMCL − ½[d_I·1(d_I ≤ τ) + d_T·1(d_T ≤ τ)], with the logit scale as a constant.

    d_I is the mean of ‖I − I₀‖² over the whole batch, where I₀ are the same pictures' unit features from the model at the start of
    training, in evaluation mode. d_T is the same for captions. Beyond τ a term and its gradient are 0.
    """

    limit: Positive = 2.15
    """τ; squared distances of unit vectors lie in 0 … 4"""
    view: Any = None
    """batch → the batch with other pictures, which both models see; None: as it is"""
    two_views = False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return FromStart(self, encoder.frozen())

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model that training began with: call `begin` first")


@dataclass(frozen=True)
class FromStart:
    """The loss of `Apart`; holds a copy of the model at the start of training."""

    objective: Apart
    start: Encoder

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Parts: mmcl; perturb_image and perturb_text (d over the whole batch); beyond_image and beyond_text (100 if d > τ, else 0)."""
        import torch

        batch = batch if self.objective.view is None else self.objective.view(batch)
        f = model(batch)
        scale = f["logit_scale"].detach()
        mmcl = (matching_loss(f["image"], f["text"], scale) + matching_loss(f["text"], f["image"], scale)) / 2
        with torch.no_grad():
            before = {"image": self.start.encode_image(batch["image"]), "text": self.start.encode_text(batch["text"])}
        total, parts = mmcl, {"mmcl": mmcl}
        for name, before_BD in before.items():
            distance = (f[name] - before_BD).square().sum(dim=1).mean()
            whole = distributed.gather_rows(distance.detach()[None]).mean()
            within = whole <= self.objective.limit
            total = total - torch.where(within, distance, 0) / 2
            parts |= {f"perturb_{name}": whole, f"beyond_{name}": 100 * (~within).to(distance)}
        return {"loss": total, **parts}
