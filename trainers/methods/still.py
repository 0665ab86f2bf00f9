"""Keeps batch-normalisation statistics, the logit scale or the text tower fixed while a method trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from trainers.encoder import Encoder


@contextmanager
def still_scale(model: Encoder) -> Iterator[None]:
    """Within the block the logit scale is not trained."""
    scale = model.model.logit_scale
    before = scale.requires_grad
    scale.requires_grad_(False)
    try:
        yield
    finally:
        scale.requires_grad_(before)


@contextmanager
def still_text(model: Encoder) -> Iterator[None]:
    """Within the block only the image tower is trained: not the text tower, nor the logit scale and bias."""
    still = [weight for name, weight in model.model.named_parameters() if not name.startswith("visual.") and weight.requires_grad]
    for weight in still:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in still:
            weight.requires_grad_(True)


@contextmanager
def still_batchnorm(model: Encoder) -> Iterator[None]:
    """Within the block batch normalisation runs in evaluation mode, whatever the model's mode: it uses its running statistics and does not
    change them."""
    hook = model.register_forward_pre_hook(_evaluating)
    try:
        yield
    finally:
        hook.remove()


def _evaluating(model: nn.Module, inputs: Any) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
