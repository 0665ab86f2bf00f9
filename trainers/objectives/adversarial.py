"""MMCL on adversarial pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.objectives.adversary import DRAW, Adversary, evaluating
from trainers.objectives.base import Features, Loss, Objective
from trainers.objectives.contrastive import matching_loss

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
    """max over ‖δ‖∞ ≤ ε of MMCL(I(x + δ), T), where the maximum is that of `adversary` (after Madry et al. 2018).

    The attack raises the loss of the whole batch, in both directions, with the captions' features and the logit scale as constants. With
    ε = 0 this is MMCL.
    """

    adversary: Adversary = Adversary()
    two_views = False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return OnAdversaries(self, encoder)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model that it attacks: call `begin` first")


@dataclass(frozen=True)
class OnAdversaries:
    """The loss of `Adversarial`; holds the model that is trained, to attack it."""

    objective: Adversarial
    encoder: Encoder

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Part: adversarial, MMCL of the adversarial pictures."""
        import torch

        with torch.no_grad(), evaluating(self.encoder):
            about = {"text": self.encoder.encode_text(batch["text"]), "logit_scale": self.encoder.model.logit_scale.exp().reshape(())}

        def worse(image_BHWC: Tensor) -> Tensor:
            return mmcl({**about, "image": self.encoder.encode_image(image_BHWC)})

        image_BHWC = self.objective.adversary.attack(self.encoder, batch["image"], batch[DRAW], worse)
        loss = mmcl(model({**batch, "image": image_BHWC}))
        return {"loss": loss, "adversarial": loss}


def mmcl(f: Features) -> Tensor:
    """½[CE(s·I·Tᵀ) + CE(s·T·Iᵀ)] of this rank's rows against those of all ranks."""
    image_BD, text_BD, scale = f["image"], f["text"], f["logit_scale"]
    return (matching_loss(image_BD, text_BD, scale) + matching_loss(text_BD, image_BD, scale)) / 2
