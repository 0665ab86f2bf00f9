"""What attacks share while they run: the pictures under attack, their best tries, and what each picture cost.

Shape suffixes: B pictures, b those of them that are looked at now, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Natural, since
from datasets.errors import InputError
from trainers.audit.attacks.base import Attack, Attacked, Distance, Norm, gradient, is_zero, margin
from trainers.audit.classifier import Classifier

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
"""Batches shrink as pictures are fooled, and on a CPU torch compiles each layer for each size of a batch. It keeps 1024 of these, too few
for the sizes up to 64 of a small ResNet; without them an attack on one takes a third longer. Read when the first layer runs."""


class Work:
    """A batch under attack. Positions `at_b` (int64 [b]) say which of its pictures are meant."""

    def __init__(self, classifier: Classifier, picture_BCHW: Tensor, label_B: Tensor, keys_B: Sequence[str]) -> None:
        self.classifier = classifier
        self.start_BCHW = picture_BCHW.detach().to(classifier.device, classifier.dtype)
        """The pictures before the attack."""
        self.label_B = label_B.to(classifier.device)
        self.keys_B = tuple(keys_B)
        self.best_BCHW = self.start_BCHW.clone()
        """The best try so far; at first the picture itself."""
        count = len(self.start_BCHW)
        self.score_B = self.start_BCHW.new_full((count,), -torch.inf)
        """How good the best try is."""
        self.fooled_B = torch.zeros(count, dtype=torch.bool, device=classifier.device)
        """Whether the best try reaches the attack's aim."""
        self.queries_B = torch.zeros(count, dtype=torch.int64, device=classifier.device)
        self.gradients_B = torch.zeros_like(self.queries_B)
        self.zeros_B = torch.zeros_like(self.queries_B)

    @property
    def all_B(self) -> Tensor:
        """The positions of all pictures."""
        return torch.arange(len(self.start_BCHW), device=self.classifier.device)

    @property
    def standing_b(self) -> Tensor:
        """The positions of the pictures that are not fooled yet."""
        return (~self.fooled_B).nonzero()[:, 0]

    def keys(self, at_b: Tensor) -> list[str]:
        """The keys of these pictures."""
        return [self.keys_B[at] for at in at_b.tolist()]

    @torch.no_grad()
    def logits(self, picture_bCHW: Tensor, at_b: Tensor) -> Tensor:
        """Logits [b, K]. FloatingPointError if they are not finite, here and below."""
        return self._classify(picture_bCHW, at_b)

    def climb(self, picture_bCHW: Tensor, at_b: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [b, K], loss(logits) [b], its gradient with respect to the pixels)."""
        with torch.enable_grad():
            leaf_bCHW = picture_bCHW.detach().requires_grad_()
            logit_bK = self._classify(leaf_bCHW, at_b)
            loss_b = loss(logit_bK)
            slope_bCHW = gradient(loss_b, leaf_bCHW)
        self._count(slope_bCHW, at_b)
        return logit_bK.detach(), loss_b.detach(), slope_bCHW

    def slopes(
        self, picture_bCHW: Tensor, at_b: Tensor, losses: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """As `climb` for several losses [b, n] of one classification; their gradients come one after another."""
        with torch.enable_grad():
            leaf_bCHW = picture_bCHW.detach().requires_grad_()
            logit_bK = self._classify(leaf_bCHW, at_b)
            loss_bn = losses(logit_bK)

        def each() -> Iterator[Tensor]:
            for loss_b in loss_bn.unbind(1):
                (slope_bCHW,) = torch.autograd.grad(loss_b.sum(), leaf_bCHW, retain_graph=True)
                self._count(slope_bCHW, at_b)
                yield slope_bCHW

        return logit_bK.detach(), loss_bn.detach(), each()

    def keep(self, picture_bCHW: Tensor, score_b: Tensor, fooled_b: Tensor, at_b: Tensor) -> None:
        """Take these tries where they are better: they fool and the best so far does not, or they do no worse in that and score more.

        Scores that differ by no more than rounding count as equal, so that the first try stays whatever the batch.
        """
        was_b, score_was_b = self.fooled_B[at_b], self.score_B[at_b]
        rounding_b = (16 * torch.finfo(score_b.dtype).eps * score_was_b.abs()).nan_to_num(posinf=0)
        better_b = (fooled_b & ~was_b) | ((fooled_b == was_b) & (score_b > score_was_b + rounding_b))
        chosen_b = at_b[better_b]
        self.best_BCHW[chosen_b] = picture_bCHW[better_b]
        self.score_B[chosen_b] = score_b[better_b]
        self.fooled_B[chosen_b] = fooled_b[better_b]

    def part(self, at_b: Tensor) -> Work:
        """These pictures as work of their own."""
        return Work(self.classifier, self.start_BCHW[at_b], self.label_B[at_b], self.keys(at_b))

    def add_cost(self, part: Work, at_b: Tensor) -> None:
        """Count what was done to a part as done here."""
        self.queries_B[at_b] += part.queries_B
        self.gradients_B[at_b] += part.gradients_B
        self.zeros_B[at_b] += part.zeros_B

    def attacked(self) -> Attacked:
        """The best tries and what they cost."""
        return Attacked(self.best_BCHW, self.queries_B, self.zeros_B / self.gradients_B)

    def _classify(self, picture_bCHW: Tensor, at_b: Tensor) -> Tensor:
        self.queries_B[at_b] += 1
        logit_bK = self.classifier(picture_bCHW, self.keys(at_b))
        if not torch.isfinite(logit_bK).all():
            raise FloatingPointError("the model's logits of the attacked pictures are not finite")
        return logit_bK

    def _count(self, slope_bCHW: Tensor, at_b: Tensor) -> None:
        self.gradients_B[at_b] += 1
        self.zeros_B[at_b] += is_zero(slope_bCHW)


@dataclass(frozen=True, kw_only=True)
class Search(Attack, ABC):
    """An attack that works on a `Work`."""

    def perturb(self, classifier: Classifier, picture_BCHW: Tensor, label_B: Tensor, keys_B: Sequence[str]) -> Attacked:
        self.check(classifier.classes)
        work = Work(classifier, picture_BCHW, label_B, keys_B)
        if len(work.keys_B):
            self.search(work)
        return work.attacked()

    @abstractmethod
    def search(self, work: Work) -> None:
        """Attack the pictures and leave the best tries in `work`."""

    def check(self, classes: int) -> None:
        if classes < 2:
            raise InputError(f"{type(self).__name__} looks for another class, and the classifier has {classes}; accepted: at least 2.")


@dataclass(frozen=True, kw_only=True)
class Bounded(Search, ABC):
    """An attack within ε."""

    eps: Distance = 4 / 255
    """largest change: of a pixel as a share of its full range for linf (at most 1), the length of the whole change for l2"""
    norm: Norm = "linf"  # type: ignore[misc]
    """which norm of the change is limited"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf" and self.eps > 1:
            raise InputError(f"{type(self).__name__}.eps is {self.eps}, above the full range of a pixel; accepted for linf: 0 … 1.")


