"""What an objective is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from datasets.component import Component
from trainers.encoder import Encoder

Features = Mapping[str, Tensor]
"""image, text, image_aug, text_aug: [B, D] of unit length; logit_scale: scalar, already exponentiated; logit_bias: scalar"""


class Loss(Protocol):
    """An object that computes the loss of a phase's steps: the objective itself, or what its `begin` returns."""

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """As `Objective.loss`."""


class Objective(Component, ABC):
    """A loss over the features of one global batch.

    A new objective is a frozen dataclass of this kind in its own file. It is exact at any world size when it takes the rows of
    its own rank and the columns of all (`distributed.gather_rows`), and returns means over its rows.
    """

    @property
    @abstractmethod
    def two_views(self) -> bool:
        """Whether batches must hold the augmented picture and caption too."""

    @property
    def uses_logit_bias(self) -> bool:
        """Whether the model's logit bias, if it has one, takes part (it is left alone otherwise)."""
        return False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        """The object that computes the loss from a phase's first step to its last. An objective with a memory, such as a bank of earlier
        features, returns an `nn.Module` with `loss`, whose buffers are that memory: they are saved with each checkpoint and loaded from it,
        and must be equal on all ranks (so gather what goes into them: `distributed.gather_rows`)."""
        return self

    @abstractmethod
    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """The scalar "loss" of this rank's rows and its named parts (unweighted), calling `model(batch)` exactly once."""
