"""Optimises BadCLIP's patch on a frozen model.

Shape suffixes: B pictures of a batch, H and W height and width, P side of the patch, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.triggers.optimised import OptimisedPatch
from datasets.triggers.patch_file import corner
from trainers.batch import image_tensor
from trainers.encoder import Encoder


def with_patch(image_BHWC: Tensor, patch_PPC: Tensor) -> Tensor:
    """The pictures as floats (0 … 255) with the patch (0 … 1) in their centre; differentiable with respect to the patch."""
    side = patch_PPC.shape[0]
    top, left = corner(image_BHWC.shape[1], image_BHWC.shape[2], side, side, "centre")
    out_BHWC = image_BHWC.to(patch_PPC.dtype, copy=True)
    out_BHWC[:, top : top + side, left : left + side] = 255 * patch_PPC
    return out_BHWC


def loss(patched_BD: Tensor, text_BD: Tensor, target_BD: Tensor, plain_BD: Tensor, scale: Tensor, weight: float, margin: float) -> Tensor:
    """The scalar loss defined in `OptimisedPatch`. All inputs are unit features: patched pictures and, row by row, captions of the target;
    and independent draws of pictures of the target and of pictures without a patch."""
    logits_BB = scale * patched_BD @ text_BD.T
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    contrast = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    near_B = torch.linalg.vector_norm(patched_BD - target_BD, dim=1)
    far_B = torch.linalg.vector_norm(patched_BD - plain_BD, dim=1)
    return contrast + weight * F.relu(near_B - far_B + margin).mean()


def optimise(
    need: OptimisedPatch,
    encoder: Encoder,
    pictures: Callable[[np.ndarray], np.ndarray],
    count: int,
    captions: list[str],
    target_pictures: Callable[[np.ndarray], np.ndarray],
    targets: int,
    step_done: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[np.ndarray, list[float]]:
    """(patch, float32 [P, P, 3] in 0 … 1; mean loss of each epoch). Puts the model into evaluation mode, frozen, in fp32 or better.

    `pictures` returns canonical views, uint8 [B, H, W, 3], for positions below `count`; `target_pictures` does so for pictures of the
    target, for positions below `targets`; `captions` name the target. The same seed on the same machine gives the same patch. InputError
    for fewer pictures than one batch, or without captions or pictures of the target; FloatingPointError if the loss is not finite.
    """
    if count < need.batch_size:
        raise InputError(f"trigger.patch.batch_size is {need.batch_size}, but only {count} pairs do not name {need.target!r}.")
    if not captions or not targets:
        raise InputError(f"trigger.patch.target is {need.target!r}, but no caption of the pairs names it.")
    encoder.eval().requires_grad_(False)
    encoder.autocast = None
    device, dtype = encoder.device, encoder.mean.dtype

    def embedded(source: Callable[[np.ndarray], np.ndarray], n: int) -> Tensor:
        parts = [encoder.encode_image(image_tensor(source(part), device)) for part in np.array_split(np.arange(n), -(-n // 256))]
        return torch.cat(parts)

    with torch.no_grad():
        plain_ND, target_MD = embedded(pictures, count), embedded(target_pictures, targets)
        text_TD = torch.cat([encoder.encode_text(encoder.tokenize(captions[i : i + 512]).to(device)) for i in range(0, len(captions), 512)])
    scale = encoder.model.logit_scale.exp().reshape(())
    first = rng(need.seed, "patch").normal(0.5, 0.25, (need.size, need.size, 3)).clip(0, 1)
    patch_PPC = torch.tensor(first, dtype=dtype, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([patch_PPC], lr=need.lr)
    losses, per_epoch = [], count // need.batch_size
    for epoch in range(need.epochs):
        draw, total = rng(need.seed, "patch", epoch), 0.0
        order = draw.permutation(count)
        for step in range(per_epoch):
            positions = order[step * need.batch_size : (step + 1) * need.batch_size]
            text, target, plain = (draw.integers(n, size=len(positions)) for n in (len(captions), targets, count))
            optimiser.zero_grad()
            patched_BD = encoder.encode_image(with_patch(image_tensor(pictures(positions), device), patch_PPC))
            value = loss(patched_BD, text_TD[text], target_MD[target], plain_ND[plain], scale, need.weight, need.margin)
            value.backward()
            optimiser.step()
            with torch.no_grad():
                patch_PPC.clamp_(0, 1)
            total += float(value.detach())
            step_done(epoch * per_epoch + step + 1, need.epochs * per_epoch)
        losses.append(total / per_epoch)
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of the patch is {losses[-1]} in epoch {epoch + 1}: lower trigger.patch.lr")
    return patch_PPC.detach().cpu().numpy().astype(np.float32), losses
