"""Optimiser and learning rate of a stage, and the fields that set them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from datasets.component import NEUTRAL, Component, Count, Natural, NotNegative, Positive, since
from datasets.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

_Decay = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Training(Component):
    """How a stage is optimised: AdamW with linear warm-up, then cosine to 0. Steps are counted from the start of the stage, or of its
    phase."""

    epochs: Count
    """passes over the data; each drops the pairs left over from whole batches"""
    batch_size: Count
    """pairs per step, over all workers together"""
    lr: Positive
    """highest learning rate"""
    weight_decay: NotNegative = 0.1
    """decoupled; applies to weights and embeddings, never to biases, norms or the logit scale"""
    warmup_steps: Natural
    """steps of linear warm-up; must be fewer than the stage has"""
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    """decay of AdamW's two running means"""
    eps: Positive = 1e-8
    """added to AdamW's denominator"""
    accumulate: Count = 1
    """parts in which a worker's batch is encoded, to save memory; the loss still sees the whole batch"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast on GPUs that have it, otherwise fp32 | bf16 | fp32. Losses are always computed in fp32"""
    compile: bool = False
    """run torch.compile on both encoders"""
    channels_last: bool = True
    """channels-last memory layout for pictures and convolutions"""
    sync_batchnorm: bool = True
    """batch normalisation over the pairs of all workers; without it the result depends on the number of workers"""
    seed: int = 0
    """seed of the order of samples and of everything else that is drawn in a stage"""
    schedule: Literal["cosine", "constant", "linear_cosine"] = since("cosine")
    """learning rate after the warm-up: cosine (to 0) | constant | linear_cosine (linear to a tenth over one half, then cosine to 0)"""
    checkpoint_every_steps: Count | None = field(default=None, metadata=NEUTRAL)
    """save also within an epoch, every so many steps; None: only at the end of epochs"""

    def check_workers(self, world_size: int) -> None:
        """Raise InputError if a batch cannot be divided evenly among this many workers."""
        if self.batch_size % (world_size * self.accumulate):
            raise InputError(f"{self.slug}.batch_size {self.batch_size} must be a multiple of "
                             f"{world_size} workers x accumulate {self.accumulate}")

    def check(self, total_steps: int, world_size: int) -> None:
        """Raise InputError if the stage's length or the number of workers does not fit these fields."""
        self.check_workers(world_size)
        if total_steps < self.epochs or total_steps % self.epochs:
            raise InputError(f"{total_steps} steps do not make {self.epochs} epochs of whole batches of {self.batch_size}")
        if self.warmup_steps >= total_steps:
            raise InputError(f"{self.slug}.warmup_steps is {self.warmup_steps}, but the stage has only {total_steps} steps; "
                             "the warm-up must end before the stage does")


def learning_rate(step: int, total_steps: int, training: Training) -> float:
    """Learning rate of `step` (0-based, of this stage). In the warm-up: lr·(step+1)/warmup. Then, with t from 0 to 1, by `schedule`:
    cosine: ½·lr·(1+cos π·t); constant: lr; linear_cosine: lr·(1 − 1.8·t) up to t = ½, then lr/10·½·(1+cos π·(2t−1))."""
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.lr
    t = (step - training.warmup_steps) / (total_steps - training.warmup_steps)
    if training.schedule == "linear_cosine":
        return training.lr * (1 - 1.8 * t) if t < 0.5 else 0.05 * training.lr * (1 + math.cos(math.pi * (2 * t - 1)))
    return 0.5 * training.lr * (1 + math.cos(math.pi * t))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to the parameter: to matrices, kernels and embeddings, but not to biases, norms and the logit scale
    (these have one dimension at most) or to the head that a cleaning method adds."""
    return parameter.ndim >= 2 and not name.endswith(("bias", "logit_scale")) and not name.startswith("head.")


def optimizer(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """A new AdamW over the model's trainable parameters, in two groups: with and without weight decay.

    The loop sets the learning rate of each group before each step.
    """
    import torch

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": training.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, eps=training.eps, fused=True)
