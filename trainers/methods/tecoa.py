"""TeCoA, text-guided contrastive adversarial training (Mao et al. 2023), as a cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets.component import Positive
from datasets.errors import InputError
from trainers.methods.base import Run
from trainers.methods.still import still_text
from trainers.methods.with_adversary import WithAdversary
from trainers.methods.with_labels import WithLabels
from trainers.objectives.tecoa import SCALE, AgainstClasses

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class TeCoA(WithAdversary, WithLabels):
    """Trains the image tower so that adversarial pictures are classified by the classes' text features: cross-entropy of 100 · cosine
    (`AgainstClasses`). The text tower and the logit scale stay as they are.

    A picture's class is the one that `labeller` assigns, as for `PseudoLabels`; the same classes, with the one prompt `template`, are what
    it is trained on. Whoever has true labels should know that these are not used.

    Published settings (chs20/RobustVLM): ImageNet, ε 2/255 or 4/255, 10 steps of 1/255 with momentum 0.9 from a random start, in evaluation
    mode; the step itself in training mode; AdamW, lr 1e-5, weight decay 1e-4, batches of 128, 20 000 steps of which 1 400 are warm-up,
    cosine; `This is a photo of a {}`. The published models have no batch normalisation.
    """

    template: str = "This is a photo of a {}"
    """prompt of the classes that are trained on, with {} for the class name"""
    scale: Positive = SCALE
    """factor of the cosines"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise InputError(f"TeCoA.template is {self.template!r}; accepted: a text with {{}} once, where the class name goes.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        labels = self.labels(run)
        if not labels.names:
            raise InputError(f"{labels.where} do not name their classes, for they are of an earlier version: remove their folder, and they "
                             "are made again.")
        objective = AgainstClasses(class_names=labels.names, template=self.template, scale=self.scale, adversary=self.adversary)
        with still_text(model):
            return self.fit(model, run, objective, target=labels.of(run.keys()))
