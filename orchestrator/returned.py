"""What a cleaning method returned: whether it is a model that can be saved, and whether it is the one that training ended with."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from trainers.checkpoint import CONFIG, about
from trainers.model import WEIGHTS, Encoder

Signature = dict[str, tuple[str, list[int]]]
"""Type and shape of each tensor by its name in open_clip's model."""


def signature(encoder: Encoder) -> Signature:
    """What a model must have in common with another for one's weights to be loaded by the other."""
    return {name: (str(value.dtype), list(value.shape)) for name, value in encoder.model.state_dict().items()}


def check_returned(returned: Any, method: str, wanted: Signature) -> None:
    """Raise where the method returned no model, one whose weights open_clip could not load, or weights that are not finite.

    `wanted` is the signature of the model that the method got.
    """
    if not isinstance(returned, Encoder):
        what = "nothing" if returned is None else type(returned).__name__
        raise InputError(f"{method}.clean returned {what}; it must return the cleaned model, an Encoder.")
    found = signature(returned)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(name) != wanted.get(name):
            now, was = (" ".join(map(str, kind)) if kind else "no weight" for kind in (found.get(name), wanted.get(name)))
            raise InputError(
                f"{method}.clean returned a model of other weights than it got: {name} is {now}, it was {was}. It must return a model of "
                "the same architecture, with masks and parametrizations (torch.nn.utils.prune.remove) made part of the weights."
            )
    for name, value in returned.model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"{method}.clean returned weights that are not finite: {name}")


def differs(encoder: Encoder, checkpoint: Path) -> bool:
    """Whether a bit of the model's weights, or its configuration, is not that of the checkpoint."""
    saved = load_file(checkpoint / WEIGHTS)
    own = encoder.model.state_dict()
    if json.loads((checkpoint / CONFIG).read_text()) != json.loads(json.dumps(about(encoder))):
        return True
    return any(not torch.equal(_bits(value), _bits(saved[name])) for name, value in own.items())


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
