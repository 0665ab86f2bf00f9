"""What attacks made of pictures: a table with a row each, shares with intervals, and random noise of the same size beside them.

Shape suffixes: N and B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.seeding import rng
from trainers.audit.attacks.base import Attacked, lengths, steepest
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier, as_bytes

COLUMNS = ("key", "attack", "norm", "eps", "y", "clean_prediction", "prediction", "success", "l2", "linf", "relative_l2", "queries",
           "zero_gradient_share", "seed")  # fmt: skip
SHOWN = 4
"""Pictures in the gallery."""
NOBODY = "No picture could be attacked: the model classifies none correctly, or only pictures of the target class."


class Table:
    """The rows of an audit, what random noise does in the attack's place, and a few pictures."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.by_noise = 0
        self._shown: list[tuple[Tensor, Tensor]] = []

    def add(self, right: Pictures, picture_BCHW: Tensor, made: Attacked, classifier: Classifier, seed: int | None = None) -> None:
        """Pictures that were attacked, and what the classifier takes the results for. `seed`: of the noise, if not the attack's."""
        of, label_B = self.of, right.labels(classifier)
        moved_BCHW = made.picture_BCHW.to(picture_BCHW)
        got_B = classifier.predict(moved_BCHW, right.keys)
        success_B = success(got_B, label_B, of)
        size_B = lengths(moved_BCHW - picture_BCHW, of.norm)
        noisy_BCHW = noisy(picture_BCHW, size_B, of.norm, of.seed if seed is None else seed, right.keys)
        self.by_noise += int(success(classifier.predict(noisy_BCHW, right.keys), label_B, of).sum())
        change_BCHW = moved_BCHW - picture_BCHW
        l2_B = lengths(change_BCHW, "l2")
        values: dict[str, Any] = {
            "key": list(right.keys), "y": label_B, "clean_prediction": label_B, "prediction": got_B, "success": success_B, "l2": l2_B,
            "linf": lengths(change_BCHW, "linf"), "relative_l2": l2_B / lengths(picture_BCHW, "l2").clamp_min(1e-12),
            "queries": made.queries_B, "zero_gradient_share": made.zero_gradient_B,
        }  # fmt: skip
        for name, value in values.items():
            self.rows[name] += value.tolist() if isinstance(value, Tensor) else value
        fixed = {"attack": of.label, "norm": of.norm, "eps": float(getattr(of, "eps", float("nan"))), "seed": of.seed}
        for name, one in fixed.items():
            self.rows[name] += [one] * len(right)
        turned = [pair for pair, yes in zip(zip(picture_BCHW, moved_BCHW), success_B.tolist()) if yes]
        self._shown = [*self._shown, *turned][:SHOWN]

    @property
    def successes(self) -> int:
        """How many pictures were turned."""
        return sum(self.rows["success"])

    def gallery(self) -> dict[str, np.ndarray]:
        """The first pictures that were turned; empty if none was."""
        if not self._shown:
            return {}
        picture_BCHW, moved_BCHW = (torch.stack(column) for column in zip(*self._shown))
        change_BCHW = moved_BCHW - picture_BCHW
        largest_B = lengths(change_BCHW, "linf").clamp_min(1e-12)
        columns = {"picture": picture_BCHW, "attacked": moved_BCHW,
                   "change, enlarged": 0.5 + change_BCHW / (2 * largest_B[:, None, None, None])}  # fmt: skip
        return {title: as_bytes(column).numpy() for title, column in columns.items()}


def right_ones(subject: Subject, of: Any, source: Classifier | None = None) -> Iterator[tuple[Pictures, Tensor, Tensor]]:
    """In batches: the pictures to attack, as floats and with their labels. The subject and, if given, the source classify them correctly,
    and they are not of the target class."""
    classifier, target = subject.classifier, getattr(of, "target", None)
    for part in subject.batches():
        picture_BCHW, label_B = part.floats(classifier), part.labels(classifier)
        right_B = classifier.predict(picture_BCHW, part.keys) == label_B
        if source is not None and source is not classifier:
            right_B &= source.predict(picture_BCHW.to(source.dtype), part.keys) == label_B
        if target is not None:
            right_B &= label_B != target
        if right_B.any():
            yield part.part(right_B.cpu().numpy()), picture_BCHW[right_B], label_B[right_B]


def predictions(classifier: Classifier, subject: Subject) -> Tensor:
    """What the classifier takes the subject's pictures for, int64 [N]."""
    return torch.cat([classifier.predict(part.floats(classifier), part.keys) for part in subject.batches()])


def success(got_B: Tensor, label_B: Tensor, of: Any) -> Tensor:
    """bool [B]: another class than the label; with a target, the target."""
    target = getattr(of, "target", None)
    return got_B != label_B if target is None else got_B == target


def noisy(picture_BCHW: Tensor, size_B: Tensor, norm: str, seed: int, keys_B: Sequence[str]) -> Tensor:
    """The pictures with random noise of these sizes, cut to 0 … 1: in linf the size with a random sign in every pixel, in l2 a random
    direction of that length."""
    drawn = [torch.from_numpy(rng(seed, "noise", key).standard_normal(picture_BCHW.shape[1:])) for key in keys_B]
    noise_BCHW = torch.stack(drawn).to(picture_BCHW)
    return (picture_BCHW + size_B[:, None, None, None] * steepest(noise_BCHW, norm)).clamp(0, 1)
