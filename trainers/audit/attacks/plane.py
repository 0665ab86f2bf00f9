"""The nearest point of a hyperplane within the box of pictures.

Shape suffixes: b pictures, C channels, H and W height and width, M = C·H·W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def onto_plane(picture_bCHW: Tensor, slope_bCHW: Tensor, rise_b: Tensor, norm: str) -> Tensor:
    """The smallest change d (linf | l2) with ⟨slope, d⟩ = rise that keeps picture + d in 0 … 1, floats [b, C, H, W].

    Each pixel moves at a constant rate (1 for linf, |slope| for l2) until it meets the box, so what has been gained is piecewise linear in
    the time λ, and the time at which it reaches `rise` is found exactly from the sorted times at which pixels stop. If the box does not
    allow that much, every pixel goes to its end. In float64 inside.
    """
    x_bM, slope_bM, rise_b = picture_bCHW.double().flatten(1), slope_bCHW.double().flatten(1), rise_b.double()
    size_bM = slope_bM.abs()
    way_bM = slope_bM.sign() * rise_b.sign()[:, None]
    room_bM = torch.where(way_bM > 0, 1 - x_bM, x_bM) * (way_bM != 0)
    rate_bM = size_bM if norm == "l2" else (size_bM > 0).double()
    end_bM = torch.where(rate_bM > 0, room_bM / rate_bM, 0)
    end_bM, order_bM = end_bM.sort(1)
    gain_bM = (size_bM * room_bM).gather(1, order_bM)
    speed_bM = (size_bM * rate_bM).gather(1, order_bM)
    stopped_bM = gain_bM.cumsum(1) - gain_bM
    moving_bM = speed_bM.flip(1).cumsum(1).flip(1)
    reached_bM = stopped_bM + end_bM * moving_bM
    at_b1 = (reached_bM < rise_b.abs()[:, None]).sum(1, keepdim=True)
    inside_b1 = at_b1 < x_bM.shape[1]
    at_b1 = at_b1.clamp_max(x_bM.shape[1] - 1)
    missing_b1 = rise_b.abs()[:, None] - stopped_bM.gather(1, at_b1)
    time_b1 = missing_b1 / moving_bM.gather(1, at_b1).clamp_min(torch.finfo(torch.float64).tiny)
    time_b1 = torch.where(inside_b1, time_b1, end_bM[:, -1:])
    change_bM = way_bM * torch.minimum(time_b1 * rate_bM, room_bM)
    return change_bM.view_as(picture_bCHW).to(picture_bCHW.dtype)
