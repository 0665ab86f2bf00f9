"""A model's losses and their gradients on the clean pairs, before cleaning starts."""

from __future__ import annotations

import copy
import itertools

import torch

from trainers import distributed
from trainers.backward import backward
from trainers.batch import Feed, to_device
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.objectives.contrastive import MMCL, SSL
from trainers.schedule import Training

BATCHES, PAIRS = 4, 64
"""BATCHES: how many batches are used; PAIRS: at most how many pairs of each. They do not depend on the stage's batch size, so that stages
can be compared."""


def probe(encoder: Encoder, feed: Feed, training: Training, world: World | None = None) -> dict[str, float]:
    """The mean MMCL and in-modal loss over the feed's first batches, and the norm of each loss's mean gradient.

    The gradient is with respect to all parameters. Batch normalisation uses the batch's statistics, as in training. Works on a copy, so the
    model and the random state are left unchanged. `feed` must give two views.
    """
    world = world or World()
    clone = copy.deepcopy(encoder, {id(encoder.tokenize): encoder.tokenize})
    clone.place(world.device, precision=training.precision, channels_last=training.channels_last)
    distributed.synchronise_batchnorm(clone, world)
    clone.train()
    if clone.model.logit_bias is not None:
        clone.model.logit_bias.requires_grad_(False)  # neither loss uses it
    model = distributed.wrap(clone, world)
    rows = PAIRS // world.size
    raws = list(itertools.islice(feed.batches(), BATCHES))
    batches = [{name: value[:rows] for name, value in to_device(raw, clone, True).items()} for raw in raws]
    values: dict[str, float] = {}
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        for name, objective in (("mmcl", MMCL()), ("inmodal", SSL())):
            clone.zero_grad()
            losses = [backward(model, objective, batch, 1, seed)["loss"] for seed, batch in enumerate(batches)]
            gradients = [p.grad for p in clone.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient.double()) for gradient in gradients]))
            mean = distributed.sum_over_ranks({"loss": float(torch.stack(losses).mean())}, world)["loss"] / world.size
            values |= {f"before/{name}": mean, f"before/{name}_grad_norm": float(norm) / len(batches)}
    return values
