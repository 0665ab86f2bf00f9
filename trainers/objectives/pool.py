"""The loss of RoCLIP's steps, with its pool of caption features. Shape suffixes: B this rank's rows, D features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from trainers.encoder import Encoder
from trainers.objectives.bank import Bank, shared
from trainers.objectives.base import Features
from trainers.objectives.contrastive import matching_loss
from trainers.objectives.roclip import Pooled


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
