"""Local intrinsic dimensionality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, NeighbourScore, Reference


def dimensionality(distance_BK: np.ndarray) -> np.ndarray:
    """float64 [B]: −k / Σ_{i≤k} ln(d_i / d_k), the maximum likelihood estimate. If all distances are equal, the sum is taken as −1e-12."""
    k = distance_BK.shape[1]
    return -k / np.minimum(np.log(distance_BK / distance_BK[:, -1:]).sum(axis=1), -1e-12)


@dataclass(frozen=True, kw_only=True)
class LID(NeighbourScore):
    """−k / Σ_{i≤k} ln(d_i / d_k) over the distances to the k nearest rows. High values are suspect in the paper, but in some data low ones
    are, so metrics are computed for both ends.

    Amsaleg et al. 2015; used on CLIP's training pairs by Huang et al. 2025 (HanxunH/Detect-CLIP-Backdoor-Samples), with k = 64.
    """

    both_tails = True

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return dimensionality(self.near(pairs, reference).distance_BK)
