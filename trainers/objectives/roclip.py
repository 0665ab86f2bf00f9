"""The loss of RoCLIP (Yang, Xu and Mirzasoleiman 2023): pictures against the nearest captions of a pool, in some epochs.

Notation as in `contrastive`. Source: BigML-CS-UCLA/RoCLIP, model/src/train.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from datasets.component import Count
from trainers.encoder import Encoder
from trainers.objectives.bank import Bank, shared
from trainers.objectives.base import Features, Loss, Objective
from trainers.objectives.contrastive import matching_loss


@dataclass(frozen=True, kw_only=True)
class Pooled(Objective):
    """½[CE(s·A·Iᵀ) + CE(s·I·Aᵀ)] where `batch["matched"]` is 1, else ½[CE(s·T·Iᵀ) + CE(s·I·Tᵀ)].

    A has for each picture the row of a pool of earlier caption features that is nearest to it; these get no gradient. The batch's captions
    go into the pool after the loss where `matched` or `batch["filling"]` is 1. Both values are the same for all pairs of an epoch.
    """

    pool: Count = 21_845
    """rows of the pool; random unit rows first"""
    augmented: bool = True
    """train on the augmented views of pictures and captions"""

    @property
    def two_views(self) -> bool:
        return self.augmented

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return Pool(self, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise AssertionError("the loss is that of the object that `begin` returns")


class Pool(nn.Module):
    """Computes `Pooled`; holds its pool."""

    def __init__(self, objective: Pooled, encoder: Encoder, rng: np.random.Generator) -> None:
        super().__init__()
        self.augmented = objective.augmented
        self.captions = Bank(objective.pool, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """As `Objective.loss`; writes the batch's captions into the pool."""
        matched, filling = bool(batch["matched"][0]), bool(batch["filling"][0])
        f = model({"image": batch["image_aug"], "text": batch["text_aug"]} if self.augmented else batch)
        if self.augmented and "image_aug" in f:  # a batch in parts is encoded with all its views beforehand
            f = {**f, "image": f["image_aug"], "text": f["text_aug"]}
        image_BD, text_BD, s = f["image"], f["text"], f["logit_scale"]
        key_BD = text_BD
        if matched:
            index_B = self.captions.nearest(image_BD)
            key_BD = self.captions.rows[index_B]
        if matched or filling:
            self.captions.put(text_BD)
        value = (matching_loss(key_BD, image_BD, s) + matching_loss(image_BD, key_BD, s)) / 2
        if not matched:
            return {"loss": value, "mmcl": value}
        still = 0 * text_BD.sum()  # so that the text tower's gradient is 0, as published, and every rank has one
        return {"loss": value + still, "roclip": value, "duplicates": shared(index_B)}
