"""Adversarial training (Madry et al. 2018) with the contrastive loss, in pre-training or in cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainers.methods.base import Run
from trainers.methods.with_adversary import WithAdversary
from trainers.objectives.adversarial import Adversarial

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(WithAdversary):
    """Trains both towers with MMCL on adversarial pictures alone (`Adversarial`), made anew in each step to raise that same loss."""

    @property
    def label(self) -> str:
        return "adversarial training"

    @property
    def slug(self) -> str:
        return "adversarial"

    def train(self, model: Encoder, run: Run) -> Encoder:
        return self.fit(model, run, Adversarial(adversary=self.adversary))
