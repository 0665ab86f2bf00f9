"""Square attack (Andriushchenko et al. 2020): a random search by squares that only looks at the logits.

Shape suffixes: b pictures that still need work, C channels, H and W height and width, K classes, n random numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.component import Count, Share
from trainers.audit.attacks.base import lengths, margin
from trainers.audit.attacks.pgd import tensor
from trainers.audit.attacks.work import Bounded, Work, wide

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10 000 queries the share of changed pixels is halved."""
BLOCK = 256
"""Steps for which random numbers are drawn at a time; changes no result."""


@dataclass(frozen=True, kw_only=True)
class Square(Bounded):
    """Each step changes the picture within a random square and is undone if the margin does not grow. A picture is left alone as soon as
    it is fooled.

    linf: the first try adds stripes of ±ε, one for each column and channel; a square sets each channel to +ε or −ε. l2: the first try
    adds a pattern of pyramids whose length is ε; a square adds a pyramid, taking the length that another random square gives up. The
    square's area begins at p·H·W and is halved after .1, .5, 2, 5, 10, 20, 40, 60 and 80 % of the queries. A square that would change
    nothing is tried with its signs turned.
    """

    black_box: ClassVar[bool] = True
    queries: Count = 5000
    """largest number of classifications of a picture"""
    p: Share = 0.8
    """p, the first square's share of the picture"""

    def search(self, work: Work) -> None:
        _, channels, height, width = work.start_BCHW.shape
        at_b, draws = work.all_B, [self.draw(key) for key in work.keys_B]
        first_bCHW = self._first(work, draws)
        self._look(work, first_bCHW, at_b)
        count = 5 + 2 * channels
        for step in range(1, self.queries):
            if (step - 1) % BLOCK == 0:
                block_BLn = np.stack([draw.random((BLOCK, count)) for draw in draws])
            at_b = work.standing_b
            if not len(at_b):
                return
            side = self._side(step, height, width)
            random_bn = torch.from_numpy(block_BLn[at_b.cpu().numpy(), (step - 1) % BLOCK]).to(at_b.device)
            new_bCHW = (self._by_signs if self.norm == "linf" else self._by_pyramids)(work, at_b, side, random_bn)
            self._look(work, new_bCHW, at_b)

    def _look(self, work: Work, picture_bCHW: Tensor, at_b: Tensor) -> None:
        score_b = margin(work.logits(picture_bCHW, at_b), work.label_B[at_b])
        work.keep(picture_bCHW, score_b, score_b > 0, at_b)

    def _side(self, step: int, height: int, width: int) -> int:
        """Of the square at this step."""
        share = self.p / 2 ** sum(step * 10_000 // self.queries > limit for limit in HALVED)
        side = max(round(math.sqrt(share * height * width)), 1 if self.norm == "linf" else 3)
        if self.norm == "l2" and side % 2 == 0:
            side += 1
        return min(side, height, width)

    def _first(self, work: Work, draws: list[np.random.Generator]) -> Tensor:
        start_BCHW = work.start_BCHW
        _, channels, height, width = start_BCHW.shape
        if self.norm == "linf":
            sign_BCW = tensor(np.stack([_signs(draw.random((channels, width))) for draw in draws]), work)
            return (start_BCHW + self.eps * sign_BCW[:, :, None, :]).clamp(0, 1)
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        pattern_2SS = self._pyramids(side, work)
        tile_HW = pattern_2SS[0].repeat(rows, columns)
        sign_BCRL = np.stack([_signs(draw.random((channels, rows, columns))) for draw in draws])
        sign_BCHW = tensor(sign_BCRL, work).repeat_interleave(side, 2).repeat_interleave(side, 3)
        change_BCHW = torch.zeros_like(start_BCHW)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        change_BCHW[:, :, top : top + rows * side, left : left + columns * side] = tile_HW * sign_BCHW
        return self._within(start_BCHW, change_BCHW)

    def _by_signs(self, work: Work, at_b: Tensor, side: int, random_bn: Tensor) -> Tensor:
        """The best tries with each channel of a square at +ε or −ε."""
        start_bCHW, best_bCHW = work.start_BCHW[at_b], work.best_BCHW[at_b]
        mask_bHW, _, _ = _square(random_bn[:, 0], random_bn[:, 1], side, start_bCHW)
        channels = start_bCHW.shape[1]
        change_bC11 = self.eps * (2 * (random_bn[:, 5 : 5 + channels] < 0.5).to(start_bCHW) - 1)[:, :, None, None]
        new_bCHW = torch.where(mask_bHW[:, None], (start_bCHW + change_bC11).clamp(0, 1), best_bCHW)
        same_b = (new_bCHW == best_bCHW).flatten(1).all(1)
        if same_b.any():
            turned_bCHW = torch.where(mask_bHW[:, None], (start_bCHW - change_bC11).clamp(0, 1), best_bCHW)
            new_bCHW = torch.where(wide(same_b), turned_bCHW, new_bCHW)
        return new_bCHW

    def _by_pyramids(self, work: Work, at_b: Tensor, side: int, random_bn: Tensor) -> Tensor:
        """The best tries with a pyramid added in one square, of a length that is free or that a second square gives up."""
        start_bCHW = work.start_BCHW[at_b]
        change_bCHW = work.best_BCHW[at_b] - start_bCHW
        channels, tiny = start_bCHW.shape[1], torch.finfo(start_bCHW.dtype).tiny
        mask_bHW, row_bH, column_bW = _square(random_bn[:, 0], random_bn[:, 1], side, start_bCHW)
        other_bHW, _, _ = _square(random_bn[:, 2], random_bn[:, 3], side, start_bCHW)
        here_b1HW, both_b1HW = mask_bHW[:, None], (mask_bHW | other_bHW)[:, None]
        turn_b = (random_bn[:, 4] < 0.5).long()
        pattern_bHW = self._pyramids(side, work)[turn_b[:, None, None], row_bH[:, :, None], column_bW[:, None, :]]
        sign_bC11 = (2 * (random_bn[:, 5 : 5 + channels] < 0.5).to(start_bCHW) - 1)[:, :, None, None]
        inside_bCHW = change_bCHW * here_b1HW
        old_bCHW = inside_bCHW / _long(inside_bCHW).clamp_min(1e-12 if tiny < 1e-12 else tiny)
        new_bCHW = (pattern_bHW[:, None] * sign_bC11 + old_bCHW) * here_b1HW
        free_b = (self.eps**2 - lengths(change_bCHW, "l2").square()).clamp_min(0) / channels
        budget_bC11 = (wide(free_b) + _long(change_bCHW * both_b1HW).square()).sqrt()
        new_bCHW = new_bCHW / _long(new_bCHW).clamp_min(tiny) * budget_bC11
        return self._within(start_bCHW, torch.where(here_b1HW, new_bCHW, change_bCHW * ~both_b1HW))

    def _within(self, start_bCHW: Tensor, change_bCHW: Tensor) -> Tensor:
        """The pictures with a change of length ε, cut to 0 … 1."""
        long_b = lengths(change_bCHW, "l2").clamp_min(torch.finfo(change_bCHW.dtype).tiny)
        return (start_bCHW + change_bCHW * wide(self.eps / long_b)).clamp(0, 1)

    def _pyramids(self, side: int, work: Work) -> Tensor:
        """Two pyramids side by side, one turned down, of length 1 together, floats [2, side, side]: one above the other, and beside."""
        half = side // 2
        both_SS = np.concatenate([_pyramid(half, side), -_pyramid(side - half, side)])
        both_SS /= max(np.linalg.norm(both_SS), 1e-12)
        return tensor(np.stack([both_SS, both_SS.T]), work)


def _pyramid(height: int, width: int) -> np.ndarray:
    """Σ 1/(k + 1)² over the nested rectangles k = r, r + 1, … that hold a point, r its distance (in the larger coordinate) from the
    middle; of length 1. Floats [height, width]."""
    if not height:
        return np.zeros((0, width))
    row_H, column_W = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    ring_HW = np.maximum(row_H[:, None], column_W)
    tail_R = np.cumsum((1.0 / np.arange(1, max(height, width) // 2 + 2) ** 2)[::-1])[::-1]
    value_HW = tail_R[ring_HW]
    return value_HW / np.linalg.norm(value_HW)


def _square(row_b: Tensor, column_b: Tensor, side: int, like_bCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squares at random places (numbers of 0 … 1): bool [b, H, W], and each row's and column's number within the square, int64 [b, H] and
    [b, W], cut to 0 … side − 1."""
    inside, numbers = [], []
    for random_b, length in ((row_b, like_bCHW.shape[2]), (column_b, like_bCHW.shape[3])):
        first_b = (random_b * (length - side + 1)).long().clamp_max(length - side)
        number_bL = torch.arange(length, device=like_bCHW.device) - first_b[:, None]
        inside.append((number_bL >= 0) & (number_bL < side))
        numbers.append(number_bL.clamp(0, side - 1))
    return inside[0][:, :, None] & inside[1][:, None, :], numbers[0], numbers[1]


def _long(value_bCHW: Tensor) -> Tensor:
    """The length of each channel, floats [b, C, 1, 1]."""
    return torch.linalg.vector_norm(value_bCHW, dim=(2, 3), keepdim=True)


def _signs(random: np.ndarray) -> np.ndarray:
    return np.where(random < 0.5, -1.0, 1.0)
