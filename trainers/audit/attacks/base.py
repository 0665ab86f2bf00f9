"""The interface of an attack on a classifier, and what attacks share.

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from datasets.component import Component
from datasets.seeding import rng
from trainers.audit.classifier import Classifier

Norm = Literal["linf", "l2"]
Radius = Annotated[float, Interval(ge=0, le=1)]
"""ε of the L∞ norm, as a share of the full range of a pixel: 4/255."""
Distance = Annotated[float, Ge(0)]
"""ε of the L2 norm over all pixels of 0 … 1."""


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a batch."""

    picture_BCHW: Tensor
    """The adversarial pictures, floats in 0 … 1, within ε of the originals. Where the attack fails, its best try."""
    queries_B: Tensor
    """How often each picture was classified, int64 [B]."""
    zero_gradient_B: Tensor
    """Share of the gradients that were exactly 0 in every pixel, floats [B] of 0 … 1; NaN: no gradient was computed."""


@dataclass(frozen=True, kw_only=True)
class Attack(Component, ABC):
    """Finds a picture near each given one that the classifier takes for another class. To add one, subclass this in its own file.

    Random draws come from `draw` alone, so that they depend on (seed, attack, key) and not on the batch.
    """

    seed: int = 0
    norm: ClassVar[str] = "linf"
    """linf | l2. An attack that can do both has a field of this name."""
    minimal: ClassVar[bool] = False
    """Whether it looks for the smallest change instead of any within ε."""
    black_box: ClassVar[bool] = False
    """Whether it only looks at the classifier's answers, not at its gradients."""

    def check(self, classes: int) -> None:  # noqa: B027 (most can attack any classifier)
        """Raise InputError if it is not defined for a classifier with this many classes."""

    def warnings(self, classifier: Classifier, picture_BCHW: Tensor, keys_B: Sequence[str]) -> tuple[str, ...]:
        """Sentences: why its result says too little of this classifier; most attacks do not look."""
        return ()

    @abstractmethod
    def perturb(self, classifier: Classifier, picture_BCHW: Tensor, label_B: Tensor, keys_B: Sequence[str]) -> Attacked:
        """Attack pictures (floats in 0 … 1) of these classes (int64). Pictures that are misclassified already are attacked too."""

    def draw(self, key: str, *purpose: object) -> np.random.Generator:
        """The random numbers of one sample."""
        return rng(self.seed, type(self).id, *purpose, key)


def gradient(loss_B: Tensor, picture_BCHW: Tensor) -> Tensor:
    """Gradient of each picture's loss with respect to its pixels, floats [B, C, H, W]; 0 for a picture that the loss ignores."""
    (found,) = torch.autograd.grad(loss_B.sum(), picture_BCHW, allow_unused=True)
    return torch.zeros_like(picture_BCHW) if found is None else found


def is_zero(gradient_BCHW: Tensor) -> Tensor:
    """bool [B]: the gradient is exactly 0 in every pixel."""
    return (gradient_BCHW == 0).flatten(1).all(1)


def lengths(value_BCHW: Tensor, norm: str) -> Tensor:
    """The norm (linf | l2) of each row, floats [B]."""
    flat_BM = value_BCHW.flatten(1)
    return flat_BM.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat_BM, dim=1)


def project(picture_BCHW: Tensor, around_BCHW: Tensor, eps: float, norm: str) -> Tensor:
    """The nearest pictures within ε of `around` in that norm, then cut to 0 … 1 (which goes no further from `around`)."""
    change_BCHW = picture_BCHW - around_BCHW
    if norm == "linf":
        change_BCHW = change_BCHW.clamp(-eps, eps)
    else:
        long_B = lengths(change_BCHW, norm).clamp_min(torch.finfo(change_BCHW.dtype).tiny)
        change_BCHW = change_BCHW * (eps / long_B).clamp_max(1)[:, None, None, None]
    return (around_BCHW + change_BCHW).clamp(0, 1)


def steepest(gradient_BCHW: Tensor, norm: str) -> Tensor:
    """The step of length 1 in that norm along which the loss grows fastest: the sign for linf, the gradient over its length for l2."""
    if norm == "linf":
        return gradient_BCHW.sign()
    long_B = lengths(gradient_BCHW, norm).clamp_min(torch.finfo(gradient_BCHW.dtype).tiny)
    return gradient_BCHW / long_B[:, None, None, None]


def margin(logit_BK: Tensor, label_B: Tensor) -> Tensor:
    """Best other logit minus the label's, floats [B]: above 0 where the picture is misclassified."""
    own_B1 = label_B[:, None]
    other_B = logit_BK.scatter(1, own_B1, float("-inf")).amax(1)
    return other_B - logit_BK.gather(1, own_B1)[:, 0]
