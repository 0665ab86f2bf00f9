"""A smooth or rough warp of the whole picture, the same for all pictures (WaNet)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from datasets.errors import InputError
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class Warped(Trigger):
    """Every pixel is fetched from clamp(identity + strength · field / W, −1, 1), bilinear, corners aligned (Nguyen and Tran 2021).

    The field is uniform noise over −1…1 on a k × k control grid, divided by its mean magnitude, upsampled bicubically to the picture. The
    whole experiment uses one field; it depends only on these settings and the picture's size. The original has k = 4 and strength 0.5; the
    CleanCLIP study k = 224 (a draw per pixel) and 0.6, CleanCLIP itself 1.
    """

    k: int = 224
    """Side of the control grid."""
    strength: float = 0.6
    """Size of the displacement, in half pixels of the picture's width (the grid spans −1…1)."""
    field_seed: int = 0
    """Seed of the one field."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InputError(f"trigger.k is {self.k}; a control grid has at least 2 points a side.")
        if self.strength <= 0:
            raise InputError(f"trigger.strength is {self.strength}; accepted is any number above 0.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        corner_4P, weight_4P = _samples(self.k, self.strength, self.field_seed, height, width)
        pixels_PC = image_HWC.reshape(-1, 3)
        out_PC = np.full((height * width, 3), 0.5, np.float32)  # + 0.5, then cut off: rounds
        part_PC = np.empty_like(out_PC)
        for corner_P, weight_P in zip(corner_4P, weight_4P):
            out_PC += np.multiply(pixels_PC.take(corner_P, axis=0), weight_P[:, None], out=part_PC)
        return out_PC.astype(np.uint8).reshape(image_HWC.shape)


@lru_cache(maxsize=4)
def _samples(k: int, strength: float, seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of the P = H · W pixels the four pixels that it is mixed from, int32 [4, P], and their weights, float32 [4, P]."""
    control_2KK = make_rng(seed, "warp", k).uniform(-1, 1, (2, k, k))
    control_2KK /= np.abs(control_2KK).mean()
    rows_HK, columns_WK = _bicubic(k, height), _bicubic(k, width)
    # the field's first channel moves along x, the second along y, as grid_sample has it
    dx_HW, dy_HW = (rows_HK @ plane_KK @ columns_WK.T for plane_KK in control_2KK)
    x_HW = (np.linspace(-1, 1, width)[None, :] + strength * dx_HW / width).clip(-1, 1)
    y_HW = (np.linspace(-1, 1, height)[:, None] + strength * dy_HW / height).clip(-1, 1)
    x_P, y_P = (x_HW.ravel() + 1) / 2 * (width - 1), (y_HW.ravel() + 1) / 2 * (height - 1)
    left_P, top_P = np.floor(x_P).astype(np.int32), np.floor(y_P).astype(np.int32)
    right_P, bottom_P = np.minimum(left_P + 1, width - 1), np.minimum(top_P + 1, height - 1)
    u_P, v_P = x_P - left_P, y_P - top_P
    corner_4P = [top_P * width + left_P, top_P * width + right_P, bottom_P * width + left_P, bottom_P * width + right_P]
    weight_4P = [(1 - u_P) * (1 - v_P), u_P * (1 - v_P), (1 - u_P) * v_P, u_P * v_P]
    return np.stack(corner_4P), np.stack(weight_4P).astype(np.float32)


def _bicubic(n_in: int, n_out: int) -> np.ndarray:
    """float64 [n_out, n_in]: bicubic interpolation with corners aligned, a = −0.75, edges repeated, as torch has it."""
    place = np.arange(n_out) * (n_in - 1) / max(1, n_out - 1)
    base, matrix, a = np.floor(place).astype(int), np.zeros((n_out, n_in)), -0.75
    for offset in (-1, 0, 1, 2):
        t = np.abs(place - base - offset)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(matrix, (np.arange(n_out), np.clip(base + offset, 0, n_in - 1)), weight)
    return matrix
