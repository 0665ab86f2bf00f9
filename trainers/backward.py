"""The gradients of one step, computed on the whole batch at once or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.batch import split
from trainers.objectives.base import Loss


def backward(model: nn.Module, objective: Loss, batch: dict[str, Tensor], parts: int, seed: int) -> dict[str, Tensor]:
    """Add the objective's gradients on this batch to the parameters' `.grad`; return the objective's values, detached.

    With parts > 1 the batch is encoded in that many parts, and the loss stays the same (gradient caching, Gao et al. 2021). First all parts
    are encoded without gradient; then the loss and its gradient are computed on the features of the whole batch; then each part is encoded
    again and the gradient of its features is propagated back. Without batch normalisation the gradient equals the one of an undivided
    batch. With it, each part is normalised by its own statistics, and the running statistics are updated once per part, in the second pass
    only. `seed` fixes dropout, the same in both passes.
    """
    if parts == 1:
        _seed(seed, 0)
        losses = objective.loss(model, batch)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}

    chunks = split(batch, parts)
    with torch.no_grad(), still_statistics(model):
        encoded = []
        for i, chunk in enumerate(chunks):
            _seed(seed, i)
            encoded.append(model(chunk))
    scalars = {name for name, value in encoded[0].items() if value.ndim == 0}
    cached = {
        name: (value if name in scalars else torch.cat([e[name] for e in encoded])).detach().requires_grad_()
        for name, value in encoded[0].items()
    }
    losses = objective.loss(lambda _: cached, batch)
    losses["loss"].backward()

    for i, chunk in enumerate(chunks):
        last = i == parts - 1
        # DDP averages gradients with the last part only. The model's scalars already have their whole gradient and join that part.
        with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():  # type: ignore[operator]
            _seed(seed, i)
            out = model(chunk)
            terms = []
            for name, value in out.items():
                grad = cached[name].grad
                if grad is not None and (last or name not in scalars):
                    terms.append((value * (grad if name in scalars else grad.chunk(parts)[i])).sum())
            torch.stack(terms).sum().backward()
    return {name: value.detach() for name, value in losses.items()}


@contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, batch normalisation in training mode does not update its running statistics."""
    norms: list[Any] = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)


def _seed(seed: int, part: int) -> None:
    torch.manual_seed((seed + part) % 2**63)
