"""Quilting: the picture is put together again from patches of clean pictures (Efros and Freeman 2001; Guo et al. 2018).

Shape suffixes: B pictures, N clean pictures, H and W height and width, P places in a picture, M patches of the bank, V values of a patch,
K neighbours, p side of a patch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from datasets.component import Count
from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier, as_bytes, as_floats
from trainers.audit.defences.base import Defence

AT_A_TIME = 2**23
"""Distances that are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Quilting(Defence):
    """Replaces every patch of the picture by one of its nearest neighbours among patches of clean pictures, with seams where they match.

    The bank of patches is the defence's secret; `with_bank` cuts it. Patches are taken from left to right and from top to bottom. Where a
    new patch overlaps the ones before, it begins behind the path along which the two differ least (minimum-error boundary cut).
    """

    patch: Count = 5
    """side of a patch in pixels"""
    overlap: Annotated[int, Ge(0)] = 2
    """how many pixels of neighbouring patches lie on each other; more before the picture's last row or column if it does not fit"""
    neighbours: Count = 10
    """K: of so many nearest patches one is drawn, each with the same probability"""
    size: Count = 20_000
    """how many patches are cut, at different places; all there are if there are fewer"""
    random: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    bank_MV: ClassVar[np.ndarray | None] = None
    """uint8 [M, p·p·3]; set on the copy that `with_bank` returns."""

    def __post_init__(self) -> None:
        if self.overlap >= self.patch:
            raise InputError(f"Quilting.overlap is {self.overlap}; accepted: less than the patch's side, {self.patch}.")
        if self.size < self.neighbours:
            raise InputError(f"Quilting.size is {self.size}; accepted: at least as many patches as Quilting.neighbours, {self.neighbours}.")

    def with_bank(self, image_NHWC: np.ndarray) -> Quilting:
        """A copy whose bank holds patches of these clean pictures (uint8 [N, H, W, 3]), at places drawn by the seed.

        InputError if they are smaller than a patch or have fewer patches than there must be neighbours. The bank is no field: copies made
        by `dataclasses.replace` have none.
        """
        view = (self.patch, self.patch)
        if not len(image_NHWC) or min(image_NHWC.shape[1:3]) < self.patch:
            raise InputError(f"Quilting got {len(image_NHWC)} clean pictures of {image_NHWC.shape[1]}×{image_NHWC.shape[2]} pixels; "
                             f"accepted: at least one, no smaller than a patch of {self.patch}×{self.patch}.")  # fmt: skip
        window = sliding_window_view(image_NHWC, view, (1, 2))  # [N, H − p + 1, W − p + 1, 3, p, p]
        places = window.shape[:3]
        count = int(np.prod(places))
        if count < self.neighbours:
            raise InputError(f"Quilting.neighbours is {self.neighbours}; accepted: at most {count}, the patches of the clean pictures.")
        chosen_M = np.arange(count)
        if self.size < count:
            chosen_M = np.sort(rng(self.seed, type(self).id, "bank").choice(count, self.size, replace=False))
        patch_M = window[np.unravel_index(chosen_M, places)]
        made = copy.copy(self)
        object.__setattr__(made, "bank_MV", patch_M.transpose(0, 2, 3, 1).reshape(len(chosen_M), -1))
        return made

    def ready(self, image_NHWC: np.ndarray) -> Quilting:
        return self.with_bank(image_NHWC)

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        """InputError without a bank, and for pictures smaller than a patch."""
        if self.bank_MV is None:
            raise InputError("Quilting has no bank of patches; make one from clean pictures with `with_bank`.")
        if min(picture_BCHW.shape[2:]) < self.patch:
            raise InputError(f"Quilting.patch is {self.patch}; accepted: at most the side of the pictures, {min(picture_BCHW.shape[2:])}.")
        image_BHWC = as_bytes(picture_BCHW).numpy()
        rows, columns = (places(side, self.patch, self.patch - self.overlap) for side in image_BHWC.shape[1:3])
        window = sliding_window_view(image_BHWC, (self.patch, self.patch), (1, 2))[:, rows][:, :, columns]
        query_BPV = window.transpose(0, 1, 2, 4, 5, 3).reshape(len(image_BHWC), len(rows) * len(columns), -1)
        near_BPK = self._nearest(query_BPV.reshape(-1, query_BPV.shape[2]), picture_BCHW.device).reshape(*query_BPV.shape[:2], -1)
        which_BP = np.stack([draw.integers(self.neighbours, size=query_BPV.shape[1]) for draw in draws])
        chosen_BP = np.take_along_axis(near_BPK, which_BP[..., None], 2)[..., 0]
        patch_BPppC = self.bank_MV[chosen_BP].reshape(*chosen_BP.shape, self.patch, self.patch, 3)
        made_BHWC = quilted(patch_BPppC, rows, columns, image_BHWC.shape[1:3])
        return as_floats(torch.from_numpy(made_BHWC).to(picture_BCHW.device), picture_BCHW.dtype)

    def _nearest(self, query_PV: np.ndarray, device: torch.device) -> np.ndarray:
        """The K nearest patches of the bank, int64 [P, K], the nearest first, among equals the lowest number first. Exact: squared
        distances of bytes are whole numbers that the type holds."""
        assert self.bank_MV is not None
        dtype = torch.float32 if 2 * 255**2 * query_PV.shape[1] < 2**24 else torch.float64
        bank_MV = torch.from_numpy(self.bank_MV).to(device, dtype)
        own_M = bank_MV.square().sum(1)
        found = []
        for part_PV in torch.from_numpy(query_PV).to(device, dtype).split(max(1, AT_A_TIME // len(bank_MV))):
            distance_PM = (part_PV @ bank_MV.T).mul_(-2).add_(own_M).add_(part_PV.square().sum(1)[:, None])
            farthest_P1 = distance_PM.topk(self.neighbours, largest=False).values[:, -1:]
            row_n, number_n = (distance_PM <= farthest_P1).nonzero(as_tuple=True)  # at least K of each row
            order_n = np.lexsort([key.cpu().numpy() for key in (number_n, distance_PM[row_n, number_n], row_n)])
            first_P = np.searchsorted(row_n.cpu().numpy(), np.arange(len(part_PV)))
            found.append(number_n.cpu().numpy()[order_n[first_P[:, None] + np.arange(self.neighbours)]])
        return np.concatenate(found)


def places(side: int, patch: int, step: int) -> list[int]:
    """Where patches begin along a side: every `step` pixels, the last one at the end."""
    regular = list(range(0, side - patch + 1, step))
    return regular if regular[-1] == side - patch else [*regular, side - patch]


def quilted(patch_BPppC: np.ndarray, rows: Sequence[int], columns: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Pictures from patches at rows × columns, P in that order, uint8 [B, H, W, C].

    The result is that of placing one patch after the other. Patches that do not touch each other, of which none waits for another one, are
    placed at once: those with the same j + apart·i, where columns that are `apart` numbers from each other share no pixel.
    """
    batch, _, side, _, channels = patch_BPppC.shape
    apart = next(s for s in range(1, len(columns) + 1) if all(right - left >= side for left, right in zip(columns, columns[s:])))
    together: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        height, width = (at[n - 1] + side - at[n] if n else 0 for at, n in ((rows, i), (columns, j)))
        together.setdefault((j + apart * i, height, width), []).append((i, j))
    made_BHWC = np.zeros((batch, *size, channels), np.uint8)
    for (_, height, width), places_G in sorted(together.items()):
        i_G, j_G = np.array(places_G).T
        y_Gp1 = np.array(rows)[i_G, None, None] + np.arange(side)[:, None]
        x_G1p = np.array(columns)[j_G, None, None] + np.arange(side)
        there_BGppC, new_BGppC = made_BHWC[:, y_Gp1, x_G1p], patch_BPppC[:, i_G * len(columns) + j_G]
        error_npp = np.square(there_BGppC.astype(np.int64) - new_BGppC).sum(-1).reshape(-1, side, side)
        taken_npp = np.ones(error_npp.shape, bool)
        if width:
            taken_npp[:, :, :width] &= behind_cut(error_npp[:, :, :width])
        if height:
            taken_npp[:, :height] &= behind_cut(error_npp[:, :height].swapaxes(1, 2)).swapaxes(1, 2)
        taken_BGpp1 = taken_npp.reshape(*new_BGppC.shape[:4], 1)
        made_BHWC[:, y_Gp1, x_G1p] = np.where(taken_BGpp1, new_BGppC, there_BGppC)
    return made_BHWC


def behind_cut(error_BLO: np.ndarray) -> np.ndarray:
    """bool [B, L, O]: which pixels of an overlap, L long and O wide, are the new patch's: those right of the path from the first to the
    last row with the smallest sum of errors, whose steps go down or down and one aside. The path's own pixels stay the old patch's; among
    equal paths it is the leftmost, seen from its end."""
    batch, length, width = error_BLO.shape
    sum_BLO = error_BLO.astype(np.int64)
    far = np.iinfo(np.int64).max // 4
    before_BLO = np.zeros((batch, length, width), np.int64)  # column of the path in the row above
    column_O, each_B = np.arange(width), np.arange(batch)
    for row in range(1, length):
        padded = np.pad(sum_BLO[:, row - 1], ((0, 0), (1, 1)), constant_values=far)
        three = np.stack([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]])
        best = three.argmin(0)
        before_BLO[:, row] = column_O + best - 1
        sum_BLO[:, row] += three.min(0)
    at_B = sum_BLO[:, -1].argmin(1)
    behind_BLO = np.zeros((batch, length, width), bool)
    for row in range(length - 1, -1, -1):
        behind_BLO[:, row] = column_O > at_B[:, None]
        at_B = before_BLO[each_B, row, at_B]
    return behind_BLO
