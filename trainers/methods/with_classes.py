"""Shared by methods that also classify pictures: three weights and their loss."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.component import NotNegative, Positive
from trainers.methods.base import Method
from trainers.objectives.clustering import Clustering


@dataclass(frozen=True, kw_only=True)
class WithClasses(Method):
    """Trains with clip_weight·MMCL + inmodal_weight·SSL + weight·CE, where CE is that of a linear head on the picture's features, for its
    class.

    The head has no weight decay and is not part of the evaluated and exported model.
    """

    weight: Positive = 5.0
    """weight of the classification term"""
    clip_weight: NotNegative = 1.0
    """weight of the image-text term"""
    inmodal_weight: NotNegative = 1.0
    """weight of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        self.objective  # noqa: B018 (raises InputError for weights that make no objective)

    @property
    def objective(self) -> Clustering:
        """The loss."""
        return Clustering(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight, deep_clustering_weight=self.weight)
