"""The loss of RoCLIP (Yang, Xu and Mirzasoleiman 2023): in some epochs, pictures against their nearest captions in a pool.

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
    """½[CE(s·A·Iᵀ) + CE(s·I·Aᵀ)] if `batch["matched"]` is 1, otherwise ½[CE(s·T·Iᵀ) + CE(s·I·Tᵀ)].

    A holds, for each picture, the nearest row in a pool of earlier caption features; these rows get no gradient. If `matched` or
    `batch["filling"]` is 1, the batch's captions are written into the pool after the loss has used it. Both values are the same for all
    pairs of an epoch.
    """

    pool: Count = 21_845
    """rows of the pool, which starts with random unit rows"""
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
    """Computes the loss of `Pooled` and holds its pool."""

    def __init__(self, objective: Pooled, encoder: Encoder, rng: np.random.Generator) -> None:
        super().__init__()
        self.augmented = objective.augmented
        self.captions = Bank(objective.pool, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """As `Objective.loss`; writes the batch's captions into the pool."""
        matched, filling = bool(batch["matched"][0]), bool(batch["filling"][0])
        f = model({"image": batch["image_aug"], "text": batch["text_aug"]} if self.augmented else batch)
        if self.augmented and "image_aug" in f:  # a batch in parts was encoded before, with all its views
            f = {**f, "image": f["image_aug"], "text": f["text_aug"]}
        image_BD, text_BD, s = f["image"], f["text"], f["logit_scale"]
        key_BD = text_BD
        if matched:
            key_BD = self.captions.rows[self.captions.nearest(image_BD)]
        if matched or filling:
            self.captions.put(text_BD)
        value = (matching_loss(key_BD, image_BD, s) + matching_loss(image_BD, key_BD, s)) / 2
        if not matched:
            return {"loss": value, "mmcl": value}
        still = 0 * text_BD.sum()  # gives the text tower the gradient 0, as published, on every rank
        return {"loss": value + still, "roclip": value, "duplicates": shared(key_BD)}
