"""The interface of a method, and what it can use while it trains a model, in pre-training and in cleaning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets import seeding
from datasets.attack.poison import Poison
from datasets.component import Component
from datasets.errors import InputError
from trainers.distributed import World
from trainers.methods.epoch import BeginEpoch
from trainers.objectives.base import Objective
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder

IN_A_PHASE = ("lr", "weight_decay", "warmup_steps", "schedule", "betas", "eps", "precision")
"""Fields of `Training` that a phase may set for itself."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a stage's training with its own objective, schedule and optimiser."""

    training: Training
    """the phase's fields; `epochs` counts only its own"""
    first: int = 0
    """how many epochs of the stage come before it"""
    name: str = ""
    """the phase's name in its epochs' lines of metrics"""
    begin_epoch: BeginEpoch | None = None
    """called at the start of each epoch; returns values for the pairs and their order"""
    aside: bool = False
    """whether it trains a helper model and not the one that the stage yields"""


@dataclass(kw_only=True)
class Run:
    """A training stage as its method sees it. `method.train(model, run)` does the whole stage."""

    trainer: Callable[[Encoder, Objective, Phase], None]
    """trains one phase, continuing from the newest checkpoint if there is one (`loop.fit`)"""
    training: Training
    """the stage's fields"""
    fresh: Callable[[], Encoder]
    """returns a newly initialised model of the same kind"""
    keys: Callable[[], list[str]] = list
    """the keys of the stage's pairs, in order; a pair's number is its place among them"""
    pairs: Callable[[], Iterator[dict[str, Any]]] = lambda: iter(())
    """iterates over every pair once, in order, as in training but not augmented. Gives this rank's share of batches that are the same for
    any number of ranks; each has its own "number", and "key", "image", "caption" and "poisoned". "poisoned" marks victims and is for logs
    only: a method that uses it to decide would cheat"""
    made: Mapping[Component, Path] = field(default_factory=dict)
    """need → the folder that was made for it (`Component.needs`)"""
    folder: Path | None = None
    """the stage's folder, for files that must survive a kill"""
    world: World = field(default_factory=World)
    """the processes that train together"""
    attacks: tuple[Poison, ...] = ()
    """the experiment's attacks, for methods called oracles; a defender does not know them"""
    victims_captions: Callable[[], list[str]] = list
    """the captions that these attacks gave their victims, also only for oracles"""
    done: int = 0
    """epochs that the phases so far have trained"""

    @property
    def seed(self) -> int:
        """The stage's seed."""
        return self.training.seed

    def fit(
        self, model: Encoder, objective: Objective, *, epochs: int | None = None, phase: str = "", begin_epoch: BeginEpoch | None = None,
        aside: bool = False, **changes: Any,
    ) -> Encoder:
        """Train the model in place for this many epochs of the stage (default: all that are left) and return it.

        May be called several times. Each call is a phase with its own optimiser and schedule, counted from 0. It uses the stage's fields,
        except for `changes` (fields in IN_A_PHASE). After a kill the method runs again from its start: finished phases are skipped, and the
        weights of the last one are loaded if the next has not begun. So a method must keep whatever it computes between phases in `folder`.
        `begin_epoch(model, epoch)` is called on every rank before each epoch and returns a `trainers.methods.epoch.EpochPlan`. InputError
        if no epochs are left, `epochs` is out of range, or `changes` has another field.

        `aside`: the model is a helper, such as a copy, and not what the stage yields. Its epochs are measured, but no rule chooses one.
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
        """A generator that depends only on the stage's seed and the purpose."""
        return seeding.rng(self.seed, "cleaning", purpose)


class Method(Component, ABC):
    """A way to train a model on pairs: to pre-train one, or to remove a backdoor with pairs believed to be clean.

    To add a method, subclass this as a frozen dataclass in its own file. `train` may change weights before, between and after calls of
    `run.fit`, or without calling it, and may train the model or a copy.
    """

    def parts(self) -> Iterator[Method]:
        """This method and the methods in its fields, such as one that runs after it."""
        yield self
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Method):
                yield from value.parts()

    def check(self, pairs: int) -> None:
        """Raise InputError if the method cannot train on this number of pairs. Called for each of `parts`."""
        return

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        """Raise InputError if the method does not fit the stage's fields, such as its number of epochs. Called for each of `parts`, once
        before anything is made and again before training. `pairs`: their number, None while it is unknown."""
        return

    @abstractmethod
    def train(self, model: Encoder, run: Run) -> Encoder:
        """Return the trained model: the same object changed in place, or another of the same architecture.

        Its weights are measured and saved; a model that computes differently through a hook or a replaced module is refused. If any bit
        differs from what the last `run.fit` ended with, the returned model gets its own line of metrics and checkpoint, numbered one epoch
        after the last; the lines before it are the training's. Without `run.fit` there are two lines: epoch 0, before the method, and epoch
        1.
        """
