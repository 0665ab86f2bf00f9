"""How far two sets of pictures lie apart in a CLIP model's features: CLIP-FID and CLIP-KID.

Shape suffixes: N pictures of a set, B pictures, C channels, H and W height and width, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.encoder import Encoder


@dataclass(frozen=True)
class Distances:
    """Between two sets of features."""

    fid: float
    """Fréchet distance of the normal laws with the sets' means and covariances (Heusel et al. 2017); NaN where it means nothing."""
    kid: float
    """Squared maximum mean discrepancy, unbiased, of the kernel (x·y/D + 1)³ (Bińkowski et al. 2018); NaN with fewer than 2 pictures."""
    n: int
    """Pictures in the smaller set."""
    d: int
    """Features of a picture."""
    note: str = ""
    """A sentence: why there is no FID."""


def distances(a_ND: np.ndarray, b_ND: np.ndarray) -> Distances:
    """Of two sets of features, each [N, D]; the sets may differ in N."""
    a_ND, b_ND = np.asarray(a_ND, np.float64), np.asarray(b_ND, np.float64)
    n, d = min(len(a_ND), len(b_ND)), a_ND.shape[1]
    if n > d:
        return Distances(frechet(a_ND, b_ND), kernel_distance(a_ND, b_ND), n, d)
    note = f"No FID: it needs more pictures than features, and there are {n} pictures and {d} features."
    return Distances(float("nan"), kernel_distance(a_ND, b_ND), n, d, note)


def frechet(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2·(Σ_a^½ Σ_b Σ_a^½)^½)."""
    covariance_a_DD, covariance_b_DD = (np.atleast_2d(np.cov(one_ND, rowvar=False)) for one_ND in (a_ND, b_ND))
    value_D, vector_DD = np.linalg.eigh(covariance_a_DD)
    root_DD = (vector_DD * np.sqrt(value_D.clip(0))) @ vector_DD.T
    cross = np.sqrt(np.linalg.eigvalsh(root_DD @ covariance_b_DD @ root_DD).clip(0)).sum()
    means = ((a_ND.mean(0) - b_ND.mean(0)) ** 2).sum()
    return float(means + np.trace(covariance_a_DD) + np.trace(covariance_b_DD) - 2 * cross)


def kernel_distance(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Mean kernel within a, plus within b, each without a picture's with itself, minus twice the mean kernel between a and b."""
    if min(len(a_ND), len(b_ND)) < 2:
        return float("nan")
    kernel = lambda x_ND, y_ND: (x_ND @ y_ND.T / x_ND.shape[1] + 1) ** 3
    within = 0.0
    for one_ND in (a_ND, b_ND):
        kernel_NN, n = kernel(one_ND, one_ND), len(one_ND)
        within += (kernel_NN.sum() - np.trace(kernel_NN)) / (n * (n - 1))
    return float(within - 2 * kernel(a_ND, b_ND).mean())


@torch.no_grad()
def features(encoder: Encoder, picture_BCHW: Tensor) -> np.ndarray:
    """The model's features of pictures (floats of 0 … 1, of any size), of length 1, float64 [B, D]; pictures are resized, not cropped."""
    side = encoder.image_size
    if picture_BCHW.shape[2:] != (side, side):
        picture_BCHW = F.interpolate(picture_BCHW, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    pixels_BHWC = 255 * picture_BCHW.permute(0, 2, 3, 1).to(encoder.device)
    return encoder.encode_image(pixels_BHWC).double().cpu().numpy()
