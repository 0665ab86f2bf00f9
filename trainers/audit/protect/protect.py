"""Noise that makes inpainting models paint a flat colour in place of what is protected (Attack as Defense, arXiv 2410.14966).

Shape suffixes: B pictures, C channels, H and W height and width. Masks are floats that are 1 where a model paints, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from datasets.component import Component, Natural, NotNegative, Positive
from datasets.seeding import rng
from trainers.audit.protect.base import Inpainter, binary, grown, masked_mse, ring, shrunk

Beta = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True)
class Protected:
    """A protected picture."""

    picture_BCHW: Tensor
    """The pictures with the noise, in 0 … 1."""
    noise_BCHW: Tensor
    """P, within ±ε."""
    target_BCHW: Tensor
    """φ, what the model should paint."""


@dataclass(frozen=True, kw_only=True)
class Protect(Component):
    """Noise P, over the whole picture x, that minimises a sum of losses by Adam. IM is the inpainting model and m the mask of what is
    protected; E(m) is m grown by 8 pixels and E' the ring between both.

    - implant: MSE_m(IM(x+P, m), φ): who masks what is protected gets φ.
    - incomplete: MSE_E(IM(x+P, E), φ): who masks more gets it too.
    - hide: MSE_E'(IM(x+P, E'), IM(x, E')): who masks what is beside it gets what he would get without P.
    - augment: implant for further masks that are drawn anew in each step, shrunk or cut from E(m) or put over it.

    After each step P is cut to ±ε, and the last P is what is returned (the authors cut it before each step, and drop the last step). The
    picture is cut to 0 … 1 with the gradient of the identity.
    """

    eps: Annotated[float, Interval(gt=0, le=1)] = 0.025
    """ε, as a share of a pixel's full range: 6.4/255"""
    steps: Natural = 20
    """of Adam"""
    lr: Positive = 0.1
    """Adam's learning rate"""
    beta1: Beta = 0.5
    """Adam's mean of gradients forgets at this rate"""
    beta2: Beta = 0.5
    """Adam's mean of squared gradients forgets at this rate"""
    implant: NotNegative = 1.0
    """weight of the loss"""
    incomplete: NotNegative = 1.0
    """weight of the loss"""
    hide: NotNegative = 2.0
    """weight of the loss"""
    augment: NotNegative = 1.0
    """weight of the loss; 0: the published method, which knows m and E(m) alone"""
    augmented: Natural = 1
    """further masks in each step, whose losses are averaged"""
    target: Literal["flat", "negative"] = "flat"
    """φ: flat (the one of green, red and blue that is farthest from the picture's mean colour) or negative (1 − x)"""
    start: Literal["zero", "symmetric"] = "zero"
    """P before the first step: zero, or uniform in ±ε"""
    seed: int = 0
    """of the further masks and of a symmetric start"""

    def run(self, inpainter: Inpainter, picture_BCHW: Tensor, mask_B1HW: Tensor, keys: Sequence[str]) -> Protected:
        """Protect the masked part of each picture (floats of 0 … 1). Random draws depend on the seed and the picture's key alone.
        InputError if E(m) covers a whole picture."""
        mask_B1HW = binary(mask_B1HW).to(picture_BCHW)
        large_B1HW, ring_B1HW = grown(mask_B1HW), ring(mask_B1HW)
        target_BCHW = negative(picture_BCHW) if self.target == "negative" else flat(picture_BCHW)
        with torch.no_grad():
            beside_BCHW = inpainter(picture_BCHW, ring_B1HW) if self.hide else picture_BCHW
        noise_BCHW = self._start(picture_BCHW, keys).requires_grad_()
        adam = torch.optim.Adam([noise_BCHW], lr=self.lr, betas=(self.beta1, self.beta2), eps=1e-10)
        for step in range(self.steps):
            terms = [
                (self.implant, mask_B1HW, target_BCHW),
                (self.incomplete, large_B1HW, target_BCHW),
                (self.hide, ring_B1HW, beside_BCHW),
            ]
            if self.augment:
                terms += [(self.augment / self.augmented, self.further(mask_B1HW, keys, step, number), target_BCHW)
                          for number in range(self.augmented)]
            noise_BCHW.grad = torch.zeros_like(noise_BCHW)
            for weight, painted_B1HW, wanted_BCHW in terms:
                if weight:
                    noisy_BCHW = straight_through(picture_BCHW + noise_BCHW)
                    loss_B = masked_mse(inpainter(noisy_BCHW, painted_B1HW), wanted_BCHW, painted_B1HW)
                    (gradient_BCHW,) = torch.autograd.grad(weight * loss_B.sum(), noise_BCHW)
                    noise_BCHW.grad += gradient_BCHW
            adam.step()
            with torch.no_grad():
                noise_BCHW.clamp_(-self.eps, self.eps)
        found_BCHW = noise_BCHW.detach()
        return Protected((picture_BCHW + found_BCHW).clamp(0, 1), found_BCHW, target_BCHW)

    def further(self, mask_B1HW: Tensor, keys: Sequence[str], step: int, number: int = 0) -> Tensor:
        """A random mask for each picture, none of them empty."""
        drawn = [_drawn(mask_1HW, rng(self.seed, type(self).id, "mask", key, step, number)) for mask_1HW, key in zip(mask_B1HW, keys)]
        return torch.stack(drawn)

    def _start(self, picture_BCHW: Tensor, keys: Sequence[str]) -> Tensor:
        if self.start == "zero":
            return torch.zeros_like(picture_BCHW)
        shape = tuple(picture_BCHW.shape[1:])
        drawn = [rng(self.seed, type(self).id, "start", key).uniform(-self.eps, self.eps, shape) for key in keys]
        return torch.from_numpy(np.stack(drawn)).to(picture_BCHW)


def straight_through(picture_BCHW: Tensor) -> Tensor:
    """The picture cut to 0 … 1, with the gradient of the identity."""
    return picture_BCHW + (picture_BCHW.clamp(0, 1) - picture_BCHW).detach()


def flat(picture_BCHW: Tensor) -> Tensor:
    """Pictures of one colour: the one of green, red and blue (the first among equals) at the largest distance from the mean colour."""
    colour_KC = picture_BCHW.new_tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    distance_BK = ((picture_BCHW.mean((2, 3))[:, None] - colour_KC) ** 2).sum(2)
    return colour_KC[distance_BK.argmax(1)][:, :, None, None].expand_as(picture_BCHW)


def negative(picture_BCHW: Tensor) -> Tensor:
    """1 − x."""
    return 1 - picture_BCHW


def random_noise(picture_BCHW: Tensor, eps: float, keys: Sequence[str], seed: int = 0) -> Tensor:
    """Pictures with +ε or −ε, by chance, in each channel of each pixel, cut to 0 … 1: what any protection must beat."""
    shape = tuple(picture_BCHW.shape[1:])
    drawn = [np.where(rng(seed, "random-noise", key).random(shape) < 0.5, -eps, eps) for key in keys]
    return (picture_BCHW + torch.from_numpy(np.stack(drawn)).to(picture_BCHW)).clamp(0, 1)


def _drawn(mask_1HW: Tensor, draw: np.random.Generator) -> Tensor:
    """One random mask: E(m) shrunk by 0 to 12 pixels and often cut by a line, or a rectangle or an ellipse over the middle of m."""
    height, width = mask_1HW.shape[1:]
    y_HW, x_HW = np.mgrid[:height, :width]
    y_M, x_M = np.nonzero(mask_1HW[0].cpu().numpy())
    if not len(y_M):
        return mask_1HW
    centre = np.array([(y_M.min() + y_M.max()) / 2, (x_M.min() + x_M.max()) / 2])
    radius = np.array([np.ptp(y_M) + 1, np.ptp(x_M) + 1]) / 2
    if draw.random() < 0.5:
        one_11HW = shrunk(grown(mask_1HW[None]), int(draw.integers(0, 13)))
        angle, offset = draw.uniform(0, 2 * np.pi), draw.uniform(-0.5, 1.5)
        along_HW = np.sin(angle) * (y_HW - centre[0]) / radius[0] + np.cos(angle) * (x_HW - centre[1]) / radius[1]
        found_1HW = one_11HW[0] * torch.from_numpy(along_HW <= offset).to(mask_1HW)
    else:
        middle, size = centre + draw.uniform(-0.5, 0.5, 2) * radius, radius * draw.uniform(0.4, 1.4, 2)
        down_HW, across_HW = np.abs(y_HW - middle[0]) / size[0], np.abs(x_HW - middle[1]) / size[1]
        inside_HW = np.maximum(down_HW, across_HW) <= 1 if draw.random() < 0.5 else down_HW**2 + across_HW**2 <= 1
        found_1HW = torch.from_numpy(inside_HW).to(mask_1HW)[None]
    return found_1HW if found_1HW.any() and not found_1HW.all() else mask_1HW
