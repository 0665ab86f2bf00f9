"""Contrastive losses plus the classification of each picture, by a linear head, into a given class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.component import NotNegative, Positive
from trainers.objectives.base import Features, Objective
from trainers.objectives.contrastive import Contrastive, losses

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clustering(Objective):
    """clip_weight·MMCL + inmodal_weight·SSL + deep_clustering_weight·CE(head(I), target).

    I are the unit features of the plain pictures (not of the augmented views), `head` is the encoder's linear layer, and target is each
    pair's class, one of the epoch's values (`methods.epoch`).
    """

    clip_weight: NotNegative = 1.0
    """weight of the image-text term"""
    inmodal_weight: NotNegative = 1.0
    """weight of the image-image and text-text terms together"""
    deep_clustering_weight: Positive = 5.0
    """weight of the classification term"""

    @property
    def beside(self) -> str:
        """The part of a label that names the other terms; empty if these are CleanCLIP's."""
        names = losses(self.clip_weight, self.inmodal_weight)
        return "" if names == "MMCL+SSL" else f" + {names}" if names else " alone"

    @property
    def two_views(self) -> bool:
        return self.inmodal_weight > 0

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        from torch.nn import functional as F

        f = model(batch)
        classified = F.cross_entropy(f["class_logits"], batch["target"])
        total, parts = self.deep_clustering_weight * classified, {"deep_clustering": classified}
        if self.clip_weight or self.inmodal_weight:
            contrastive = Contrastive(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight)
            parts |= contrastive.loss(lambda _: f, batch)
            total = total + parts["loss"]
        return {**parts, "loss": total}
