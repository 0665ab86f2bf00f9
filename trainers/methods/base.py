"""What a method is, and what it can use while it trains a model, in pre-training and in cleaning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets import seeding
from datasets.attack.poison import Poison
from datasets.component import Component
from datasets.errors import InputError
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.methods.epoch import BeginEpoch
from trainers.objectives.base import Objective
from trainers.schedule import Training

IN_A_PHASE = ("lr", "weight_decay", "warmup_steps", "schedule", "betas", "eps", "precision")
"""Fields of `Training` that a phase may have for itself."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a stage's training with an objective, a schedule and an optimiser of its own."""

    training: Training
    """its fields; `epochs` are the phase's own"""
    first: int = 0
    """epochs of the stage that lie before it"""
    name: str = ""
    """what its epochs' lines call it"""
    begin_epoch: BeginEpoch | None = None
    """decides, as an epoch begins, on values for the pairs and on their order"""
    aside: bool = False
    """whether another model is trained than the one that the stage yields"""


@dataclass(kw_only=True)
class Run:
    """One training stage, as its method sees it: `method.train(model, run)` does all of it."""

    trainer: Callable[[Encoder, Objective, Phase], None]
    """trains through a phase, from the newest checkpoint where there is one (`loop.fit`)"""
    training: Training
    """the fields of the stage"""
    fresh: Callable[[], Encoder]
    """makes a freshly initialised model of the same kind"""
    keys: Callable[[], list[str]] = list
    """the keys of the stage's pairs, in their order: a pair's number is its place among them"""
    pairs: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(())
    """every pair once, in their order, as trained on but not augmented: this rank's share of batches that are the same for any
    number of ranks, each with its own number ("number"), "key", "image", "caption" and "poisoned": which are victims, for what is logged;
    a method that decides by it would cheat"""
    made: Mapping[Component, Path] = field(default_factory=dict)
    """need → the folder made for it (`Component.needs`)"""
    folder: Path | None = None
    """the stage's own folder, for files that must outlast a kill"""
    world: World = field(default_factory=World)
    """the processes that train together"""
    attacks: tuple[Poison, ...] = ()
    """the experiment's attacks, for methods that are called oracles: a defender does not know them"""
    victims_captions: Callable[[], list[str]] = list
    """the captions that these attacks gave their victims, for the same methods"""
    done: int = 0
    """epochs of the phases so far"""

    @property
    def seed(self) -> int:
        """Of the stage."""
        return self.training.seed

    def fit(
        self, model: Encoder, objective: Objective, *, epochs: int | None = None, phase: str = "", begin_epoch: BeginEpoch | None = None,
        aside: bool = False, **changes: Any,
    ) -> Encoder:
        """Train the model in place for that many epochs of the stage, by default all that are left; returns it.

        May be called several times. Each call is a phase with an optimiser and a schedule of its own, counted from 0, and with the
        stage's fields but for `changes` (IN_A_PHASE). After a kill the method is called again from the start: a finished phase is skipped,
        and its weights are loaded if the next one has not begun. So anything that a method finds out between phases must be kept in
        `folder`. `begin_epoch(model, epoch)` is called on every rank before each epoch: `trainers.methods.epoch.EpochPlan`. `aside`: the
        model is a helper, a copy say, and not what the stage yields: its epochs are measured, but no rule chooses among them.
        """
        left = self.training.epochs - self.done
        wanted = left if epochs is None else epochs
        if not left:
            raise InputError(f"run.fit was called again, but the stage's {self.training.epochs} epochs are done: give the calls before "
                             "it a number of `epochs`.")
        if not 1 <= wanted <= left:
            raise InputError(f"run.fit is to train for {wanted} epochs{f' in the phase {phase!r}' if phase else ''}, but of the stage's "
                             f"{self.training.epochs} epochs {left} are left.")
        wrong = sorted(changes.keys() - set(IN_A_PHASE))
        if wrong:
            raise InputError(f"run.fit takes no {', '.join(wrong)}; a phase may have its own {', '.join(IN_A_PHASE)}.")
        training = replace(self.training, epochs=wanted, **changes)
        self.trainer(model, objective, Phase(training=training, first=self.done, name=phase, begin_epoch=begin_epoch, aside=aside))
        self.done += wanted
        return model

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the stage's seed and the purpose alone."""
        return seeding.rng(self.seed, "cleaning", purpose)


class Method(Component, ABC):
    """A way to train a model on pairs: to pre-train one, or to remove a backdoor with pairs believed clean.

    A new method is a frozen dataclass of this kind in its own file. Its `train` may change weights before `run.fit`, between its
    calls, after them, or without any; it may train the model or a copy.
    """

    def parts(self) -> Iterator[Method]:
        """This method and those it is made of, such as the one that follows it."""
        yield self
        for own in fields(self):
            value = getattr(self, own.name)
            if isinstance(value, Method):
                yield from value.parts()

    def check(self, pairs: int) -> None:
        """Raise InputError where the method does not fit that many pairs to train on; asked of each of `parts`."""
        return

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        """Raise InputError where the method does not fit the stage's fields, such as its number of epochs; asked of each of `parts`, before
        anything is made and again before the training. `pairs` is their number, None while it is not known."""
        return

    @abstractmethod
    def train(self, model: Encoder, run: Run) -> Encoder:
        """The trained model: the same object changed in place, or another of the same architecture.

        Its weights are what is measured and saved; a model that computes something else through a hook or a replaced module is refused. If
        it differs in any bit from what the last `run.fit` ended with, it gets a line of metrics and a checkpoint of its own, numbered one
        epoch after the last; the lines before are the training's. Without `run.fit` there are two lines: epoch 0, before the method, and
        epoch 1.
        """
