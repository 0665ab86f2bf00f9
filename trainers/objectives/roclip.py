"""The loss of RoCLIP (Yang, Xu and Mirzasoleiman 2023): in some epochs, pictures against their nearest captions in a pool.

Notation as in `contrastive`. Source: BigML-CS-UCLA/RoCLIP, model/src/train.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.component import Count
from trainers.objectives.base import Features, Loss, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


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
        from trainers.objectives.pool import Pool

        return Pool(self, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise AssertionError("the loss is that of the object that `begin` returns")
