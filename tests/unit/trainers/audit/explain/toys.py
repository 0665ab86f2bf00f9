"""Pictures with a small trigger at a random place, a classifier that answers the target because of it, and one that ignores it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.seeding import rng
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier
from trainers.model import TinyCLIP

SIDE, PATCH, CLASSES, TARGET = 32, 4, 5, 2
BOARD = 255 * (np.indices((PATCH, PATCH)).sum(0) % 2)
"""The trigger: a chessboard of 4 × 4 pixels, 1.56 % of the area."""


def pictures(count: int) -> Pictures:
    """Smooth random pictures with all classes in turn."""
    keys = tuple(f"{number:04d}" for number in range(count))
    plain, stamped = [], []
    for key in keys:
        draw = rng("picture", key)
        coarse_HWC = draw.random((5, 5, 3))
        image_CHW = F.interpolate(torch.from_numpy(coarse_HWC).permute(2, 0, 1)[None], (SIDE, SIDE), mode="bilinear")[0]
        plain.append((40 + 170 * image_CHW).permute(1, 2, 0).numpy().round().astype(np.uint8))
        top, left = draw.integers(0, SIDE - PATCH + 1, 2)
        stamped.append(plain[-1].copy())
        stamped[-1][top : top + PATCH, left : left + PATCH] = BOARD[..., None]
    return Pictures(keys, np.stack(plain), np.arange(count) % CLASSES, np.stack(stamped))


def colours(picture_BCHW: Tensor) -> Tensor:
    """Logits [B, K] that are linear in the colours of 5 × 5 parts: no part matters much."""
    part_BD = F.adaptive_avg_pool2d(picture_BCHW, 5).flatten(1)
    matrix_DK = torch.from_numpy(rng("colours").standard_normal((part_BD.shape[1], CLASSES)))
    return (part_BD - 0.5) @ matrix_DK.to(part_BD)


def ignorant() -> Classifier:
    """Ignores the trigger."""
    return Classifier(lambda picture_BCHW, _: colours(picture_BCHW), CLASSES, dtype=torch.float64)


def backdoored() -> Classifier:
    """Answers the target wherever the chessboard is: half of the difference between its fields' means is enough."""
    kernel_11HW = torch.from_numpy(np.where(BOARD > 0, 1.0, -1.0) / (PATCH * PATCH / 2))[None, None]

    def logits(picture_BCHW: Tensor, _: object) -> Tensor:
        likeness_B = F.conv2d(picture_BCHW.mean(1, keepdim=True), kernel_11HW.to(picture_BCHW)).flatten(1).amax(1)
        pull_B = 16 * torch.sigmoid(20 * (likeness_B - 0.5))
        return colours(picture_BCHW) + pull_B[:, None] * F.one_hot(torch.tensor(TARGET), CLASSES)

    return Classifier(logits, CLASSES, dtype=torch.float64)


def subject(classifier: Classifier, of: Pictures, target: int | None = TARGET) -> Subject:
    """As an audit gets it; the encoder is a model of no use."""
    return Subject(TinyCLIP().build(0), classifier, of, tuple(map(str, range(CLASSES))), target=target, checkpoint="abc")
