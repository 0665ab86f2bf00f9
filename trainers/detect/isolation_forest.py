"""Isolation forest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from datasets.component import Count
from trainers.detect.base import Compared, Features, Reference


@dataclass(frozen=True, kw_only=True)
class IsolationForest(Compared):
    """Path length of the pair's picture in scikit-learn's isolation forest (Liu et al. 2008), grown on the reference's pictures and
    captions. Short paths give low values, which are suspect."""

    trees: Count = 100
    rows: Literal["unit", "raw"] = "unit"
    """unit: features scaled to length 1 | raw: as the model returns them"""
    sign = -1

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        about = ("forest", self)
        if about not in reference.kept:
            from sklearn.ensemble import IsolationForest as Forest

            forest = Forest(n_estimators=self.trees, random_state=self.seed, n_jobs=1)
            reference.kept[about] = forest.fit(reference.rows(self.rows).cpu().numpy())
        return reference.kept[about].score_samples(pairs.image(self.rows).cpu().numpy())
