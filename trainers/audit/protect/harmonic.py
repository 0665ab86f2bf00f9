"""Paints smoothly from the mask's edge: the solution of Laplace's equation. A negative control, for no noise can move it by more than ε.

Shape suffixes: B pictures, C channels, H and W height and width, U unknown pixels, N pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from trainers.audit.protect.base import Inpainter


@dataclass(frozen=True, kw_only=True)
class Harmonic(Inpainter):
    """Each painted pixel is the mean of its neighbours above, below, left and right (those inside the picture).

    By the maximum principle a change of at most ε outside changes what is painted by at most ε, and by exactly ε if every pixel at the
    mask's edge changes by ε in the same direction. Solved exactly in float64 by a sparse factorisation on the CPU; the gradient is the
    exact adjoint, computed with the same factors.
    """

    def fill(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        filled = [_Laplace.apply(hidden_CHW, mask_1HW) for hidden_CHW, mask_1HW in zip(hidden_BCHW, mask_B1HW)]
        return torch.stack(filled)


class _Laplace(torch.autograd.Function):
    """(picture [C, H, W], 0 under the mask, mask [1, H, W]) -> what is painted, [C, H, W], 0 outside the mask."""

    @staticmethod
    def forward(ctx: Any, hidden_CHW: Tensor, mask_1HW: Tensor) -> Tensor:
        mask_HW = mask_1HW[0].bool().cpu().numpy()
        ctx.mask = mask_HW.tobytes(), mask_HW.shape
        solve, edge_UN = _factors(*ctx.mask)
        known_NC = hidden_CHW.detach().flatten(1).T.cpu().double().numpy()
        painted_NC = np.zeros_like(known_NC)
        painted_NC[mask_HW.ravel()] = solve(edge_UN @ known_NC)
        return torch.from_numpy(painted_NC.T.copy()).to(hidden_CHW).view_as(hidden_CHW)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_CHW,) = gradients
        solve, edge_UN = _factors(*ctx.mask)
        inside_N = np.frombuffer(ctx.mask[0], bool)
        gradient_UC = gradient_CHW.detach().flatten(1).T.cpu().double().numpy()[inside_N]
        back_NC = edge_UN.T @ solve(gradient_UC)  # the factorised matrix is symmetric
        return torch.from_numpy(back_NC.T.copy()).to(gradient_CHW).view_as(gradient_CHW), None


@lru_cache(maxsize=8)
def _factors(mask: bytes, shape: tuple[int, int]) -> tuple[Callable[[np.ndarray], np.ndarray], sparse.csr_array]:
    """(solver of the Laplacian among the unknown pixels, their links [U, N] to the known ones) for a mask's bytes, a byte a pixel."""
    inside_N = np.frombuffer(mask, bool)
    at_HW = np.arange(inside_N.size).reshape(shape)
    pairs = [(at_HW[1:], at_HW[:-1]), (at_HW[:, 1:], at_HW[:, :-1])]
    first = np.concatenate([one.ravel() for one, _ in pairs] + [other.ravel() for _, other in pairs])
    second = np.concatenate([other.ravel() for _, other in pairs] + [one.ravel() for one, _ in pairs])
    links_NN = sparse.csr_array((np.ones(first.size), (first, second)), shape=(inside_N.size, inside_N.size))
    rows_UN = links_NN[inside_N]
    laplacian_UU = sparse.diags_array(rows_UN.sum(1)) - rows_UN[:, inside_N]
    known_NN = sparse.diags_array((~inside_N).astype(float))
    return splu(laplacian_UU.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve, (rows_UN @ known_NN).tocsr()
