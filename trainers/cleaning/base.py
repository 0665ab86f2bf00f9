"""What a cleaning method is, and what it has at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from datasets import seeding
from datasets.component import Component
from trainers.batch import Targets
from trainers.distributed import World
from trainers.model import Encoder
from trainers.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class CleaningRun:
    """One cleaning stage: `method.clean(encoder, run)` does all of it."""

    train: Callable[[Encoder, Objective, Targets | None], None]
    """trains to the end of the stage's clean pairs, from the newest checkpoint where there is one (`loop.fit`)"""
    fresh: Callable[[], Encoder]
    """makes a freshly initialised model of the same kind"""
    seed: int
    """of the stage"""
    batches: Callable[[], Iterator[dict[str, Any]]] | None = None
    """the stage's clean batches, for methods that look at data outside `fit`"""
    pictures: Callable[[], Iterator[dict[str, Any]]] | None = None
    """all cleaning pictures once, as trained on but not augmented: this rank's share of batches that are the same for any number of
    ranks, each with "number" (its place among all), "key" and "image" """
    made: Mapping[Component, Path] = field(default_factory=dict)
    """folder of each thing that the method needs (`Component.needs`)"""
    folder: Path | None = None
    """the stage's own, for what must outlast a kill"""
    world: World = field(default_factory=World)
    """the processes that clean together"""

    def fit(self, model: Encoder, objective: Objective, targets: Targets | None = None) -> Encoder:
        """Train the model in place; returns it. `targets` are for an objective that classifies (`objectives.clustering`)."""
        self.train(model, objective, targets)
        return model

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the stage's seed and the purpose alone."""
        return seeding.rng(self.seed, "cleaning", purpose)


class CleaningMethod(Component, ABC):
    """A way to remove a backdoor from a model with a set of pairs believed clean.

    A new method is a frozen dataclass of this kind in its own file. Its `clean` may change weights before `run.fit`, after it, or without
    it; `run.fit` may be called once, on the model or on a copy. After a kill it is called again from the start with the original model;
    `run.fit` then puts back the newest checkpoint, so what was done before `fit` is neither lost nor done twice.
    """

    def parts(self) -> Iterator[CleaningMethod]:
        """This method and those it is made of, such as the one that follows it."""
        yield self
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, CleaningMethod):
                yield from value.parts()

    def check(self, pairs: int) -> None:
        """Raise InputError where the method does not fit a cleaning set of that many pairs; asked of each of `parts`."""
        return

    @abstractmethod
    def clean(self, model: Encoder, run: CleaningRun) -> Encoder:
        """The cleaned model: the same object changed in place, or another of the same architecture.

        It is what is measured and saved, by its weights; one that computes something else by a hook or a replaced module is refused.
        Where it is not bit for bit what `run.fit` ended with, it gets a line of metrics and a checkpoint of its own, numbered one epoch
        more than the last; the lines before are the training's. Without `run.fit` there are two lines: epoch 0, before cleaning, and
        epoch 1.
        """
