"""Checks of the model that a cleaning method returned: can it be saved, is it the one that training ended with, is everything in its
weights?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.checkpoint import CONFIG, about
from trainers.encoder import Encoder
from trainers.evaluate.analysis import looking
from trainers.weights.epoch_folder import WEIGHTS

Signature = dict[str, tuple[str, list[int]]]
"""Name of each tensor in open_clip's model → its type and shape."""
ROUNDING = 1e-4
"""Largest distance of two unit features that differ only by rounding."""
CAPTIONS = ["a photo of a cat.", "two people in front of a red house", "", "sketch of 3 large boats, seen from above; no sky, no sun"]


def signature(encoder: Encoder) -> Signature:
    """The tensors' types and shapes: equal for two models if one can load the other's weights."""
    return {name: (str(value.dtype), list(value.shape)) for name, value in encoder.model.state_dict().items()}


def check_returned(returned: Any, method: str, wanted: Signature) -> None:
    """Raise where the method returned no model, one whose weights open_clip could not load, or weights that are not finite.

    `wanted` is the signature of the model that the method got.
    """
    if not isinstance(returned, Encoder):
        what = "nothing" if returned is None else type(returned).__name__
        raise InputError(f"{method}.train returned {what}; it must return the trained model, an Encoder.")
    found = signature(returned)
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(name) != wanted.get(name):
            now, was = (" ".join(map(str, kind)) if kind else "no weight" for kind in (found.get(name), wanted.get(name)))
            raise InputError(
                f"{method}.train returned a model of other weights than it got: {name} is {now}, it was {was}. It must return a model of "
                "the same architecture, with masks and parametrizations (torch.nn.utils.prune.remove) made part of the weights."
            )
    for name, value in returned.model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"{method}.train returned weights that are not finite: {name}")


def differs(encoder: Encoder, checkpoint: Path) -> bool:
    """Whether the model's weights (in any bit) or its configuration differ from the checkpoint's."""
    saved = load_file(checkpoint / WEIGHTS)
    own = encoder.model.state_dict()
    if json.loads((checkpoint / CONFIG).read_text()) != json.loads(json.dumps(about(encoder))):
        return True
    return any(not torch.equal(_bits(value), _bits(saved[name])) for name, value in own.items())


def check_kept(returned: Encoder, again: Encoder, method: str) -> None:
    """InputError where the model makes other features than `again`, which was read back from its saved weights.

    This happens with hooks, replaced modules and other changes of the computation, which no checkpoint holds.
    """
    again.to(returned.device)
    for own_BD, kept_BD in zip(_features(returned), _features(again)):
        distance_B = (own_BD.nan_to_num() - kept_BD.nan_to_num()).norm(dim=1)  # the measurement reports values that are not finite
        if float(distance_B.max()) > ROUNDING:
            raise InputError(
                f"{method}.train returned a model that its saved weights do not give again: what the method changed is not in the weights "
                "(a hook, a replaced module or function), so it cannot be kept. It must change the weights alone, and remove its hooks."
            )


def _features(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of a few drawn pictures, from fine noise to plain colours, and of a few captions; in fp32, not compiled."""
    draw, size = rng("returned"), encoder.image_size
    pictures = []
    for cell in (1, 8, size):
        side = -(-size // cell)
        coarse_BHWC = draw.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        pictures.append(coarse_BHWC.repeat(cell, axis=1).repeat(cell, axis=2)[:, :size, :size])
    image_BHWC, token_BL = torch.from_numpy(np.concatenate(pictures)), encoder.tokenize(CAPTIONS)
    with looking(encoder), torch.compiler.set_stance("force_eager"):
        return encoder.encode_image(image_BHWC.to(encoder.device)).cpu(), encoder.encode_text(token_BL.to(encoder.device)).cpu()


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
