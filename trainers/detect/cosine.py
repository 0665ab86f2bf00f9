"""Scores from the cosine of picture and caption. Two methods use it with opposite signs, so there are two classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.detect.base import Features, Reference, Score


def cosine(pairs: Features) -> np.ndarray:
    """float64 [B]: cosine of each picture with its caption."""
    return (pairs.image("unit") * pairs.text("unit")).sum(dim=1).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class CosineByReference(Score):
    """I·T, computed before training with a reference model that has not learnt the backdoor. Low values mean a mismatched pair and are
    suspect; data sets such as LAION are filtered in this way."""

    sign = -1

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return cosine(pairs)


@dataclass(frozen=True, kw_only=True)
class CosineByModel(Score):
    """I·T, computed with the model trained on the poison. Triggered pictures match their captions best of all, so high values are
    suspect."""

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        return cosine(pairs)
