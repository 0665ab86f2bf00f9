"""The two losses of SafeCLIP (Yang et al. 2023): in-modal against nearest neighbours, and between modalities across the views.

Notation: I, T are unit features of the pictures and captions, I', T' those of the augmented views, s the exponentiated logit scale, CE the
mean cross-entropy with row i's target being column i. Source: BigML-CS-UCLA/SafeCLIP, src/train.py and src/memory_bank.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from datasets.component import Natural
from trainers.encoder import Encoder
from trainers.objectives.bank import Bank, shared
from trainers.objectives.base import Features, Loss, Objective
from trainers.objectives.contrastive import matching_loss


@dataclass(frozen=True, kw_only=True)
class CrossView(Objective):
    """½[CE(s·I·T'ᵀ) + CE(s·T·I'ᵀ)]: each side's plain view against the other side's augmented one."""

    two_views = True

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        f = model(batch)
        s = f["logit_scale"]
        value = (matching_loss(f["image"], f["text_aug"], s) + matching_loss(f["text"], f["image_aug"], s)) / 2
        return {"loss": value, "cross_view": value}


@dataclass(frozen=True, kw_only=True)
class Unimodal(Objective):
    """½[CE(s·I'·A(I)ᵀ) + CE(s·T'·A(T)ᵀ)], where A(I) has for each picture of the batch the row of a bank of earlier features that is
    nearest to I, and A(T) likewise for captions.

    The rows of the bank get no gradient. After the loss I and T of the batch go into their banks. Without a bank A(I) = I, with gradient.
    """

    bank: Natural = 256
    """rows of each of the two banks; 0: none"""
    two_views = True

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return Banks(self, encoder, rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise AssertionError("the loss is that of the object that `begin` returns")


@dataclass(frozen=True, kw_only=True)
class Split(Unimodal):
    """`CrossView` for a batch of safe pairs, `Unimodal` for a batch of risky ones: `batch["safe"]` has 1 or 0 for each pair, and all pairs
    of a batch, over all ranks, are of one kind."""

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        return SplitBanks(self, encoder, rng)


class Banks(nn.Module):
    """Computes `Unimodal`; holds its banks."""

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
                index_B = bank.nearest(f[side])
                target_BD = bank.rows[index_B]
                bank.put(f[side])
                duplicates.append(shared(index_B))
            values.append(matching_loss(f[f"{side}_aug"], target_BD, f["logit_scale"]))
        value = (values[0] + values[1]) / 2
        said = {"duplicates": (duplicates[0] + duplicates[1]) / 2} if duplicates else {}
        return {"loss": value, "unimodal": value, **said}


class SplitBanks(Banks):
    """Computes `Split`."""

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        kinds = set(batch["safe"].tolist())
        assert len(kinds) == 1, "a batch is safe or risky as a whole"
        return CrossView().loss(model, batch) if kinds == {1} else super().loss(model, batch)
