"""The interface of an evaluator, and the data it can use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datasets.component import Component, shown, since
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Batch, Recipe
from datasets.index.pairs import Pairs
from datasets.triggers.base import Trigger
from trainers.distributed import World

if TYPE_CHECKING:
    from trainers.encoder import Encoder
    from trainers.evaluate.zeroshot import Aim


@dataclass(frozen=True, kw_only=True)
class Material:
    """The data that an evaluator can use. They are the same for all epochs of a stage and all stages of an experiment."""

    test: Callable[[], Iterable[Batch]]
    """This rank's share of the test pictures, as `datasets.feed.loader.eval_batches` gives it."""
    test_with: Callable[[Trigger], Iterable[Batch]] | None = None
    """The same pictures with another trigger in place of the attack's."""
    pairs: Pairs
    """The pre-training's pairs with the poison plan applied, also while a cleaning is measured."""
    recipe: Recipe
    """Views, trigger and seed of the evaluation."""
    batch_size: int = 256
    world: World = field(default_factory=World)
    aims: tuple[Aim, ...] = ()
    """The attacks, as they are measured."""
    target: int | None = None
    """Index of the first attack's target class; None: no attack is measured."""
    class_names: tuple[str, ...] = ()
    """Class names of the test pictures."""
    templates: tuple[str, ...] = ()
    """The test set's prompts, with {} for the class name; `zeroshot.class_head` makes class features from names and prompts."""
    sets: Mapping[EvalSet | RetrievalSet, Callable[[], Iterable[Batch]]] = field(default_factory=dict)
    """For each further set that evaluators need (`Component.needs`): a function that returns this rank's share of it."""
    classes: Mapping[EvalSet | RetrievalSet, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    """Class names and prompts of each of these sets."""
    made: Mapping[Component, Path] = field(default_factory=dict)
    """The folder of everything else that evaluators need."""


@dataclass(frozen=True, kw_only=True)
class Evaluator(Component, ABC):
    """A measurement of one model. To add one, subclass this as a frozen dataclass in its own file.

    By default it gets the test pictures. Override `open` to make batches from anything else in `Material`, as
    `trainers.evaluate.analysis.Analysis` does with training pairs. If `Material` lacks something, add a field and fill it in
    `orchestrator.training.measuring`.
    """

    own_classes: ClassVar[bool] = False
    """Whether the sets it needs may have other classes than the test set."""

    every: int = since(1)
    """Measure before training, after each epoch whose number is a multiple of this, and after the last epoch; 0: only after the last."""

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether to measure after epoch `epoch` of `epochs`."""
        return epoch >= epochs or (self.every > 0 and epoch % self.every == 0)

    def check(self, triggers: Mapping[str, Trigger]) -> None:  # noqa: B027 (most evaluators measure any attack)
        """Raise InputError if it cannot measure an experiment whose attacks have these triggers (by attack name)."""

    def check_classes(self, names: tuple[str, ...]) -> None:  # noqa: B027 (most evaluators measure any classes)
        """Raise InputError if it cannot measure on a test set with these classes. Called before anything is trained."""

    def open(self, material: Material) -> Iterable[Batch]:
        """This rank's batches for one measurement."""
        return material.test()

    @abstractmethod
    def measure(
        self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None
    ) -> Mapping[str, float | np.ndarray]:
        """Metrics by name, shares in percent. The model is left unchanged.

        batches: from `open`. All ranks of `world` call this together and return the same. Numbers become metrics. Arrays do not: they are
        stored beside the metrics for figures (`analysis/epoch_0003.npz` in the stage's folder), so they must be small. Two evaluators must
        not return the same name.
        """


def add_values(values: dict[str, Any], evaluator: Evaluator, found: Any) -> None:
    """Add an evaluator's results to `values`; scalars of numpy and torch become Python numbers.

    InputError, naming the evaluator, if the result is not a dictionary, a name is already taken, or a value is neither a number nor an
    array.
    """
    if not isinstance(found, Mapping):
        raise InputError(f"evaluator {evaluator.label} gave {shown(found)}; accepted: a dictionary of metrics by name.")
    for name, raw in found.items():
        value = raw.item() if getattr(raw, "ndim", None) == 0 else raw
        if name in values:
            raise InputError(f"evaluator {evaluator.label} gave {name!r}, which another gave already; accepted: names of its own.")
        if not isinstance(value, (int, float)) and not (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
            raise InputError(f"evaluator {evaluator.label} gave {shown(value)} as {name!r}; accepted: a number or a numpy array of them.")
        values[name] = value


@contextmanager
def unchanged(encoder: Encoder, evaluator: Evaluator) -> Iterator[None]:
    """Raise InputError after the block if the norm of a weight or buffer has changed: training continues with this model."""
    import torch

    def norms() -> list[float]:
        tensors = [value for value in encoder.state_dict().values() if value.is_floating_point()]
        return [float(norm) for norm in torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).tolist()]

    before = norms()
    yield
    if not np.array_equal(before, norms(), equal_nan=True):
        raise InputError(f"evaluator {evaluator.label} changed the model that it measured; it must leave weights and buffers as they were.")
