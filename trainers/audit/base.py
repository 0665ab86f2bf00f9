"""The interface of an audit: what it is given of a model and its pictures, and what it gives back.

Shape suffixes: N pictures, H and W height and width, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.component import Component
from datasets.feed.loader import Recipe
from datasets.index.pairs import Pairs
from trainers.audit.classifier import Classifier, as_floats
from trainers.audit.meanings import Meaning
from trainers.encoder import Encoder


@dataclass(frozen=True)
class Pictures:
    """Pictures that are audited, in the model's size."""

    keys: tuple[str, ...]
    image_NHWC: np.ndarray
    """uint8 [N, S, S, 3]"""
    label_N: np.ndarray
    """int64 [N], indices of classes"""
    triggered_NHWC: np.ndarray | None = None
    """The same pictures with the first attack's trigger, uint8 [N, S, S, 3]; None: there is no trigger on pictures."""

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, chosen: Any) -> Pictures:
        """Those at these positions: a slice, or an array of numbers or booleans."""
        keys = tuple(np.asarray(self.keys, dtype=object)[chosen])
        triggered = None if self.triggered_NHWC is None else self.triggered_NHWC[chosen]
        return Pictures(keys, self.image_NHWC[chosen], self.label_N[chosen], triggered)

    def floats(self, classifier: Classifier, triggered: bool = False) -> Tensor:
        """Floats [N, 3, S, S] in 0 … 1, on the classifier's device."""
        image_NHWC = self.triggered_NHWC if triggered else self.image_NHWC
        assert image_NHWC is not None, "asked for a trigger that there is not"
        return as_floats(torch.from_numpy(np.ascontiguousarray(image_NHWC)).to(classifier.device), classifier.dtype)

    def labels(self, classifier: Classifier) -> Tensor:
        """int64 [N] on the classifier's device."""
        return torch.from_numpy(np.ascontiguousarray(self.label_N, np.int64)).to(classifier.device)

    @property
    def trigger_NHW(self) -> np.ndarray:
        """bool [N, S, S]: pixels that the trigger changes."""
        assert self.triggered_NHWC is not None, "asked for a trigger that there is not"
        return (self.triggered_NHWC != self.image_NHWC).any(-1)


@dataclass(frozen=True)
class Subject:
    """A checkpoint and everything that audits of it can use."""

    encoder: Encoder
    """In evaluation mode, without gradients of its weights; audits leave it as it is."""
    classifier: Classifier
    """The encoder's zero-shot classifier."""
    pictures: Pictures
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    target: int | None = None
    """Index of the first attack's target class; None: no attack, or one without a single target."""
    checkpoint: str = ""
    """Identifies the weights: a hash."""
    batch_size: int = 64
    """Pictures at a time; changes no result."""
    pairs: Pairs | None = None
    """The pre-training's pairs, poisoned."""
    recipe: Recipe | None = None
    """Views and triggers of the pre-training, with which the pictures of `pairs` can be made."""
    sets: Mapping[Component, Pictures] = field(default_factory=dict)
    """The pictures of each further set that the audit needs (`Component.needs`)."""
    made: Mapping[Component, Path] = field(default_factory=dict)
    """The folder of everything else that the audit needs."""

    def batches(self) -> list[Pictures]:
        """The pictures in batches."""
        return [self.pictures.part(slice(start, start + self.batch_size)) for start in range(0, len(self.pictures), self.batch_size)]


@dataclass(frozen=True)
class Findings:
    """What an audit found."""

    metrics: Mapping[str, float]
    """By name; shares in percent."""
    rows: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """A table with a row for each sample: column → values, all equally many. Column `key` is the sample's key."""
    gallery: Mapping[str, np.ndarray] = field(default_factory=dict)
    """A few pictures for the page, uint8 [n, S, S, 3], under the titles of the columns in which they are shown side by side."""
    failures: tuple[str, ...] = ()
    """Sentences: which checks of the audit itself failed, so that its numbers must not be believed."""
    notes: tuple[str, ...] = ()
    """Sentences for the page."""


@dataclass(frozen=True, kw_only=True)
class Audit(Component, ABC):
    """One system of the audit. To add one, subclass this as a frozen dataclass in its own file.

    What it finds of a sample may depend on the sample, its key and the fields, never on the batch or on how many processes run.
    """

    group: ClassVar[str] = ""
    """The part of the page that shows it: attacks, defences, black box, explanations, bias."""
    meanings: ClassVar[Mapping[str, Meaning]] = {}
    """What its numbers are, by name, where `trainers.audit.meanings` does not say."""

    def check(self, subject_classes: int, triggered: bool) -> None:  # noqa: B027 (most can audit any model)
        """Raise InputError if it cannot audit a model with this many classes, or (not `triggered`) one without a trigger. Called before
        anything is computed."""

    @abstractmethod
    def run(self, subject: Subject) -> Findings:
        """What it finds of the model, which it leaves as it is."""
