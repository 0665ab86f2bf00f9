"""What a cleaning method is, and what it has at hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets import seeding
from datasets.component import Component
from trainers.model import Encoder
from trainers.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class CleaningRun:
    """One cleaning stage: `method.clean(encoder, run)` does all of it."""

    train: Callable[[Encoder, Objective], None]
    """trains to the end of the stage's clean pairs, from the newest checkpoint where there is one (`loop.fit`)"""
    fresh: Callable[[], Encoder]
    """makes a freshly initialised model of the same kind"""
    seed: int
    """of the stage"""
    batches: Callable[[], Iterator[dict[str, Any]]] | None = None
    """the stage's clean batches, for methods that look at data outside `fit`"""

    def fit(self, model: Encoder, objective: Objective) -> Encoder:
        """Train the model in place; returns it."""
        self.train(model, objective)
        return model

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the stage's seed and the purpose alone."""
        return seeding.rng(self.seed, "cleaning", purpose)


class CleaningMethod(Component, ABC):
    """A way to remove a backdoor from a model with a set of pairs believed clean.

    A new method is a frozen dataclass of this kind in its own file. Its `clean` may change weights, choose an objective and call
    `run.fit`, once. After a kill it is called again from the start with the original model; `run.fit` then puts back the newest
    checkpoint, so what was done before `fit` is neither lost nor done twice.
    """

    @abstractmethod
    def clean(self, model: Encoder, run: CleaningRun) -> Encoder:
        """The cleaned model (the same object, changed in place)."""
