"""FARE, unsupervised adversarial fine-tuning (Schlarmann et al. 2024), as a cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets.errors import InputError
from trainers.methods.base import Run
from trainers.methods.still import still_text
from trainers.methods.with_adversary import WithAdversary
from trainers.objectives.fare import NearOriginal
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class FARE(WithAdversary):
    """Trains the image tower so that adversarial pictures have the features that the model before cleaning gives to the pictures
    themselves (`NearOriginal`). The text tower and the logit scale stay as they are. It needs neither captions nor labels.

    What it keeps are the poisoned model's own features of clean pictures. Whether a backdoor survives that has to be measured.

    Published settings (chs20/RobustVLM): as for `TeCoA`, with this loss.
    """

    def __post_init__(self) -> None:
        self.objective  # noqa: B018 (raises InputError for an attack that cannot begin)

    @property
    def objective(self) -> NearOriginal:
        """The loss."""
        return NearOriginal(adversary=self.adversary)

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        super().check_training(training, pairs)
        if training.slug == "pretrain":
            raise InputError("pretrain.objective is FARE, which keeps the features of a model that is trained already; accepted: as "
                             "clean.method.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        with still_text(model):
            return self.fit(model, run, self.objective)
