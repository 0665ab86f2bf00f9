"""Isolation forest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets.component import Count
from trainers.detect.base import Compared, Features, Reference


@dataclass(frozen=True, kw_only=True)
class IsolationForest(Compared):
    """scikit-learn's isolation forest (Liu et al. 2008), grown on the pictures and captions of the reference: how long the path to the
    pair's picture is. Short paths, low values, are suspect."""

    trees: Count = 100
    rows: Literal["unit", "raw"] = "unit"
    """Features of length 1, or as the model gives them."""
    sign = -1

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        about = ("forest", self)
        if about not in reference.kept:
            from sklearn.ensemble import IsolationForest as Forest

            forest = Forest(n_estimators=self.trees, random_state=self.seed, n_jobs=1)
            reference.kept[about] = forest.fit(reference.rows(self.rows).cpu().numpy())
        return reference.kept[about].score_samples(pairs.image(self.rows).cpu().numpy())
