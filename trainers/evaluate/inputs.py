"""Shared by audits of a model: a fixed choice of pictures, and gradients with respect to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.errors import InputError
from datasets.seeding import hash64
from trainers import distributed
from trainers.distributed import World

if TYPE_CHECKING:
    from trainers.encoder import Encoder


def fixed_pictures(batches: Iterable[dict[str, Any]], count: int, seed: int, world: World) -> np.ndarray:
    """uint8 [count, S, S, 3], on every rank: the pictures of all ranks with the smallest hashes of (seed, key), ordered by hash.

    Fewer if there are fewer. The result does not depend on the number of ranks or on the order and size of batches. InputError if there are
    fewer than two pictures.
    """
    local: list[tuple[int, str, np.ndarray]] = []
    for batch in batches:
        local += [(hash64(seed, "audit", key), str(key), np.array(image)) for key, image in zip(batch["key"], batch["image"])]
        local = sorted(local, key=lambda one: one[:2])[:count]
    chosen = set(sorted(distributed.gather_lists([one[:2] for one in local], world))[:count])
    if len(chosen) < 2:
        raise InputError(f"an audit needs at least 2 pictures of different keys; the test set has {len(chosen)}.")
    kept = distributed.gather_lists([one for one in local if one[:2] in chosen], world)
    return np.stack([image for *_, image in sorted(kept, key=lambda one: one[:2])])


@contextmanager
def by_pixels(model: Encoder) -> Iterator[None]:
    """Within the block the model is in evaluation mode, in fp32 or better, and its weights get no gradient: for gradients with respect to
    pixels. Afterwards it is as before."""
    import torch
    import torch.backends.cudnn

    training, autocast = model.training, model.autocast
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    model.autocast = None
    for weight in trained:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
        model.autocast = autocast
        model.train(training)
