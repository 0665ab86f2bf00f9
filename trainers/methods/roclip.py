"""RoCLIP (Yang, Xu and Mirzasoleiman 2023): pre-training that in some epochs replaces each caption by the nearest caption of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from datasets.component import Count
from datasets.errors import InputError
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.objectives.roclip import Pooled
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class RoCLIP(Method):
    """In epochs whose number (from 1) is a multiple of `every`, pictures are matched with the nearest captions of a pool, in the other
    epochs with their own captions: `Pooled`.

    In a matched epoch the text tower gets no gradient, because the pool's rows are constants. As published, AdamW's momentum and weight
    decay still move it; `text_tower="frozen"` keeps its weights. If several pictures of a batch share their nearest caption, no features
    can satisfy the loss; train/duplicates says how many do. The pool starts with random rows and holds only captions after pool/batch steps
    of the first matched epoch. `pool_filled="before"` also fills it in the epoch before each matched one, with features at most one epoch
    old.

    Source: the paper, and BigML-CS-UCLA/RoCLIP, model/src, whose numbers are the defaults. Differences: features are gathered with their
    gradient, and the pool holds the captions of all workers and is equal on each.
    """

    every: Count = 2
    """K: every K-th epoch is matched with the pool"""
    pool: Count = 21_845
    """number of caption features in the pool; at most the number of pairs"""
    text_tower: Literal["decays", "frozen"] = "decays"
    """the text tower in matched epochs: decays (momentum and weight decay move it, as published) | frozen (nothing moves it)"""
    pool_filled: Literal["during", "before"] = "during"
    """epochs that fill the pool: during (only matched epochs, as published) | before (also the epoch before each)"""
    augmented: bool = True
    """train on the augmented views of pictures and captions, as published; otherwise on the plain ones"""

    def __post_init__(self) -> None:
        if self.every == 1 and self.pool_filled == "before":
            raise InputError("RoCLIP.pool_filled is 'before', but with RoCLIP.every 1 no epoch lies before the first matched one: set "
                             "every to 2 or more, or pool_filled to 'during'.")

    def check(self, pairs: int) -> None:
        if self.pool > pairs:
            raise InputError(f"RoCLIP.pool is {self.pool}, more than the {pairs} pairs that it is to train on.")

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        if self.every > training.epochs:
            raise InputError(f"RoCLIP.every is {self.every}, but {training.slug}.epochs is {training.epochs}: no epoch would be matched "
                             "with the pool.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        pairs = len(run.keys())
        towers = [name for name, _ in model.model.named_parameters() if not name.startswith("logit_")]
        text_tower = tuple(name for name in towers if not name.startswith("visual."))

        def decide(model: Encoder, epoch: int) -> EpochPlan:
            matched = (epoch + 1) % self.every == 0
            filling = self.pool_filled == "before" and (epoch + 2) % self.every == 0
            return EpochPlan(
                values={"matched": np.full(pairs, matched), "filling": np.full(pairs, filling)},
                frozen=text_tower if matched and self.text_tower == "frozen" else (),
                metrics={"roclip/matched": float(matched)},
            )

        return run.fit(model, Pooled(pool=self.pool, augmented=self.augmented), begin_epoch=decide)
