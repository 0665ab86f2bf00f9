"""A method in two phases as a lab would write it: an objective with a memory, then epochs whose order and weights are decided anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers import distributed
from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.methods.deep_clustering import embed
from trainers.methods.epoch import EpochPlan
from trainers.objectives.base import Features, Objective
from trainers.objectives.contrastive import MMCL


class Bank(nn.Module):
    """The last text features of all ranks, unit rows [rows, D]: random ones first."""

    rows: Tensor
    place: Tensor

    def __init__(self, objective: Banked, width: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.objective = objective
        rows_RD = torch.from_numpy(rng.standard_normal((objective.rows, width))).float()
        self.register_buffer("rows", nn.functional.normalize(rows_RD, dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        f = model(batch)
        nearest_BD = self.rows[(f["image"].detach().float() @ self.rows.T).argmax(dim=1)]
        pull = (1 - (f["image"].float() * nearest_BD).sum(dim=1)).mean()
        text_ND = f["text"].detach().float()
        text_ND = distributed.gather_rows(text_ND) if self.objective.gathers else text_ND
        at_N = (self.place + torch.arange(len(text_ND))) % len(self.rows)
        self.rows[at_N] = text_ND
        self.place.add_(len(text_ND)).remainder_(len(self.rows))
        mmcl = MMCL().loss(lambda _: f, batch)["loss"]
        return {"loss": mmcl + 0.5 * pull, "pull": pull}


@dataclass(frozen=True, kw_only=True)
class Banked(Objective):
    """MMCL and a pull of each picture to the nearest text of a bank."""

    rows: int = 24
    """of the bank"""
    gathers: bool = True
    """whether all ranks' texts enter the bank, as they must"""
    two_views = False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Bank:
        return Bank(self, encoder.config["embed_dim"], rng)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise AssertionError("the bank computes it")


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    """MMCL times the mean weight of the batch's pairs."""

    two_views = False

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        loss = MMCL().loss(model, batch)["loss"]
        return {"loss": loss * distributed.gather_rows(batch["weight"]).mean(), "side": batch["side"].float().mean()}


@dataclass(frozen=True, kw_only=True)
class Phased(Method):
    """`first` epochs with a bank; noise on the logit scale; then epochs that take the half with the larger first feature twice."""

    first: int = 1
    """epochs of the first phase"""
    mistake: str = ""

    def train(self, model: Encoder, run: Run) -> Encoder:
        def decide(model: Encoder, epoch: int) -> Any:
            feature_ND = embed(model, run)
            ranked = torch.argsort(feature_ND[:, 0], descending=True, stable=True).numpy()
            samples = len(ranked) // run.training.batch_size * run.training.batch_size
            half = np.sort(ranked[: len(ranked) // 2])
            order = run.rng(f"order {epoch}").permutation(np.resize(half, samples))
            values = {"side": np.isin(np.arange(len(ranked)), half), "weight": (1 + np.arange(len(ranked)) % 3).astype(np.float32)}
            return {
                "": EpochPlan(values=values, order=order),
                "length": EpochPlan(values=values, order=order[1:]),
                "range": EpochPlan(values=values, order=order + len(ranked)),
                "values": EpochPlan(values={"side": values["side"][1:]}, order=order),
                "name": EpochPlan(values={"image": values["side"]}, order=order),
                "nothing": None,
            }[self.mistake if self.mistake not in ("too many", "too few", "field") else ""]

        run.fit(model, Banked(), epochs=self.first, phase="bank", lr=2e-3, schedule="constant", warmup_steps=0)
        with torch.no_grad():
            model.model.logit_scale.add_(0.1 * run.rng("noise").standard_normal())
        if self.mistake == "field":
            run.fit(model, MMCL(), batch_size=4)
        few = 1 if self.mistake == "too few" else None
        run.fit(model, Weighted(), phase="half", warmup_steps=1, begin_epoch=decide, epochs=99 if self.mistake == "too many" else few)
        return model
