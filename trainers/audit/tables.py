"""What attacks made of pictures: a table with a row each, shares with intervals, and random noise of the same size beside them.

Shape suffixes: N and B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.seeding import rng
from trainers.audit.attacks.base import Attacked, lengths, steepest
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier, as_bytes
from trainers.audit.shares import beyond_chance

COLUMNS: dict[str, type] = {
    "checkpoint": str, "key": str, "attack": str, "norm": str, "eps": float, "defence": str, "mode": str, "y": int, "clean_prediction": int,
    "prediction": int, "success": bool, "l2": float, "linf": float, "relative_l2": float, "queries": int, "zero_gradient_share": float,
    "noise_prediction": int, "noise_size": float, "alone_prediction": int, "seed": int,
}  # fmt: skip
"""Of the rows of every attack. Where there is nothing to tell, a value is None."""
SHOWN = 4
"""Pictures in the gallery."""
NOBODY = "No picture could be attacked: the model classifies none correctly, or only pictures of the target class."


def attack_rows(
    of: Any, subject: Subject, keys_B: Sequence[str], clean_BCHW: Tensor, moved_BCHW: Tensor, per_B: Mapping[str, Tensor],
    defence: str | None = None, mode: str | None = None,
) -> dict[str, list[Any]]:  # fmt: skip
    """`COLUMNS` of a batch that the attack `of` changed from `clean` to `moved`.

    `per_B` has the columns that are measured elsewhere, [B] each: y, clean_prediction, prediction, success, queries, zero_gradient_share,
    noise_prediction, and noise_size and alone_prediction if there are any. NaN becomes None.
    """
    n, change_BCHW = len(keys_B), moved_BCHW - clean_BCHW
    l2_B = lengths(change_BCHW, "l2")
    eps = None if getattr(of, "minimal", False) else getattr(of, "eps", None)
    fixed = {"checkpoint": subject.checkpoint, "attack": of.label, "norm": of.norm, "eps": eps, "defence": defence, "mode": mode,
             "seed": of.seed}  # fmt: skip
    sizes = {"l2": l2_B, "linf": lengths(change_BCHW, "linf"), "relative_l2": l2_B / lengths(clean_BCHW, "l2").clamp_min(1e-12)}
    measured = {name: [None if value != value else value for value in one.tolist()] for name, one in {**sizes, **per_B}.items()}
    return {name: list(keys_B) if name == "key" else measured[name] if name in measured else [fixed.get(name)] * n for name in COLUMNS}


class Table:
    """The rows of an audit, what random noise does in the attack's place, and a few pictures."""

    def __init__(self, of: Any, subject: Subject) -> None:
        self.of, self.subject = of, subject
        self.rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._by_noise: list[bool] = []
        self._shown: list[tuple[Tensor, Tensor]] = []

    def add(self, right: Pictures, picture_BCHW: Tensor, made: Attacked, classifier: Classifier, seed: int | None = None) -> None:
        """Pictures that were attacked, and what the classifier takes the results for. `seed`: of the noise, if not the attack's."""
        of, label_B = self.of, right.labels(classifier)
        moved_BCHW = made.picture_BCHW.to(picture_BCHW)
        got_B = classifier.predict(moved_BCHW, right.keys)
        success_B = success(got_B, label_B, of)
        size_B = lengths(moved_BCHW - picture_BCHW, of.norm)
        noisy_BCHW = noisy(picture_BCHW, size_B, of.norm, of.seed if seed is None else seed, right.keys)
        noise_B = classifier.predict(noisy_BCHW, right.keys)
        self._by_noise += success(noise_B, label_B, of).tolist()
        per_B = {
            "y": label_B, "clean_prediction": label_B, "prediction": got_B, "success": success_B, "queries": made.queries_B,
            "zero_gradient_share": made.zero_gradient_B, "noise_prediction": noise_B,
        }  # fmt: skip
        for name, values in attack_rows(of, self.subject, right.keys, picture_BCHW, moved_BCHW, per_B).items():
            self.rows[name] += values
        turned = [pair for pair, yes in zip(zip(picture_BCHW, moved_BCHW), success_B.tolist()) if yes]
        self._shown = [*self._shown, *turned][:SHOWN]

    @property
    def by_noise(self) -> int:
        """How many pictures noise of the same size turned."""
        return sum(self._by_noise)

    def failures(self, who: str) -> list[str]:
        """A sentence if noise of the same size turned more pictures than the attack did, beyond chance."""
        pairs = list(zip(self._by_noise, self.rows["success"]))
        if not beyond_chance(sum(noise and not attack for noise, attack in pairs), sum(attack and not noise for noise, attack in pairs)):
            return []
        return [f"Random noise of the same size turns more pictures ({self.by_noise} of {len(pairs)}) than {who} does ({self.successes}): "
                "the attack fails, which says nothing about the model."]  # fmt: skip

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
