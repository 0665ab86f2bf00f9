"""Cleaning by fine-tuning on clean pairs: CleanCLIP (Bansal et al. 2023) and its two halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets.component import NotNegative
from trainers.methods.base import Method, Run
from trainers.objectives.contrastive import Contrastive

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class FineTune(Method):
    """Fine-tune with clip_weight·MMCL + inmodal_weight·SSL. A term of weight 0 is not computed."""

    clip_weight: NotNegative = 1.0
    """weight of the image-text term"""
    inmodal_weight: NotNegative = 0.0
    """weight of the image-image and text-text terms"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.objective  # noqa: B018 (raises InputError for weights that make no objective)

    @property
    def label(self) -> str:
        return self.objective.label

    @property
    def objective(self) -> Contrastive:
        """The loss."""
        return Contrastive(clip_weight=self.clip_weight, inmodal_weight=self.inmodal_weight)

    def train(self, model: Encoder, run: Run) -> Encoder:
        return run.fit(model, self.objective)


@dataclass(frozen=True, kw_only=True)
class MMCLFineTune(FineTune):
    """Only the image-text term."""

    @property
    def label(self) -> str:
        """Differs from the objective's label, which pre-training uses; with other weights the method is named after its loss."""
        return "MMCL fine-tuning" if self.clip_weight and not self.inmodal_weight else self.objective.label

    @property
    def slug(self) -> str:
        return "mmcl"


@dataclass(frozen=True, kw_only=True)
class CleanCLIP(FineTune):
    """CleanCLIP: both terms."""

    inmodal_weight: NotNegative = 1.0

    @property
    def label(self) -> str:
        """With a weight of 0 it is not CleanCLIP any more and is named after its loss."""
        return "CleanCLIP" if self.clip_weight and self.inmodal_weight else self.objective.label


@dataclass(frozen=True, kw_only=True)
class SSLFineTune(FineTune):
    """Only the in-modal terms."""

    clip_weight: NotNegative = 0.0
    inmodal_weight: NotNegative = 1.0
    label = FineTune.label

    @property
    def slug(self) -> str:
        return "ssl"