@dataclass(frozen=True, kw_only=True)
class Ascent(Bounded, ABC):
    """An attack within ε that follows the gradient of a loss."""

    loss: Literal["ce", "margin"] = "ce"
    """ce: cross-entropy, which has no gradient where the logits are far apart; margin: best other logit minus the label's"""
    towards: Literal["away", "likeliest", "least_likely"] = "away"
    """away: raise the label's loss; likeliest or least_likely: lower the loss of the wrong class with the largest or smallest logit"""
    target: Natural | None = since(None)
    """the class whose loss is lowered, for all pictures but its own, which stay as they are; None: as `towards` says"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is not None and self.towards != "away":
            name = type(self).__name__
            raise InputError(f"{name}.towards is {self.towards} and {name}.target is {self.target}; accepted: one of the two alone.")

    def check(self, classes: int) -> None:
        """InputError for fewer than two classes, or a target that is none of them."""
        super().check(classes)
        if self.target is not None and self.target >= classes:
            raise InputError(f"{type(self).__name__}.target is {self.target}; accepted: a class, 0 to {classes - 1}.")

    @property
    def away(self) -> bool:
        """Whether it moves away from the label and not towards a class."""
        return self.target is None and self.towards == "away"

    @property
    def called(self) -> str:
        """Its class's name, and the target."""
        return type(self).__name__ if self.target is None else f"{type(self).__name__} to {self.target}"

    def search(self, work: Work) -> None:
        others_b = work.all_B if self.target is None else (work.label_B != self.target).nonzero()[:, 0]
        if len(others_b) == len(work.label_B):
            self.ascend(work)
        elif len(others_b):
            part = work.part(others_b)
            self.ascend(part)
            work.best_BCHW[others_b] = part.best_BCHW
            work.add_cost(part, others_b)

    @abstractmethod
    def ascend(self, work: Work) -> None:
        """Attack the pictures, none of which is of the target class, and leave the results in `work`."""

    def known(self, label_b: Tensor) -> Tensor | None:
        """The classes whose loss is raised or lowered, int64 [b], if it takes no logits to know them."""
        if self.target is not None:
            return torch.full_like(label_b, self.target)
        return label_b if self.towards == "away" else None

    def aims(self, logit_bK: Tensor, label_b: Tensor) -> Tensor:
        """The classes whose loss is raised or lowered, given the logits of the unchanged pictures, int64 [b]."""
        if (known_b := self.known(label_b)) is not None:
            return known_b
        if self.towards == "likeliest":
            return likeliest(logit_bK, label_b, 1)[:, 0]
        return logit_bK.detach().scatter(1, label_b[:, None], torch.inf).argmin(1)

    def value(self, logit_bK: Tensor, aim_b: Tensor) -> Tensor:
        """What the attack raises, floats [b]."""
        away_b = F.cross_entropy(logit_bK, aim_b, reduction="none") if self.loss == "ce" else margin(logit_bK, aim_b)
        return away_b if self.away else -away_b

    def score(self, logit_bK: Tensor, aim_b: Tensor) -> Tensor:
        """Above 0 where the attack has reached its aim, floats [b]: the label is not the largest logit, or the target class is."""
        return margin(logit_bK, aim_b) if self.away else -margin(logit_bK, aim_b)


def likeliest(logit_bK: Tensor, label_b: Tensor, count: int) -> Tensor:
    """The wrong classes with the largest logits, int64 [b, count], the largest first; fewer if there are fewer classes."""
    other_bK = logit_bK.detach().scatter(1, label_b[:, None], -torch.inf)
    return other_bK.sort(dim=1, descending=True, stable=True).indices[:, : min(count, logit_bK.shape[1] - 1)]


def wide(value_b: Tensor) -> Tensor:
    """[b] -> [b, 1, 1, 1]."""
    return value_b[:, None, None, None]
