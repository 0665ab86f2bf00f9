"""TRADES (Zhang et al. 2019) with the contrastive loss, in pre-training or in cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets.component import NotNegative
from trainers.methods.base import Run
from trainers.methods.with_adversary import WithAdversary
from trainers.objectives.trades import Trades

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class TRADES(WithAdversary):
    """Trains both towers with MMCL on the pictures themselves + β · KL between the distributions over the batch's captions that a picture
    and its adversarial one give (`Trades`). β trades accuracy for robustness; with 0 this is MMCL fine-tuning."""

    beta: NotNegative = 6.0
    """β, weight of the KL; published for CIFAR-10: 6"""

    def __post_init__(self) -> None:
        self.objective  # noqa: B018 (raises InputError for an attack that cannot begin)

    @property
    def objective(self) -> Trades:
        """The loss."""
        return Trades(beta=self.beta, adversary=self.adversary)

    def train(self, model: Encoder, run: Run) -> Encoder:
        return self.fit(model, run, self.objective)
