"""Cleaning with deep clustering (Caron et al. 2018): a head classifies pictures into clusters of their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from datasets.component import Count
from datasets.errors import InputError
from trainers import distributed
from trainers.batch import image_tensor
from trainers.methods.base import Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.with_classes import WithClasses

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class DeepClustering(WithClasses):
    """At the start of each epoch, all cleaning pictures are embedded in evaluation mode and clustered by spherical k-means. The clusters
    are the classes.

    A cluster's number means nothing in the next epoch, so the head is redrawn with each clustering, as in the study.
    """

    clusters: Annotated[int, Ge(2)] = 1000
    """number of clusters, k; at most the number of cleaning pairs"""
    iterations: Count = 20
    """largest number of k-means iterations, which start from pictures picked by seed and epoch"""

    @property
    def label(self) -> str:
        return f"deep-clustering{self.objective.beside}"

    def check(self, pairs: int) -> None:
        if self.clusters > pairs:
            raise InputError(f"DeepClustering.clusters is {self.clusters}, more than the {pairs} pairs that it is to train on.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        from trainers.methods.kmeans import spherical_kmeans

        model.draw_head(self.clusters, run.rng("head"))  # here so that the optimiser gets its parameters; redrawn as an epoch begins

        def clustered(model: Encoder, epoch: int) -> EpochPlan:
            feature_ND, values = embed(model, run), {}
            if run.world.main:
                label_N, _ = spherical_kmeans(feature_ND.to(model.device), self.clusters, self.iterations, run.rng(f"k-means {epoch}"))
                values["target"] = label_N.cpu().numpy()
            return EpochPlan(values=values, anew=model.draw_head(self.clusters, run.rng(f"head {epoch}")))

        return run.fit(model, self.objective, begin_epoch=clustered)


def embed(encoder: Encoder, run: Run) -> Tensor:
    """Unit features [N, D] of all pairs' pictures, in order, computed in evaluation mode; the same on every rank and for any number of
    ranks."""
    import torch

    parts: list[tuple[int, Tensor]] = []
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for batch in run.pairs():
            parts.append((batch["number"], encoder.encode_image(image_tensor(batch["image"], encoder.device)).cpu()))
    encoder.train(training)
    parts = sorted(distributed.gather_lists(parts, run.world), key=lambda part: part[0])
    return torch.cat([feature_BD for _, feature_BD in parts])
