"""The interface of an inpainting model, and the algebra of masks with which pictures are protected against one.

Shape suffixes: B pictures, C channels (or 1), H and W height and width. Masks are floats that are 1 where the model paints, else 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Component
from datasets.errors import InputError

GROWTH = 8
"""Pixels by which E(m) is larger than m on each side: a window of 17 × 17."""
HALVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "horizontal": lambda y, x: y,
    "vertical": lambda y, x: x,
    "diagonal": lambda y, x: y + x,
}
"""Ways to halve a mask → what its pixels are sorted by."""


@dataclass(frozen=True, kw_only=True)
class Inpainter(Component, ABC):
    """Paints over the masked part of a picture. To add one, subclass this in its own file and define `fill`.

    Calling it gives the picture with the masked part painted: floats [B, 3, H, W] of 0 … 1, differentiable with respect to the
    pixels. It never sees the pixels under the mask: their gradient is exactly 0. Pixels outside the mask are returned as they are.
    """

    def __call__(self, picture_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        """`picture_BCHW`: floats in 0 … 1; every mask value above 0 counts as 1. InputError if a mask covers a whole picture."""
        if picture_BCHW.shape[0] != mask_B1HW.shape[0] or picture_BCHW.shape[2:] != mask_B1HW.shape[2:] or mask_B1HW.shape[1] != 1:
            raise InputError(f"the mask has the shape {tuple(mask_B1HW.shape)}; accepted: [B, 1, H, W] of pictures "
                             f"{tuple(picture_BCHW.shape)}.")
        painted_B1HW = mask_B1HW > 0
        if painted_B1HW.flatten(1).all(1).any():
            raise InputError("the mask covers the whole picture, so nothing is left from which it could be painted.")
        hidden_BCHW = picture_BCHW.masked_fill(painted_B1HW, 0)
        filled_BCHW = self.fill(hidden_BCHW, painted_B1HW.to(picture_BCHW.dtype))
        return torch.where(painted_B1HW, filled_BCHW, picture_BCHW)

    @abstractmethod
    def fill(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        """What is painted, floats [B, 3, H, W] of 0 … 1; only the part under the mask is used. `hidden_BCHW`: the pictures, 0 under the
        mask; `mask_B1HW`: 0 or 1."""


def binary(mask_B1HW: Tensor) -> Tensor:
    """The mask as 1 where it is above 0, else 0."""
    return (mask_B1HW > 0).to(mask_B1HW.dtype)


def grown(mask_B1HW: Tensor, by: int = GROWTH) -> Tensor:
    """E(m): 1 wherever a pixel of the mask lies within a square of 2·by + 1 pixels."""
    return F.max_pool2d(binary(mask_B1HW), 2 * by + 1, stride=1, padding=by)


def shrunk(mask_B1HW: Tensor, by: int) -> Tensor:
    """1 only where the whole square of 2·by + 1 pixels lies in the mask; what is beyond the picture's edge counts as masked."""
    return 1 - grown(1 - binary(mask_B1HW), by)


def ring(mask_B1HW: Tensor, by: int = GROWTH) -> Tensor:
    """E'(m) = E(m) − m: the band around the mask."""
    return grown(mask_B1HW, by) - binary(mask_B1HW)


def half(mask_B1HW: Tensor, way: str) -> Tensor:
    """half(m): the first half of each mask's n pixels (n/2, rounded up), sorted by row, by column, or by the sum of both (`HALVES`), equal
    ones in reading order."""
    height, width = mask_B1HW.shape[2:]
    y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    order_M = torch.argsort(HALVES[way](y_HW, x_HW).flatten(), stable=True).to(mask_B1HW.device)
    sorted_BM = binary(mask_B1HW).flatten(1)[:, order_M]
    count_B1 = sorted_BM.sum(1, keepdim=True)
    kept_BM = sorted_BM * (sorted_BM.cumsum(1) <= torch.ceil(count_B1 / 2))
    return torch.zeros_like(kept_BM).scatter(1, order_M.expand_as(kept_BM), kept_BM).view_as(mask_B1HW)


def halves(mask_B1HW: Tensor) -> list[Tensor]:
    """half(m) in all three ways."""
    return [half(mask_B1HW, way) for way in HALVES]


def masked_mse(a_BCHW: Tensor, b_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """MSE_M(a, b) = Σ M·(a − b)² / (C·ΣM), floats [B]; 0 for an empty mask."""
    mask_B1HW = binary(mask_B1HW)
    squares_B = (mask_B1HW * (a_BCHW - b_BCHW) ** 2).flatten(1).sum(1)
    return squares_B / (a_BCHW.shape[1] * mask_B1HW.flatten(1).sum(1)).clamp_min(1)
