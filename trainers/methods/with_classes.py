"""What the methods have in common that also tell pictures apart by classes: three weights and their loss."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.component import NotNegative, Positive
from trainers.methods.base import Method
from trainers.objectives.clustering import Clustering


@dataclass(frozen=True, kw_only=True)
class WithClasses(Method):
    """Trains with clip_weight·MMCL + inmodal_weight·SSL + weight·CE of a linear head on the picture's features against its class.

    The head has no weight decay, and is no part of the model that is evaluated and exported.
    """

    weight: Positive = 5.0
    """of the classification"""
    clip_weight: NotNegative = 1.0
    """of the image-text term"""
    inmodal_weight: NotNegative = 1.0
    """of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        self.objective  # noqa: B018 (raises InputError for weights that make no objective)

    @property
    def objective(self) -> Clustering:
        """The loss that is trained with."""
        return Clustering(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight, deep_clustering_weight=self.weight)
