"""The distance of adversarial pictures' features from those of the original model (FARE, Schlarmann et al. 2024).

Shape suffixes: B this rank's rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.objectives.adversary import DRAW, Adversary
from trainers.objectives.base import Features, Loss, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class NearOriginal(Objective):
    """Mean over pictures of max over ‖δ‖∞ ≤ ε of Σ_d (φ(x + δ)_d − φ₀(x)_d)², where φ are image features that are **not** scaled to length
    1, and φ₀ is the model at the start of training, in evaluation mode. It needs neither captions nor labels.

    InputError if the attack starts at the picture itself, where φ = φ₀ has no gradient in the first step.
    """

    adversary: Adversary = Adversary()
    two_views = False

    def __post_init__(self) -> None:
        self.adversary.must_leave("the distance")

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return ToOriginal(self, encoder, encoder.frozen())

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model that training began with: call `begin` first")


@dataclass(frozen=True)
class ToOriginal:
    """The loss of `NearOriginal`; holds the model that is trained, to attack it, and a copy of it at the start of training."""

    objective: NearOriginal
    encoder: Encoder
    original: Encoder

    def loss(self, model: Callable[..., Features], batch: Any) -> dict[str, Tensor]:
        """Part: fare."""
        import torch

        from trainers.encoder import wide

        with torch.no_grad():
            original_BD = wide(self.original.encode_image(batch["image"], unit=False))

        def worse(image_BHWC: Tensor) -> Tensor:
            return distance(self.encoder.encode_image(image_BHWC, unit=False), original_BD)

        image_BHWC = self.objective.adversary.attack(self.encoder, batch["image"], batch[DRAW], worse)
        loss = distance(model({"image": image_BHWC}, unit=False)["image"], original_BD)
        return {"loss": loss, "fare": loss}


def distance(feature_BD: Tensor, original_BD: Tensor) -> Tensor:
    """Mean over rows of ‖φ − φ₀‖², in fp32 or better."""
    from trainers.encoder import wide

    return (wide(feature_BD) - original_BD).square().sum(dim=1).mean()
