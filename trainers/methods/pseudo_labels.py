"""Cleaning with classes from another model: deep clustering whose clusters are a stronger model's zero-shot answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from datasets.component import Component, NotNegative, Positive
from datasets.errors import InputError
from datasets.evaluation import classes
from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.zeroshot import class_head
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.labels import FILE, Labels
from trainers.model import Model
from trainers.objectives.clustering import Clustering
from trainers.schedule import Training


@dataclass(frozen=True, kw_only=True)
class Labelling(Component):
    """How pictures get classes from a model: the fields of `PseudoLabels` of these names."""

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
        """Class names and templates to label with, given those of the test set."""
        return (
            tuple(names) if self.classes == "auto" else classes.class_names(self.classes),
            tuple(templates) if self.templates == "auto" else classes.templates(self.templates),
        )


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(Method):
    """clip_weight·MMCL + inmodal_weight·SSL + weight·CE of a linear head on the picture's features against the class that
    `labeller` gives the picture.

    The labels are a stage of their own, made once for a labeller and a cleaning set and joined by the samples' keys. The head is
    drawn once; it has no weight decay, and is no part of the model that is evaluated and exported.
    """

    labeller: Model | Training
    """Who says what is on the pictures: an open_clip model with `pretrained`, or a `Pretrain`, which is first trained on the pairs
    without the poison (as a prior is, and shared with an equal one). It may take pictures of another size."""
    classes: str | tuple[str, ...] = "auto"
    """Among which it chooses: `auto` (the test set's), `imagenet1k`, `cifar10`, or names"""
    templates: str | tuple[str, ...] = "auto"
    """`auto` (the test set's), `openai`, `simple`, `cifar10`, or texts with {}"""
    weight: Positive = 5.0
    """of the classification"""
    clip_weight: NotNegative = 1.0
    """of the image-text term"""
    inmodal_weight: NotNegative = 1.0
    """of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labelling  # noqa: B018 (raises InputError for what cannot label)

    @property
    def label(self) -> str:
        return f"pseudo-labels{self.objective.beside}"

    @property
    def objective(self) -> Clustering:
        """The loss that is trained with."""
        return Clustering(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight, deep_clustering_weight=self.weight)

    @property
    def labelling(self) -> Labelling:
        """How the pictures get their classes."""
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
    """The most similar class of each picture in `batches` ("key", "image"); the first of equal ones."""
    encoder.eval()
    by_key: dict[str, int] = {}
    with torch.no_grad():
        head_KD = class_head(encoder, names, templates, World(device=encoder.device))
        for batch in batches:
            feature_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            label_B = (feature_BD @ head_KD.T).argmax(dim=1).tolist()
            by_key |= zip((str(key) for key in batch["key"]), label_B)
    return Labels(by_key, len(names), "the pseudo-labels")
