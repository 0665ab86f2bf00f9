"""MMCL, and how far adversarial pictures move the distribution over captions (TRADES, Zhang et al. 2019).

Shape suffixes: B this rank's rows, N all ranks' rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import NotNegative
from trainers import distributed
from trainers.objectives.adversarial import mmcl
from trainers.objectives.adversary import DRAW, Adversary, evaluating
from trainers.objectives.base import Features, Loss, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Trades(Objective):
    """MMCL(I(x), T) + β · mean over pictures of max over ‖δ‖∞ ≤ ε of KL(p(x) ‖ p(x + δ)), with p(x) = softmax(s·I(x)·Tᵀ) over the captions
    of the whole batch. The attack raises the KL; p(x), the captions' features and s are constants in it, but not in the loss.

    Both pictures are encoded as one batch, so batch normalisation uses their joint statistics. With β = 0 this is MMCL, and nothing is
    attacked. InputError if the attack starts at the picture itself, where the KL has no gradient.
    """

    beta: NotNegative = 6.0
    """β, weight of the KL; published for CIFAR-10: 6"""
    adversary: Adversary = Adversary()
    two_views = False

    def __post_init__(self) -> None:
        self.adversary.must_leave("the KL")

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return FromPictures(self, encoder)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model that it attacks: call `begin` first")


@dataclass(frozen=True)
class FromPictures:
    """The loss of `Trades`; holds the model that is trained, to attack it."""

    objective: Trades
    encoder: Encoder

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Parts: mmcl; divergence (the KL before β), unless β is 0."""
        import torch
        from torch.nn import functional as F

        if self.objective.beta == 0:
            clean = mmcl(model(batch))
            return {"loss": clean, "mmcl": clean}
        encoder = self.encoder
        with torch.no_grad(), evaluating(encoder):
            text_ND = encoder.model.logit_scale.exp() * distributed.gather_rows(encoder.encode_text(batch["text"]))
            before_BN = F.log_softmax(encoder.encode_image(batch["image"]) @ text_ND.T, dim=1)

        def worse(image_BHWC: Tensor) -> Tensor:
            return divergence(before_BN, F.log_softmax(encoder.encode_image(image_BHWC) @ text_ND.T, dim=1))

        image_BHWC = self.objective.adversary.attack(encoder, batch["image"], batch[DRAW], worse)
        f = model({**batch, "image_aug": image_BHWC})
        scaled_ND = f["logit_scale"] * distributed.gather_rows(f["text"])
        moved = divergence(*(F.log_softmax(f[view] @ scaled_ND.T, dim=1) for view in ("image", "image_aug")))
        clean = mmcl(f)
        return {"loss": clean + self.objective.beta * moved, "mmcl": clean, "divergence": moved}


def divergence(before_BN: Tensor, after_BN: Tensor) -> Tensor:
    """Mean over rows of KL(p ‖ q), of the logarithms of p and q."""
    return (before_BN.exp() * (before_BN - after_BN)).sum(dim=1).mean()
