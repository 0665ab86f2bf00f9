"""The dimensionality-aware outlier score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, NeighbourScore, Reference
from trainers.detect.lid import dimensionality


@dataclass(frozen=True, kw_only=True)
class DAO(NeighbourScore):
    """Mean over the k nearest rows r of LID(r) · ln(d_k(x) / d_k(r)): like SLOF, but with the neighbours' intrinsic dimensionality. High
    values are suspect.

    Anderberg et al. 2024; used on CLIP's training pairs by Huang et al. 2025 (HanxunH/Detect-CLIP-Backdoor-Samples).
    """

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        near, own_RK = self.near(pairs, reference), self.own(reference).distance_BK
        about = ("lid", self.k, self.rows, self.exclude_own_text)
        if about not in reference.kept:
            reference.kept[about] = dimensionality(own_RK)
        return (reference.kept[about][near.row_BK] * np.log(near.distance_BK[:, -1:] / own_RK[near.row_BK, -1])).mean(axis=1)
