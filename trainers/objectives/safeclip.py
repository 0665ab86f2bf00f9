"""The two losses of SafeCLIP (Yang et al. 2023): within each modality against nearest neighbours, and between modalities across views.

Notation: I and T are the unit features of pictures and captions, I' and T' those of the augmented views, s is the exponentiated logit
scale, and CE is the mean cross-entropy in which row i's target is column i. Source: BigML-CS-UCLA/SafeCLIP, src/train.py and
src/memory_bank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Natural
from trainers.objectives.base import Features, Loss, Objective
from trainers.objectives.contrastive import matching_loss

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class CrossView(Objective):
    """½[CE(s·I·T'ᵀ) + CE(s·T·I'ᵀ)]: each modality's plain view against the other's augmented view."""

    two_views = True

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        f = model(batch)
        s = f["logit_scale"]
        value = (matching_loss(f["image"], f["text_aug"], s) + matching_loss(f["text"], f["image_aug"], s)) / 2
        return {"loss": value, "cross_view": value}


@dataclass(frozen=True, kw_only=True)
class Unimodal(Objective):
    """½[CE(s·I'·A(I)ᵀ) + CE(s·T'·A(T)ᵀ)], where A(I) holds, for each picture, the row nearest to I in a bank of earlier features, and A(T)
    the same for captions.

    The bank's rows get no gradient. After the loss has used the banks, the batch's I and T are written into them. Without a bank A(I) = I,
    with gradient.
    """

    bank: Natural = 256
    """rows in each of the two banks; 0: no banks"""
    two_views = True

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        from trainers.objectives.banks import Banks

        return Banks(self, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise AssertionError("the loss is that of the object that `begin` returns")


@dataclass(frozen=True, kw_only=True)
class Split(Unimodal):
    """`CrossView` for a batch of safe pairs, `Unimodal` for a batch of risky ones. `batch["safe"]` is 1 or 0 for each pair; all pairs of a
    batch, over all ranks, are of the same kind."""

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        from trainers.objectives.banks import SplitBanks

        return SplitBanks(self, encoder, rng)
