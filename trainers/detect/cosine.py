"""Scores by the cosine of picture and caption. Two methods with opposite signs, so two names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, Reference, Score


def cosine(pairs: Features) -> np.ndarray:
    """float64 [B]: cosine of each picture and its caption."""
    return (pairs.image("unit") * pairs.text("unit")).sum(dim=1).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class CosineByReference(Score):
    """I·T by a reference model that has not learnt the backdoor, before training: low is a mismatched pair, so low is suspect (as data sets
    like LAION are filtered)."""

    sign = -1

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return cosine(pairs)


@dataclass(frozen=True, kw_only=True)
class CosineByModel(Score):
    """I·T by the model that was trained on the poison: triggered pictures fit their captions best of all, so high is suspect."""

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return cosine(pairs)
