"""Contrastive objectives: between modalities (MMCL), within them (SSL), or both.

Notation: I and T are this batch's unit image and text features, I' and T' those of the augmented views, s is the exponentiated logit scale,
and CE is the mean cross-entropy in which row i's target is column i. Shape suffixes: B this rank's rows, N all ranks', D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.component import NotNegative
from datasets.errors import InputError
from trainers import distributed
from trainers.objectives.base import Features, Objective

if TYPE_CHECKING:
    from torch import Tensor


def matching_loss(query_BD: Tensor, key_BD: Tensor, scale: Tensor) -> Tensor:
    """CE(s·Q·Kᵀ) of this rank's queries against the keys of all ranks. The mean over ranks is the loss of the whole batch."""
    import torch
    from torch.nn import functional as F

    logits_BN = scale * query_BD @ distributed.gather_rows(key_BD).T
    rows = query_BD.shape[0]
    target_B = torch.arange(rows, device=query_BD.device) + distributed.rank() * rows
    return F.cross_entropy(logits_BN, target_B)


def losses(clip_weight: float, inmodal_weight: float) -> str:
    """Names of the terms with a weight above 0: "MMCL", "SSL", "MMCL+SSL" or ""."""
    return "+".join(name for name, weight in (("MMCL", clip_weight), ("SSL", inmodal_weight)) if weight > 0)


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """clip_weight·½[CE(s·I·Tᵀ) + CE(s·T·Iᵀ)] + inmodal_weight·½[CE(s·I·I'ᵀ) + CE(s·T·T'ᵀ)].

    The in-modal terms go in one direction only, as in CleanCLIP (Bansal et al. 2023) and the study of its pre-training objectives. A term
    with weight 0 is neither computed nor reported.
    """

    clip_weight: NotNegative = 1.0
    """weight of the image-text term"""
    inmodal_weight: NotNegative = 0.0
    """weight of the image-image and text-text terms together"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_weight == self.inmodal_weight == 0:
            raise InputError("clip_weight is 0 and inmodal_weight is 0; one of them must be above 0")

    @property
    def label(self) -> str:
        return losses(self.clip_weight, self.inmodal_weight)

    @property
    def two_views(self) -> bool:
        return self.inmodal_weight > 0

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        import torch

        f = model(batch)
        s = f["logit_scale"]
        parts: dict[str, Tensor] = {}
        if self.clip_weight:
            parts["mmcl"] = (matching_loss(f["image"], f["text"], s) + matching_loss(f["text"], f["image"], s)) / 2
        if self.inmodal_weight:
            assert "image_aug" in f and "text_aug" in f, "an in-modal term needs a feed with two views"
            parts["inmodal"] = (
                matching_loss(f["image"], f["image_aug"], s) + matching_loss(f["text"], f["text_aug"], s)
            ) / 2
        weights = {"mmcl": self.clip_weight, "inmodal": self.inmodal_weight}
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}


@dataclass(frozen=True, kw_only=True)
class MMCL(Contrastive):
    """Only the multimodal contrastive loss, as in CLIP."""

    label = Contrastive.label


@dataclass(frozen=True, kw_only=True)
class MMCLSSL(Contrastive):
    """The multimodal and the in-modal losses together."""

    inmodal_weight: NotNegative = 1.0
    label = Contrastive.label

    @property
    def slug(self) -> str:
        return "mmcl+ssl"


@dataclass(frozen=True, kw_only=True)
class SSL(Contrastive):
    """Only the in-modal (self-supervised) losses."""

    clip_weight: NotNegative = 0.0
    inmodal_weight: NotNegative = 1.0
    label = Contrastive.label
