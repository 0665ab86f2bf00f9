"""Spherical k-means. Shape suffixes: N points, K clusters, D features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 8192
"""How many points to compare with all centroids at a time."""


def spherical_kmeans(point_ND: Tensor, clusters: int, iterations: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Spherical k-means by cosine: labels int64 [N] and unit centroids [K, D] of unit points. Starts from `clusters` points that `rng`
    picks.

    Each iteration assigns every point to its nearest centroid, then sets each centroid to the normalised mean of its points. A centroid
    without points moves to the point farthest from its own centroid. Stops early if no label changes. Runs on the same kind of device give
    the same result, because no sum is atomic. scikit-learn's k-means does not keep centroids on the sphere and has no GPU version.
    """
    start = np.sort(rng.choice(len(point_ND), clusters, replace=False))
    centroid_KD = point_ND[torch.from_numpy(start).to(point_ND.device)]
    before_N = torch.full((len(point_ND),), -1, device=point_ND.device)
    for _ in range(iterations):
        label_N, cosine_N = nearest(point_ND, centroid_KD)
        if torch.equal(label_N, before_N):
            break
        sum_KD, count_K = _sums(point_ND, label_N, clusters)
        empty = (count_K == 0).nonzero()[:, 0]
        sum_KD[empty] = point_ND[cosine_N.argsort(stable=True)[: len(empty)]]
        centroid_KD, before_N = F.normalize(sum_KD, dim=-1), label_N
    return nearest(point_ND, centroid_KD)[0], centroid_KD


def nearest(point_ND: Tensor, centroid_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's most similar centroid, int64 [N] (the first among equals), and its cosine with it [N]."""
    matches = [(part_CD @ centroid_KD.T).max(dim=1) for part_CD in point_ND.split(CHUNK)]
    return torch.cat([best.indices for best in matches]), torch.cat([best.values for best in matches])


def _sums(point_ND: Tensor, label_N: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Sum [K, D] and number [K] of the points of each cluster."""
    sum_KD = point_ND.new_zeros(clusters, point_ND.shape[1])
    for part_CD, label_C in zip(point_ND.split(CHUNK), label_N.split(CHUNK)):
        sum_KD += F.one_hot(label_C, clusters).T.to(part_CD) @ part_CD
    return sum_KD, torch.bincount(label_N, minlength=clusters)
