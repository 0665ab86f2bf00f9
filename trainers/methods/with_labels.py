"""Shared by methods whose pictures are labelled by another model: who labels, and among which classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.component import Component
from datasets.errors import InputError
from datasets.evaluation import classes
from trainers.methods.base import Method, Run
from trainers.methods.labels import FILE, Labels
from trainers.model import Model
from trainers.schedule import Training


@dataclass(frozen=True, kw_only=True)
class Labelling(Component):
    """How a model labels pictures: the fields of the same names in `WithLabels`."""

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
class WithLabels(Method):
    """A picture's class is the one that `labeller` assigns.

    The labels are a separate stage, made once per labeller and cleaning set, and joined by the samples' keys.
    """

    labeller: Model | Training
    """The model that labels the pictures: an open_clip model with `pretrained`, or a `Pretrain`, which is first trained on the pairs
    without the poison (like a prior, and shared with an equal one). Its input size may differ."""
    classes: str | tuple[str, ...] = "auto"
    """The classes to choose from: `auto` (the test set's), `imagenet1k`, `cifar10`, or a list of names"""
    templates: str | tuple[str, ...] = "auto"
    """Prompts of the labeller: `auto` (the test set's), `openai`, `simple`, `cifar10`, or texts with {}"""

    def __post_init__(self) -> None:
        self.labelling  # noqa: B018 (raises InputError for what cannot label)

    @property
    def labelling(self) -> Labelling:
        """The labelling stage's component."""
        return Labelling(labeller=self.labeller, classes=self.classes, templates=self.templates)

    def needs(self) -> tuple[Labelling, ...]:
        return (self.labelling,)

    def labels(self, run: Run) -> Labels:
        """The labels that the stage made."""
        return Labels.read(run.made[self.labelling] / FILE)
