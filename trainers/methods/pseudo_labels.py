"""Cleaning with classes from another model: as deep clustering, but the classes are a stronger model's zero-shot predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datasets.component import Component
from datasets.errors import InputError
from datasets.evaluation import classes
from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.zeroshot import class_head
from trainers.methods.base import Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.labels import FILE, Labels
from trainers.methods.with_classes import WithClasses
from trainers.model import Model
from trainers.schedule import Training


@dataclass(frozen=True, kw_only=True)
class Labelling(Component):
    """How a model labels pictures: the fields of the same names in `PseudoLabels`."""

    labeller: Model | Training
    classes: str | tuple[str, ...] = "auto"
    templates: str | tuple[str, ...] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompts((), ())
        if isinstance(self.labeller, Model) and not self.labeller.pretrained:
            raise InputError("labeller.pretrained is not set: give a tag of open_clip's or a checkpoint file, or a Pretrain to train.")

    def needs(self) -> tuple[Component, ...]:
        return () if isinstance(self.labeller, Model) else (self.labeller,)

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The class names and prompts to label with; `names` and `templates` are the test set's."""
        return (
            tuple(names) if self.classes == "auto" else classes.class_names(self.classes),
            tuple(templates) if self.templates == "auto" else classes.templates(self.templates),
        )


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(WithClasses):
    """A picture's class is the one that `labeller` assigns.

    The labels are a separate stage, made once per labeller and cleaning set, and joined by the samples' keys. The head is drawn once.
    """

    labeller: Model | Training
    """The model that labels the pictures: an open_clip model with `pretrained`, or a `Pretrain`, which is first trained on the pairs
    without the poison (like a prior, and shared with an equal one). Its input size may differ."""
    classes: str | tuple[str, ...] = "auto"
    """The classes to choose from: `auto` (the test set's), `imagenet1k`, `cifar10`, or a list of names"""
    templates: str | tuple[str, ...] = "auto"
    """Prompts: `auto` (the test set's), `openai`, `simple`, `cifar10`, or texts with {}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labelling  # noqa: B018 (raises InputError for what cannot label)

    @property
    def label(self) -> str:
        return f"pseudo-labels{self.objective.beside}"

    @property
    def labelling(self) -> Labelling:
        """The labelling stage's component."""
        return Labelling(labeller=self.labeller, classes=self.classes, templates=self.templates)

    def needs(self) -> tuple[Labelling, ...]:
        return (self.labelling,)

    def train(self, model: Encoder, run: Run) -> Encoder:
        labels = Labels.read(run.made[self.labelling] / FILE)
        model.draw_head(labels.classes, run.rng("head"))
        values = {"target": labels.of(run.keys())}
        return run.fit(model, self.objective, begin_epoch=lambda model, epoch: EpochPlan(values=values))


def zero_shot_labels(
    encoder: Encoder, batches: Iterable[dict[str, Any]], names: tuple[str, ...], templates: tuple[str, ...]
) -> Labels:
    """Each picture's most similar class (the first among equals), for `batches` with "key" and "image". Sets the model to evaluation
    mode."""
    encoder.eval()
    by_key: dict[str, int] = {}
    with torch.no_grad():
        head_KD = class_head(encoder, names, templates, World(device=encoder.device))
        for batch in batches:
            feature_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            label_B = (feature_BD @ head_KD.T).argmax(dim=1).tolist()
            by_key |= zip((str(key) for key in batch["key"]), label_B)
    return Labels(by_key, len(names), "the pseudo-labels")
