"""Cleaning with deep clustering (Caron et al. 2018): pictures are told apart by the clusters they fall into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from trainers import distributed
from trainers.batch import image_tensor
from trainers.cleaning.base import CleaningMethod, CleaningRun
from trainers.cleaning.kmeans import spherical_kmeans
from trainers.cleaning.labels import Labels
from trainers.model import Encoder
from trainers.objectives.clustering import Clustering


@dataclass(frozen=True, kw_only=True)
class DeepClustering(CleaningMethod):
    """At the start of each epoch all cleaning pictures are embedded (in evaluation mode) and clustered by spherical k-means; then
    trains with clip_weight·MMCL + inmodal_weight·SSL + weight·CE of a linear head on the picture's features against its cluster.

    The numbers of clusters mean nothing from one epoch to the next, so the head is drawn anew with each clustering, as in the
    study. It has no weight decay, and is no part of the model that is evaluated and exported.
    """

    clusters: int = 1000
    """k; at most the number of cleaning pairs"""
    iterations: int = 20
    """of k-means, from pictures picked at random by seed and epoch"""
    weight: float = 5.0
    """of the classification"""
    clip_weight: float = 1.0
    """of the image-text term"""
    inmodal_weight: float = 1.0
    """of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("clusters", 2), ("iterations", 1)):
            if getattr(self, name) < least:
                raise InputError(f"clean.method.{name} is {getattr(self, name)}; it must be at least {least}.")
        self.objective  # noqa: B018 (raises InputError for weights that make no objective)

    @property
    def label(self) -> str:
        return f"deep-clustering{self.objective.beside}"

    @property
    def objective(self) -> Clustering:
        """The loss that is trained with."""
        return Clustering(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight, deep_clustering_weight=self.weight)

    def check(self, pairs: int) -> None:
        if self.clusters > pairs:
            raise InputError(f"clean.method.clusters is {self.clusters}, more than the {pairs} pairs of the cleaning set.")

    def clean(self, model: Encoder, run: CleaningRun) -> Encoder:
        model.draw_head(self.clusters, run.rng("head"))  # so that the optimiser knows of it; drawn anew as an epoch begins
        return run.fit(model, self.objective, Clusters(self, run))


class Clusters(Labels):
    """The clusters of the epoch under way, kept in the stage's folder so that a run killed within the epoch goes on with them."""

    def __init__(self, method: DeepClustering, run: CleaningRun) -> None:
        super().__init__({}, method.clusters, "the clustering of this epoch")
        self.method, self.run = method, run

    def begin(self, encoder: Encoder, epoch: int, within: bool) -> Iterable[nn.Parameter]:
        run, world = self.run, self.run.world
        assert run.folder is not None, "the clusters of an epoch need a place to be kept at"
        file = run.folder / "clusters" / f"epoch_{epoch:04d}.parquet"
        if not distributed.from_main(file.is_file(), world):
            keys, feature_ND = embed(encoder, run)
            if world.main:
                points = feature_ND.to(encoder.device)
                label_N, _ = spherical_kmeans(points, self.classes, self.method.iterations, run.rng(f"k-means {epoch}"))
                Labels(dict(zip(keys, label_N.tolist())), self.classes, self.where).write(file)
        self.by_key = distributed.from_main(Labels.read(file).by_key if world.main else None, world)
        if world.main:
            for other in file.parent.glob("epoch_*.parquet"):
                if other != file:
                    other.unlink()
        return () if within else encoder.draw_head(self.classes, run.rng(f"head {epoch}"))


def embed(encoder: Encoder, run: CleaningRun) -> tuple[list[str], Tensor]:
    """Keys and unit features [N, D] of all cleaning pictures, in evaluation mode; the same on every rank, for any number of them."""
    assert run.pictures is not None, "embedding the cleaning set needs its pictures"
    parts: list[tuple[int, list[str], Any]] = []
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for batch in run.pictures():
            feature_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            parts.append((batch["number"], [str(key) for key in batch["key"]], feature_BD.cpu()))
    encoder.train(training)
    parts = sorted(distributed.gather_lists(parts, run.world), key=lambda part: part[0])
    return [key for _, keys, _ in parts for key in keys], torch.cat([feature_BD for _, _, feature_BD in parts])
