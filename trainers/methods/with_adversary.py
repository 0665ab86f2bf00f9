"""Shared by methods that train on adversarial pictures: the attack, its draws, and what batch normalisation does."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from datasets.errors import InputError
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.still import still_batchnorm
from trainers.objectives.adversary import DRAW, Adversary
from trainers.objectives.base import Objective
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class WithAdversary(Method):
    """Trains on pictures that `adversary` makes in each step. It draws by the stage's seed, the pair and the epoch, on the processor."""

    adversary: Adversary = Adversary()
    """the inner attack"""
    batch_norm: Literal["train", "frozen"] = "train"
    """in a step, after the attack. train: use each batch's statistics, and update the running ones | frozen: normalise by the running
    statistics and leave them unchanged"""

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        if training.accumulate > 1:
            raise InputError(f"{type(self).__name__} attacks whole batches: {training.slug}.accumulate must be 1, not "
                             f"{training.accumulate}.")

    def fit(self, model: Encoder, run: Run, objective: Objective, **values: np.ndarray) -> Encoder:
        """Train for all epochs that are left; `values`: further numbers for each pair, [pairs]."""
        number = len(run.keys())

        def begin_epoch(model: Encoder, epoch: int) -> EpochPlan:
            return EpochPlan(values={DRAW: run.rng(f"adversary {epoch}").integers(2**62, size=number), **values})

        with still_batchnorm(model) if self.batch_norm == "frozen" else nullcontext():
            return run.fit(model, objective, begin_epoch=begin_epoch)
