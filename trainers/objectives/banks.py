"""The losses of SafeCLIP's steps, with their banks of earlier features. Shape suffixes: B this rank's rows, D features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from trainers.encoder import Encoder
from trainers.objectives.bank import Bank, shared
from trainers.objectives.base import Features
from trainers.objectives.contrastive import matching_loss
from trainers.objectives.safeclip import CrossView, Unimodal


class Banks(nn.Module):
    """Computes the loss of `Unimodal` and holds its banks."""

    def __init__(self, objective: Unimodal, encoder: Encoder, rng: np.random.Generator) -> None:
        super().__init__()
        self.sides = nn.ModuleDict({side: Bank(objective.bank, encoder, rng) for side in ("image", "text") if objective.bank})

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """As `Objective.loss`; writes the batch into the banks."""
        f = model(batch)
        values, duplicates = [], []
        for side in ("image", "text"):
            target_BD = f[side]
            if side in self.sides:
                bank = self.sides[side]
                assert isinstance(bank, Bank)
                target_BD = bank.rows[bank.nearest(f[side])]
                bank.put(f[side])
                duplicates.append(shared(target_BD))
            values.append(matching_loss(f[f"{side}_aug"], target_BD, f["logit_scale"]))
        value = (values[0] + values[1]) / 2
        extra = {"duplicates": (duplicates[0] + duplicates[1]) / 2} if duplicates else {}
        return {"loss": value, "unimodal": value, **extra}


class SplitBanks(Banks):
    """Computes the loss of `Split`."""

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        kinds = set(batch["safe"].tolist())
        assert len(kinds) == 1, "a batch is safe or risky as a whole"
        return CrossView().loss(model, batch) if kinds == {1} else super().loss(model, batch)
