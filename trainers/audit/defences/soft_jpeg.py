"""JPEG as a formula with a gradient: colour transform, halved colour planes, DCT of 8 × 8 blocks, quantisation, and back.

Shape suffixes: B pictures, C = 3 channels (RGB, or Y, Cb and Cr), H and W height and width, P planes of one kind.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 8
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
"""Steps of the quantisation of Y at quality 50 (ITU-T T.81, table K.1); a row for each vertical frequency."""
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *4 * ((99,) * 8,),
)  # fmt: skip
"""The same of Cb and Cr (table K.2)."""
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Rows: Y, Cb and Cr of red, green and blue (JFIF), Cb and Cr around 0."""


def soft_jpeg(picture_BCHW: Tensor, quality: int) -> Tensor:
    """Pictures of 0 … 1 as JPEG leaves them with 4:2:0 subsampling, Pillow's default; floats [B, C, H, W].

    Coefficients are rounded. The gradient of that is taken to be 3·(x − round(x))², which is that of round(x) + (x − round(x))³ (Shin and
    Song 2017): near 0 for a coefficient in the middle of its step, where small changes are lost, and largest halfway to the next step.
    """
    height, width = picture_BCHW.shape[2:]
    colour_33 = torch.tensor(TO_YCC, dtype=picture_BCHW.dtype, device=picture_BCHW.device)
    ycc_BCHW = torch.einsum("oc,bchw->bohw", colour_33, 255 * picture_BCHW)
    ycc_BCHW = F.pad(ycc_BCHW, (0, -width % (2 * BLOCK), 0, height % 2), mode="replicate")
    luma_BPHW = quantised(_filled(ycc_BCHW[:, :1] - 128), _steps(LUMA, quality, colour_33)) + 128
    small_BPHW = quantised(_filled(F.avg_pool2d(ycc_BCHW[:, 1:], 2)), _steps(CHROMA, quality, colour_33))
    small_BPHW = small_BPHW[:, :, : (height + 1) // 2, : (width + 1) // 2]
    chroma_BPHW = F.interpolate(small_BPHW, scale_factor=2, mode="bilinear", align_corners=False)
    found_BCHW = torch.cat([luma_BPHW[:, :, :height, :width], chroma_BPHW[:, :, :height, :width]], 1)
    return (torch.einsum("co,bohw->bchw", torch.linalg.inv(colour_33), found_BCHW) / 255).clamp(0, 1)


def quantised(plane_BPHW: Tensor, step_88: Tensor) -> Tensor:
    """The planes (values around 0, sides multiples of 8) with the DCT coefficients of each block rounded to multiples of their steps."""
    batch, planes, height, width = plane_BPHW.shape
    dct_88 = _dct(plane_BPHW)
    block = plane_BPHW.reshape(batch, planes, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    kept = rounded(torch.einsum("ui,bphiwj,vj->bphwuv", dct_88, block, dct_88) / step_88) * step_88
    return torch.einsum("ui,bphwuv,vj->bphiwj", dct_88, kept, dct_88).reshape(plane_BPHW.shape)


def _filled(plane_BPHW: Tensor) -> Tensor:
    """With the last row repeated until blocks are full. The encoder does that after halving a plane, and to columns before it."""
    return F.pad(plane_BPHW, (0, 0, 0, -plane_BPHW.shape[2] % BLOCK), mode="replicate")


def rounded(value: Tensor) -> Tensor:
    """round(x), with the gradient of (x − round(x))³."""
    cubed = (value - value.detach().round()) ** 3
    return value.detach().round() + cubed - cubed.detach()


def _steps(table: tuple[tuple[int, ...], ...], quality: int, like: Tensor) -> Tensor:
    """The steps at a quality of 1 … 100, as the Independent JPEG Group scales them, floats [8, 8]."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.tensor([[min(max((value * percent + 50) // 100, 1), 255) for value in row] for row in table]).to(like)


def _dct(like: Tensor) -> Tensor:
    """The orthonormal DCT-II, floats [8, 8]; a row for each frequency."""
    row_8, place_8 = torch.arange(BLOCK, dtype=torch.float64), torch.arange(BLOCK, dtype=torch.float64) + 0.5
    dct_88 = torch.cos(math.pi / BLOCK * row_8[:, None] * place_8) * math.sqrt(2 / BLOCK)
    dct_88[0] /= math.sqrt(2)
    return dct_88.to(like)
