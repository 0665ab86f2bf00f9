"""What an attacker sees who knows the defence: gradients through random parts (EOT) and through parts without a gradient (BPDA).

Shape suffixes: B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from datasets.component import Component, Count
from datasets.seeding import rng
from trainers.audit.classifier import Classifier
from trainers.audit.defences.base import Defence

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class EOT(Component):
    """Expectation over transformation: the mean over several draws of something random (Athalye et al. 2018).

    The gradient of the mean is the mean of the gradients.
    """

    draws: Count = 10
    """k, how many draws the mean is over"""
    seed: int = 0
    """of the attacker's draws, which are never those of the defence"""

    def mean(self, once: Callable[[int], Tensor]) -> Tensor:
        """The mean of once(0), …, once(draws − 1)."""
        total = once(0)
        for number in range(1, self.draws):
            total = total + once(number)
        return total / self.draws

    def draw(self, defence: Defence, key: str, number: int) -> np.random.Generator:
        """The attacker's random numbers for the draw of this number for a picture."""
        return rng(self.seed, "EOT", type(defence).id, key, number)


class _BPDA(torch.autograd.Function):
    """`forward` forwards, the gradient of `surrogate` backwards."""

    @staticmethod
    def forward(ctx: Any, picture: Tensor, forward: Map, surrogate: Map) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(picture)
        ctx.surrogate = surrogate
        return forward(picture.detach()).detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        (picture,) = ctx.saved_tensors
        with torch.enable_grad():
            own = picture.detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.surrogate(own), own, upstream, allow_unused=True)
        return found, None, None


def bpda(picture: Tensor, forward: Map, surrogate: Map = lambda picture: picture) -> Tensor:
    """forward(picture), whose gradient is that of surrogate(picture): backward pass differentiable approximation (Athalye, Carlini and
    Wagner 2018). The surrogate's result has the shape of the forward one."""
    return _BPDA.apply(picture, forward, surrogate)


def adaptive(defence: Defence, classifier: Classifier, eot: EOT | None = None) -> Classifier:
    """The defended classifier as an adaptive attacker sees it: logits averaged over fresh draws of a random defence, with BPDA's gradient
    for one that has none.

    It counts the pictures that it is asked for; `classifier` counts each draw. It differs from `guard`, which has one draw for each call.
    """
    eot = eot or EOT()
    calls: Counter[str] = Counter()
    k = eot.draws if defence.random else 1
    assert defence.differentiable or type(defence).classify is Defence.classify, "BPDA is for defences that show the classifier one picture"

    def once(picture_BCHW: Tensor, keys_B: Sequence[str], draws: Sequence[np.random.Generator]) -> Tensor:
        if defence.differentiable:
            return defence.classify(classifier, picture_BCHW, keys_B, draws)
        seen_BCHW = bpda(picture_BCHW, lambda clean_BCHW: defence.apply(clean_BCHW, draws, classifier), defence.surrogate)
        return classifier(seen_BCHW, keys_B)

    def logits(picture_BCHW: Tensor, keys_B: Sequence[str]) -> Tensor:
        first_B = []
        for key in keys_B:
            first_B.append(calls[key])
            calls[key] += k
        average = EOT(draws=k, seed=eot.seed)
        return average.mean(
            lambda number: once(picture_BCHW, keys_B, [eot.draw(defence, key, first + number) for key, first in zip(keys_B, first_B)])
        )

    return Classifier(logits, classifier.classes, classifier.device, classifier.dtype)
