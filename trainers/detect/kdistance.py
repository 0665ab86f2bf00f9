"""Distance to the k-th neighbour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, NeighbourScore, Reference


@dataclass(frozen=True, kw_only=True)
class KDistance(NeighbourScore):
    """d_k(x), the distance from the pair's picture to the k-th nearest row. Poison lies far from clean data, so high values are suspect.

    Ramaswamy et al. 2000; Huang et al. 2025, "Detecting Backdoor Samples in Contrastive Language Image Pretraining"
    (HanxunH/Detect-CLIP-Backdoor-Samples, backdoor_sample_detector).
    """

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return self.near(pairs, reference).distance_BK[:, -1]
