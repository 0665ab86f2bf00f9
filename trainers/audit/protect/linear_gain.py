"""Paints one colour that is linear in all visible pixels. A positive control: the best noise, and what it does, are known exactly.

Shape suffixes: B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.component import Positive
from datasets.seeding import rng
from trainers.audit.protect.base import Inpainter


@dataclass(frozen=True, kw_only=True)
class LinearGain(Inpainter):
    """In each channel all painted pixels are ½ + κ·Σ v·(x − ½) over the visible pixels, where Σ|v| = 1.

    Among all noise of ±ε the one that moves this colour furthest towards φ is ε·sign(κ·v·(φ − painted)); it moves it by ε·κ·‖v‖₁ = ε·κ.
    What is painted is not cut to 0 … 1, so that this stays exact. It leaves that range only for pictures that resemble v, a random
    pattern.
    """

    kappa: Positive = 4.0
    """κ, the gain: how far the painted colour moves when the pixels move by 1"""
    seed: int = 0
    """of the pattern v"""

    def fill(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        v_B1HW = self.pattern(mask_B1HW)
        colour_BC = 0.5 + self.kappa * (v_B1HW * (hidden_BCHW - 0.5)).sum((2, 3))
        return colour_BC[:, :, None, None].expand_as(hidden_BCHW)

    def pattern(self, mask_B1HW: Tensor) -> Tensor:
        """v for each mask, floats [B, 1, H, W]: 0 under the mask, absolute values that add up to 1."""
        drawn_HW = rng(self.seed, type(self).id, *mask_B1HW.shape[2:]).uniform(0.5, 1.5, tuple(mask_B1HW.shape[2:]))
        sign_HW = np.where(rng(self.seed, type(self).id, "sign", *mask_B1HW.shape[2:]).random(drawn_HW.shape) < 0.5, -1, 1)
        v_B1HW = torch.from_numpy(drawn_HW * sign_HW).to(mask_B1HW) * (1 - mask_B1HW)
        return v_B1HW / v_B1HW.abs().sum((2, 3), keepdim=True)
