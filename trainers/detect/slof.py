"""The simplified local outlier factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, NeighbourScore, Reference


@dataclass(frozen=True, kw_only=True)
class SLOF(NeighbourScore):
    """Mean over the k nearest rows r of d_k(x) / d_k(r): how much sparser the data are around the picture than around its neighbours. High
    values are suspect.

    Schubert et al. 2014; used on CLIP's training pairs by Huang et al. 2025 (HanxunH/Detect-CLIP-Backdoor-Samples).
    """

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        near, own_R = self.near(pairs, reference), self.own(reference).distance_BK[:, -1]
        return (near.distance_BK[:, -1:] / own_R[near.row_BK]).mean(axis=1)
