"""Optimiser and learning rate of one stage, and the fields that determine them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from datasets.component import NEUTRAL, Component, since
from datasets.errors import InputError

PRECISIONS = ("auto", "bf16", "fp32")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Training(Component):
    """How one stage is optimised: AdamW, linear warm-up, cosine to 0, both counted from step 0 of this stage, or of its phase."""

    epochs: int
    """passes over the data; the remainder below a whole batch is dropped in each"""
    batch_size: int
    """pairs a step, over all workers together"""
    lr: float
    """highest learning rate"""
    weight_decay: float = 0.1
    """decoupled; acts on weights and embeddings, never on biases, norms or the logit scale"""
    warmup_steps: int
    """steps of linear warm-up; must be fewer than the stage has"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay of AdamW's two running means"""
    eps: float = 1e-8
    """AdamW's denominator term"""
    accumulate: int = 1
    """parts a worker's batch is encoded in, to save memory; the loss still sees the whole batch"""
    precision: str = "auto"
    """auto: bf16 autocast on GPUs that have it, else fp32; bf16; fp32. Losses are always fp32"""
    compile: bool = False
    """torch.compile the two encoders"""
    channels_last: bool = True
    """memory layout of pictures and convolutions"""
    sync_batchnorm: bool = True
    """batch normalisation over all workers' pairs; without it the result depends on the number of workers"""
    seed: int = 0
    """of the order of samples, and of everything else a stage draws"""
    schedule: str = since("cosine")
    """of the learning rate after the warm-up: cosine (to 0) | constant"""
    checkpoint_every_steps: int | None = field(default=None, metadata=NEUTRAL)
    """also save within an epoch; None: at the end of epochs only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"epochs": 1, "batch_size": 1, "warmup_steps": 0, "accumulate": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{self.slug}.{name} is {getattr(self, name)}; it must be at least {low}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"{self.slug}.lr is {self.lr}; it must be a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"{self.slug}.weight_decay is {self.weight_decay}; it must be a number from 0 up")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"{self.slug}.betas is {self.betas}; both must be from 0 up and below 1")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"{self.slug}.eps is {self.eps}; it must be a number above 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"{self.slug}.precision is {self.precision!r}; accepted: {', '.join(PRECISIONS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"{self.slug}.schedule is {self.schedule!r}; accepted: {', '.join(SCHEDULES)}")
        if self.checkpoint_every_steps is not None and self.checkpoint_every_steps < 1:
            raise InputError(f"{self.slug}.checkpoint_every_steps is {self.checkpoint_every_steps}; "
                             "it must be at least 1, or None")

    def check_workers(self, world_size: int) -> None:
        """Raise InputError where batches cannot be shared among so many workers."""
        if self.batch_size % (world_size * self.accumulate):
            raise InputError(f"{self.slug}.batch_size {self.batch_size} must be a multiple of "
                             f"{world_size} workers x accumulate {self.accumulate}")

    def check(self, total_steps: int, world_size: int) -> None:
        """Raise InputError where the stage's length or the number of workers does not fit these fields."""
        self.check_workers(world_size)
        if total_steps < self.epochs or total_steps % self.epochs:
            raise InputError(f"{total_steps} steps do not make {self.epochs} epochs of whole batches of {self.batch_size}")
        if self.warmup_steps >= total_steps:
            raise InputError(f"{self.slug}.warmup_steps is {self.warmup_steps}, but the stage has only {total_steps} steps; "
                             "the warm-up must end before the stage does")


def learning_rate(step: int, total_steps: int, training: Training) -> float:
    """Rate of `step` (0-based, of this stage): lr·(step+1)/warmup while warming up, then ½·lr·(1+cos π·t), t from 0 to 1, or lr."""
    if step < training.warmup_steps:
        return training.lr * (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return training.lr
    t = (step - training.warmup_steps) / (total_steps - training.warmup_steps)
    return 0.5 * training.lr * (1 + math.cos(math.pi * t))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts: matrices, kernels and embeddings; no bias, norm or logit scale (those have one dimension), and
    not the head that a cleaning method adds."""
    return parameter.ndim >= 2 and not name.endswith(("bias", "logit_scale")) and not name.startswith("head.")


def optimizer(model: nn.Module, training: Training) -> torch.optim.AdamW:
    """A fresh AdamW over the model's trainable parameters in two groups, with and without decay.

    Every group's rate is set before each step by the loop.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": training.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, eps=training.eps, fused=True)
