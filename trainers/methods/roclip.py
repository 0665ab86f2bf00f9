"""RoCLIP (Yang, Xu and Mirzasoleiman 2023): pre-training that in some epochs exchanges each caption for the nearest of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets.component import Count
from datasets.errors import InputError
from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.objectives.roclip import Pooled
from trainers.schedule import Training


@dataclass(frozen=True, kw_only=True)
class RoCLIP(Method):
    """Epochs whose number (from 1) is a multiple of `every` match pictures with the nearest captions of a pool, the others with their own:
    `Pooled`.

    In a matched epoch no loss reaches the text tower, for the pool's rows are constants. As published it still moves, by AdamW's momentum
    and by weight decay; `text_tower="frozen"` leaves its weights as they are. Several pictures may have one nearest caption, and then the
    loss asks for what cannot be: train/duplicates says how many. A pool of random rows is full of captions only after pool/batch steps of
    the first matched epoch; `pool_filled="before"` fills it in the epoch before each matched one as well, with features at most one epoch
    old.

    Source: the paper, and BigML-CS-UCLA/RoCLIP, model/src, whose numbers are the defaults. Different here: features are gathered with their
    gradient, and the pool holds the captions of all workers, equal on each.
    """

    every: Count = 2
    """K: each K-th epoch is matched with the pool"""
    pool: Count = 21_845
    """caption features that the pool holds; at most the number of pairs"""
    text_tower: Literal["decays", "frozen"] = "decays"
    """in matched epochs: decays (moved by momentum and weight decay, as published) | frozen (nothing moves it)"""
    pool_filled: Literal["during", "before"] = "during"
    """during (matched epochs alone fill it, as published) | before (so do the epochs before them)"""
    augmented: bool = True
    """train on the augmented views of pictures and captions, as published; otherwise on the first ones"""

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
