"""Auto-PGD (Croce and Hein 2020): projected gradient ascent with momentum that halves its own step size.

Shape suffixes: b pictures that still need work, C channels, H and W height and width, K classes, T target classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Count, Share
from datasets.errors import InputError
from trainers.audit.attacks.base import lengths, margin, project, steepest
from trainers.audit.attacks.pgd import tensor
from trainers.audit.attacks.work import Bounded, Work, likeliest, wide

NEEDS = {"ce": 2, "dlr": 3, "targeted_dlr": 4}
"""How many classes a loss needs."""


@dataclass
class State:
    """Where the ascent of each picture stands."""

    at: Tensor
    """its position in the batch"""
    aim: Tensor
    """its label, or the class to move towards"""
    around: Tensor
    here: Tensor
    before: Tensor
    """one step ago"""
    slope: Tensor
    value: Tensor
    top: Tensor
    """where the loss was largest"""
    top_slope: Tensor
    top_value: Tensor
    checked: Tensor
    """the largest loss at the last checkpoint"""
    step: Tensor
    rises: Tensor
    """steps since the last checkpoint that raised the loss"""
    halved: Tensor
    """whether the step was halved at the last checkpoint"""

    def only(self, left_b: Tensor) -> State:
        """Those pictures alone."""
        return State(*(getattr(self, field.name)[left_b] for field in fields(self)))


@dataclass(frozen=True, kw_only=True)
class APGD(Bounded):
    """Projected ascent of a loss from a random point at distance ε, with momentum.

    z = project(x + η·step), x ← project(x + a·(z − x) + (1 − a)·(x − previous x)). η starts at 2ε. At the checkpoints (after 22 % of the
    steps, then at intervals that shrink by 3 % down to 6 %) η is halved and the ascent goes on from the best point if fewer than ρ of the
    steps since the last checkpoint raised the loss, or if η was not halved there and the largest loss has not grown since. With z sorted,
    z₁ the largest logit: DLR = −(z_y − max of the others)/(z₁ − z₃), targeted DLR = −(z_y − z_t)/(z₁ − ½(z₃ + z₄)).

    A picture is left alone as soon as it is fooled. Each start of another picture takes steps + 1 queries, and targeted_dlr one more for
    the target classes.
    """

    loss: Literal["ce", "dlr", "targeted_dlr"] = "ce"
    """ce: cross-entropy; dlr and targeted_dlr: differences of logits that no scaling of the logits changes"""
    steps: Count = 100
    """steps of each start"""
    restarts: Count = 1
    """number of starts, for targeted_dlr those of each target class"""
    targets: Count = 9
    """for targeted_dlr: number of target classes, the likeliest wrong ones; all if there are fewer"""
    rho: Share = 0.75
    """ρ"""
    momentum: Share = 0.75
    """a, the share of the new step; 1: no momentum"""

    @property
    def label(self) -> str:
        return {"ce": "APGD-CE", "dlr": "APGD-DLR", "targeted_dlr": "APGD-T"}[self.loss]

    def check(self, classes: int) -> None:
        """Raises InputError if the loss is not defined for that many classes."""
        super().check(classes)
        if classes < NEEDS[self.loss]:
            raise InputError(f"APGD.loss is {self.loss}, and the classifier has {classes} classes; accepted: at least {NEEDS[self.loss]}.")

    def search(self, work: Work) -> None:
        aims = [work.label_B]
        if self.loss == "targeted_dlr":
            aims = list(likeliest(work.logits(work.start_BCHW, work.all_B), work.label_B, self.targets).unbind(1))
        for number, aim_B in enumerate(aims):
            for restart in range(self.restarts):
                at_b = work.standing_b
                if len(at_b):
                    self._run(work, at_b, aim_B[at_b], (number, restart))

    def _run(self, work: Work, at_b: Tensor, aim_b: Tensor, number: tuple[int, int]) -> None:
        state = self._begin(work, at_b, aim_b, number)
        checks, last = checkpoints(self.steps), 0
        for number_of_step in range(1, self.steps + 1):
            if not len(state.at):
                return
            self._step(state, first=number_of_step == 1)
            if number_of_step == self.steps:
                self._keep(work, state, work.logits(state.here, state.at))
                return
            logit_bK, value_b, state.slope = work.climb(state.here, state.at, self._loss(state.aim, work.label_B[state.at]))
            state.rises += value_b > state.value
            state.value = value_b
            higher_b = value_b > state.top_value
            state.top = torch.where(wide(higher_b), state.here, state.top)
            state.top_slope = torch.where(wide(higher_b), state.slope, state.top_slope)
            state.top_value = torch.where(higher_b, value_b, state.top_value)
            state = self._keep(work, state, logit_bK)
            if number_of_step in checks:
                self._halve(state, number_of_step - last)
                last = number_of_step

    def _begin(self, work: Work, at_b: Tensor, aim_b: Tensor, number: tuple[int, int]) -> State:
        around_bCHW = work.start_BCHW[at_b]
        way_bCHW = tensor(np.stack([self._way(key, around_bCHW.shape[1:], number) for key in work.keys(at_b)]), work)
        here_bCHW = project(around_bCHW + self.eps * way_bCHW / wide(lengths(way_bCHW, self.norm)), around_bCHW, self.eps, self.norm)
        logit_bK, value_b, slope_bCHW = work.climb(here_bCHW, at_b, self._loss(aim_b, work.label_B[at_b]))
        state = State(
            at=at_b, aim=aim_b, around=around_bCHW, here=here_bCHW, before=here_bCHW, slope=slope_bCHW, value=value_b,
            top=here_bCHW, top_slope=slope_bCHW, top_value=value_b, checked=value_b,
            step=torch.full_like(value_b, 2 * self.eps), rises=torch.zeros_like(at_b), halved=torch.zeros_like(at_b, dtype=torch.bool),
        )  # fmt: skip
        return self._keep(work, state, logit_bK)

    def _way(self, key: str, shape: torch.Size, number: tuple[int, int]) -> np.ndarray:
        draw = self.draw(key, self.loss, *number)
        return draw.uniform(-1, 1, shape) if self.norm == "linf" else draw.standard_normal(shape)

    def _step(self, state: State, first: bool) -> None:
        z_bCHW = project(state.here + wide(state.step) * steepest(state.slope, self.norm), state.around, self.eps, self.norm)
        if not first:
            z_bCHW = state.here + self.momentum * (z_bCHW - state.here) + (1 - self.momentum) * (state.here - state.before)
            z_bCHW = project(z_bCHW, state.around, self.eps, self.norm)
        state.before, state.here = state.here, z_bCHW

    def _halve(self, state: State, steps: int) -> None:
        """The checkpoint after that many steps since the last one."""
        stuck_b = ~state.halved & (state.top_value <= state.checked)
        state.halved = (state.rises < self.rho * steps) | stuck_b
        state.step = torch.where(state.halved, state.step / 2, state.step)
        state.here = torch.where(wide(state.halved), state.top, state.here)
        state.slope = torch.where(wide(state.halved), state.top_slope, state.slope)
        state.value = torch.where(state.halved, state.top_value, state.value)
        state.checked = state.top_value
        state.rises = torch.zeros_like(state.rises)

    def _keep(self, work: Work, state: State, logit_bK: Tensor) -> State:
        """Keep better tries; what is left to do."""
        score_b = margin(logit_bK, work.label_B[state.at])
        fooled_b = score_b > 0
        work.keep(state.here, score_b, fooled_b, state.at)
        return state.only(~fooled_b) if fooled_b.any() else state

    def _loss(self, aim_b: Tensor, label_b: Tensor) -> Callable[[Tensor], Tensor]:
        if self.loss == "ce":
            return lambda logit_bK: F.cross_entropy(logit_bK, label_b, reduction="none")
        if self.loss == "dlr":
            return lambda logit_bK: dlr(logit_bK, label_b)
        return lambda logit_bK: targeted_dlr(logit_bK, label_b, aim_b)


def checkpoints(steps: int) -> set[int]:
    """After which steps the step size is looked at: w = ⌈p·steps⌉ with p₁ = .22 and p growing by the last growth less .03, at least .06."""
    share = [0.0, 0.22]
    while share[-1] < 1:
        share.append(share[-1] + max(share[-1] - share[-2] - 0.03, 0.06))
    return {math.ceil(steps * p - 1e-9) for p in share[1:] if p <= 1}


def dlr(logit_bK: Tensor, label_b: Tensor) -> Tensor:
    """−(z_y − max of the others)/(z₁ − z₃), floats [b]; above 0 where the picture is misclassified."""
    top_b3 = logit_bK.topk(3, dim=1).values
    return margin(logit_bK, label_b) / _positive(top_b3[:, 0] - top_b3[:, 2])


def targeted_dlr(logit_bK: Tensor, label_b: Tensor, target_b: Tensor) -> Tensor:
    """−(z_y − z_t)/(z₁ − ½(z₃ + z₄)), floats [b]."""
    top_b4 = logit_bK.topk(4, dim=1).values
    own_b, target_b = (logit_bK.gather(1, at_b[:, None])[:, 0] for at_b in (label_b, target_b))
    return (target_b - own_b) / _positive(top_b4[:, 0] - (top_b4[:, 2] + top_b4[:, 3]) / 2)


def _positive(value_b: Tensor) -> Tensor:
    return value_b.clamp_min(torch.finfo(value_b.dtype).tiny)
