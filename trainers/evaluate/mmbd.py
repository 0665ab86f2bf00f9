"""MM-BD (S&P 2024) checks whether one class reaches a far larger margin than the others. The audit needs class names but no pictures.

Shape suffixes: S starts, K audited classes, C all classes, H and W height and width, 3 channels, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge

from datasets.component import Count, NotNegative, Positive, since
from datasets.errors import InputError
from datasets.feed.loader import Batch
from datasets.seeding import hash64, rng
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.inputs import by_pixels
from trainers.evaluate.zeroshot import class_head

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class MMBD(Evaluator):
    """The largest margin f_t(x) − max_{j≠t} f_j(x) of each class t over pictures x, where f is 100·cosine with the zero-shot head.

    The search starts from random pictures, uniform over 0 … 1, and raises the sum of their margins by plain gradient steps; x is clipped to
    0 … 1 before the model sees it. A class's margin r_t is the best over its starts when the search ends (wanghangpsu/MM-BD, univ_bd.py).
    The largest margin is compared with a gamma law (location 0) that is fitted by maximum likelihood to the margins of the other classes: p
    = 1 − F(r_max)^K. A small p means that one class stands out, as the target of a backdoor does. With few classes p is too small (see the
    docs).
    """

    starts: Count = 30
    """random pictures per class"""
    steps: Count = 300
    """largest number of gradient steps"""
    lr: Positive = 1e-2
    """step size, for pixels in 0 … 1"""
    tolerance: NotNegative = 1e-5
    """the search of a class ends when the summed margin changes by less than this share"""
    classes: Annotated[int, Ge(3)] = 100
    """how many classes to audit; if there are more, they are chosen by the hash of their numbers"""
    at_risk: tuple[str, ...] = ()
    """names of classes to audit in any case"""
    seed: int = 0
    """seed of the starts and of the choice of classes"""
    every: int = since(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.at_risk)) > self.classes:
            raise InputError(f"MMBD.at_risk names {len(set(self.at_risk))} classes, but MMBD.classes is {self.classes}: raise it.")

    def check_classes(self, names: tuple[str, ...]) -> None:
        self.audited(names)

    def open(self, material: Material) -> Iterable[Batch]:
        """One batch with class names and prompts; no pictures."""
        yield {"class_names": material.class_names, "templates": material.templates}

    def measure(
        self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None
    ) -> dict[str, float | np.ndarray]:
        """mmbd/p (0 … 1; left out if the margin of another class is not above 0, because no gamma law has such values), mmbd/class (number
        of the class with the largest margin), mmbd/margin (that margin), mmbd/classes (K). Arrays: mmbd/margins [K] and mmbd/audited [K],
        the numbers of the audited classes."""
        import torch

        world = world or World()
        [known] = batches
        training = model.training
        model.eval()
        with torch.no_grad():
            head_CD = class_head(model, tuple(known["class_names"]), tuple(known["templates"]), world)
        model.train(training)
        audited = self.audited(known["class_names"])
        with by_pixels(model):
            local = [(number, self.margin(model, head_CD, number)) for number in audited[world.rank :: world.size]]
        margins = dict(distributed.gather_lists(local, world))
        margin_K = np.array([margins[number] for number in audited])
        largest, p = int(margin_K.argmax()), p_value(margin_K)
        numbers = {"mmbd/class": float(audited[largest]), "mmbd/margin": float(margin_K[largest]), "mmbd/classes": float(len(audited))}
        arrays = {"mmbd/margins": margin_K, "mmbd/audited": np.array(audited)}
        return {**numbers, **arrays, **({} if p is None else {"mmbd/p": p})}

    def audited(self, names: tuple[str, ...]) -> list[int]:
        """The numbers of the classes to audit, rising. InputError for fewer than three classes, or for an unknown name in `at_risk`."""
        unknown = [name for name in self.at_risk if name not in names]
        if unknown:
            raise InputError(f"MMBD.at_risk names {unknown[0]!r}, which is not among the {len(names)} classes.")
        if len(names) < 3:
            raise InputError(f"MMBD compares a class with the others: it needs at least 3 classes, and there are {len(names)}.")
        order = sorted(range(len(names)), key=lambda number: (names[number] not in self.at_risk, hash64(self.seed, "class", number)))
        return sorted(order[: self.classes])

    def margin(self, model: Encoder, head_CD: Tensor, number: int) -> float:
        """r_t of the class with this number. FloatingPointError if it is not finite."""
        import torch

        size = model.image_size
        start = torch.from_numpy(rng(self.seed, "mm-bd", number).random((self.starts, size, size, 3)))
        x_SHW3, before = start.to(model.device, model.mean.dtype).requires_grad_(), 0.0
        for step in range(self.steps + 1):
            score_SC = 100 * model.encode_image(255 * x_SHW3.clamp(0, 1)) @ head_CD.T
            others_SC = score_SC.index_fill(1, torch.tensor([number], device=score_SC.device), -torch.inf)
            margin_S = score_SC[:, number] - others_SC.max(dim=1).values
            total = float(margin_S.detach().sum())
            if not np.isfinite(total):
                raise FloatingPointError("the model's features of audited pictures are not finite")
            if step == self.steps or (step and abs(total - before) < self.tolerance * abs(before)):
                break
            [gradient] = torch.autograd.grad(margin_S.sum(), [x_SHW3])
            x_SHW3, before = (x_SHW3.detach() + self.lr * gradient).requires_grad_(), total
        return float(margin_S.detach().max())


def p_value(margin_K: np.ndarray) -> float | None:
    """1 − F(r_max)^K, where F is the gamma law fitted to all margins but the largest; None if one of these is not above 0."""
    from scipy.special import expm1, log1p
    from scipy.stats import gamma

    null = np.delete(margin_K, int(margin_K.argmax()))
    if null.min() <= 0:
        return None
    if np.ptp(null) <= 1e-12 * null.max():  # equal margins: no gamma law fits
        return 0.0 if margin_K.max() > null.max() * (1 + 1e-9) else 1.0
    shape, _, scale = gamma.fit(null, floc=0)
    beyond = gamma.sf(margin_K.max(), shape, scale=scale)
    return float(-expm1(len(margin_K) * log1p(-beyond)))  # exact for small p
