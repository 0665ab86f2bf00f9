"""What an evaluator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from datasets.component import Component
from trainers.distributed import World
from trainers.model import Encoder


class Evaluator(Component, ABC):
    """A measurement of one model. A new one is a frozen dataclass of this kind in its own file."""

    @abstractmethod
    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """Metrics by name, shares in percent; the model is left as it was.

        batches: this rank's share of the evaluation set, as `datasets.loader.eval_batches` gives it. All ranks of `world` call
        this together and get the same.
        """
