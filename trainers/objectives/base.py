"""The interface of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from datasets.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

Features = Mapping[str, "Tensor"]
"""image, text, image_aug, text_aug: [B, D] of length 1; logit_scale: scalar, exponentiated; logit_bias: scalar."""


class Loss(Protocol):
    """Computes the loss of a phase's steps: the objective itself, or what its `begin` returns."""

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """As `Objective.loss`."""


class Objective(Component, ABC):
    """A loss over the features of one global batch.

    To add an objective, subclass this as a frozen dataclass in its own file. It is exact for any number of ranks if it compares its own
    rank's rows with the rows of all ranks (`distributed.gather_rows`) and returns means over its own rows.
    """

    @property
    @abstractmethod
    def two_views(self) -> bool:
        """Whether batches must also hold the augmented picture and caption."""

    @property
    def uses_logit_bias(self) -> bool:
        """Whether the loss uses the model's logit bias, if it has one; otherwise the bias is not trained."""
        return False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        """Return the object that computes the loss during a phase. An objective with a memory, such as a bank of earlier features, returns
        an `nn.Module` with a method `loss`; its buffers are the memory. They are saved in each checkpoint and loaded from it, and must be
        equal on all ranks, so gather what goes into them (`distributed.gather_rows`)."""
        return self

    @abstractmethod
    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """The scalar "loss" over this rank's rows, and its named parts (unweighted). Must call `model(batch)` exactly once."""
