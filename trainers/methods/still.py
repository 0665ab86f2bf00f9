"""What stays still while a method trains: statistics of batch normalisation, the logit scale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.encoder import Encoder


@contextmanager
def still_scale(model: Encoder) -> Iterator[None]:
    """The logit scale is no weight that is trained."""
    scale = model.model.logit_scale
    before = scale.requires_grad
    scale.requires_grad_(False)
    try:
        yield
    finally:
        scale.requires_grad_(before)


@contextmanager
def still_batchnorm(model: Encoder) -> Iterator[None]:
    """Batch normalisation in evaluation mode, whatever mode the model is set to: it normalises by its running statistics, which stay."""
    hook = model.register_forward_pre_hook(_evaluating)
    try:
        yield
    finally:
        hook.remove()


def _evaluating(model: nn.Module, inputs: Any) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
