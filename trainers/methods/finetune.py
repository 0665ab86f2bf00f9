"""Cleaning by fine-tuning on clean pairs: CleanCLIP (Bansal et al. 2023) and its two halves."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.component import NotNegative
from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.objectives.contrastive import Contrastive


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Fine-tune with clip_weight·MMCL + inmodal_weight·SSL. A term of weight 0 is not computed."""

    clip_weight: NotNegative = 1.0
    """of the image-text term"""
    inmodal_weight: NotNegative = 0.0
    """of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective  # noqa: B018 (raises InputError for weights that make no objective)

    @property
    def label(self) -> str:
        return self.objective.label

    @property
    def objective(self) -> Contrastive:
        """The loss that is fine-tuned with."""
        return Contrastive(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight)

    def train(self, model: Encoder, run: Run) -> Encoder:
        return run.fit(model, self.objective)


@dataclass(frozen=True, kw_only=True)
class MMCLFineTune(FineTune):
    """The multimodal term alone."""

    @property
    def label(self) -> str:
        """Another than the objective's, which models are pre-trained with; with other weights it is named after its loss."""
        return "MMCL fine-tuning" if self.clip_weight and not self.inmodal_weight else self.objective.label

    @property
    def slug(self) -> str:
        return "mmcl"


@dataclass(frozen=True, kw_only=True)
class CleanCLIP(FineTune):
    """Both terms: CleanCLIP."""

    inmodal_weight: NotNegative = 1.0

    @property
    def label(self) -> str:
        """With a weight of 0 it is no longer CleanCLIP and is named after its loss."""
        return "CleanCLIP" if self.clip_weight and self.inmodal_weight else self.objective.label


@dataclass(frozen=True, kw_only=True)
class SSLFineTune(FineTune):
    """The in-modal terms alone."""

    clip_weight: NotNegative = 0.0
    inmodal_weight: NotNegative = 1.0
    label = FineTune.label

    @property
    def slug(self) -> str:
        return "ssl"
