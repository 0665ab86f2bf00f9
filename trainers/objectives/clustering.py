"""Contrastive losses with a classification of each picture, by a linear head, into the class it was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from datasets.component import NotNegative, Positive
from trainers.objectives.base import Features, Objective
from trainers.objectives.contrastive import Contrastive, losses


@dataclass(frozen=True, kw_only=True)
class Clustering(Objective):
    """clip_weight·MMCL + inmodal_weight·SSL + deep_clustering_weight·CE(head(I), target).

    I are the unit features of the pictures themselves (not of the augmented views), the head the encoder's own linear layer,
    target a class for each pair, among the values of the epoch (`methods.epoch`).
    """

    clip_weight: NotNegative = 1.0
    """of the image-text term"""
    inmodal_weight: NotNegative = 1.0
    """of the image-image and text-text terms together"""
    deep_clustering_weight: Positive = 5.0
    """of the classification"""

    @property
    def beside(self) -> str:
        """The label's part for the terms beside the classification: empty where they are those of CleanCLIP."""
        said = losses(self.clip_weight, self.inmodal_weight)
        return "" if said == "MMCL+SSL" else f" + {said}" if said else " alone"

    @property
    def two_views(self) -> bool:
        return self.inmodal_weight > 0

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        f = model(batch)
        classified = F.cross_entropy(f["class_logits"], batch["target"])
        total, parts = self.deep_clustering_weight * classified, {"deep_clustering": classified}
        if self.clip_weight or self.inmodal_weight:
            contrastive = Contrastive(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight)
            parts |= contrastive.loss(lambda _: f, batch)
            total = total + parts["loss"]
        return {**parts, "loss": total}
