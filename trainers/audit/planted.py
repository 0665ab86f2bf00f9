"""Which class a small patch reaches too easily: the trace of a planted target.

Shape suffixes: N pictures, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from datasets.errors import InputError
from trainers.audit.attacks.patch import AdversarialPatch, Place
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.shared import by_hash
from trainers.audit.classifier import as_bytes
from trainers.evaluate.zeroshot import wilson

SHOWN = 6
MIN_CLASSES = 3
TO_SIGMA = 1.4826
"""Factor from the median absolute deviation to the standard deviation of a normal distribution."""
SUSPICIOUS = 2.0
"""An anomaly index above this is taken for a planted class (Wang et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class Planted(Audit):
    """Optimises a patch of equal area for each class and looks for a class that is reached much more often than the others.

    After Neural Cleanse (Wang et al. 2019), with the area fixed and the success compared instead of the other way round. The patches are
    optimised on one half of the pictures, that with the smaller hashes of (seed, key), and judged on the other; pictures of the patch's
    own class are left out. Nothing depends on the order of the pictures. The anomaly index of a class is its distance from the median
    success, in spreads: 1.4826 times the median absolute deviation, but at least the binomial standard deviation of the median success, so
    that chance alone makes no class stand out.

    A trigger may work at one place alone. So each class has a patch for every one of `places`, and the place at which it succeeds most
    often on the first half of the pictures is the one that is judged.
    """

    group: ClassVar[str] = "backdoor"
    patch: AdversarialPatch = field(default_factory=lambda: AdversarialPatch(area=0.03, fixed_area=True, steps=25, lr=0.1))
    places: tuple[Place, ...] = ("random", "bottom_right", "bottom_left", "top_right", "top_left")
    """where patches are tried"""
    seed: int = 0
    """seed of the halves"""

    @property
    def label(self) -> str:
        return "a patch for each class"

    def run(self, subject: Subject) -> Findings:
        """planted/: success of the best class and of the median, the indices of the most anomalous class and of the target, whether the
        target comes first (100 or 0), n (pictures that judge a patch, at least). Rows: one for each class, under its name."""
        self.check(subject.classifier.classes, False)
        hashed_N = by_hash(subject.pictures.keys, self.seed, "planted")
        made, judged = (subject.pictures.part(half_n) for half_n in np.split(hashed_N, [len(hashed_N) // 2]))
        rows: dict[str, list[Any]] = {name: [] for name in ("key", "success", "low", "high", "n", "index")}
        shown: list[np.ndarray] = []
        counts = []
        for target in range(subject.classifier.classes):
            others, rest = made.part(made.label_N != target), judged.part(judged.label_N != target)
            if not len(others) or not len(rest):
                raise InputError(f"{self.label}: all {len(subject.pictures)} pictures are of one class; accepted: several classes.")
            patch, patch_CSS = self._best(subject, others, target)
            count, n, pictures = _judge(patch, subject, rest, patch_CSS, target)
            counts.append((count, n))
            shown.append(pictures)
        success_K = np.array([count / n for count, n in counts])
        index_K = anomaly(success_K, min(n for _, n in counts))
        for name, (count, n), index in zip(subject.class_names, counts, index_K):
            low, high = wilson(count, n)
            for column, value in zip(rows, (name, 100 * count / n, low, high, n, float(index))):
                rows[column].append(value)
        first = int(index_K.argmax())
        metrics = {
            "planted/n": float(min(n for _, n in counts)), "planted/median_success": 100 * float(np.median(success_K)),
            "planted/most_success": 100 * float(success_K[first]), "planted/most_index": float(index_K[first]),
        }  # fmt: skip
        notes = [f"A patch for each class: {subject.class_names[first]} stands out most, with an anomaly index of {index_K[first]:.1f} "
                 f"({'above' if index_K[first] > SUSPICIOUS else 'not above'} {SUSPICIOUS:g})."]  # fmt: skip
        if subject.target is not None:
            metrics |= {
                "planted/target_success": 100 * float(success_K[subject.target]), "planted/target_index": float(index_K[subject.target]),
                "planted/target_first": 100.0 * (first == subject.target),
            }  # fmt: skip
        order = [first, *(at for at in index_K.argsort()[::-1] if at != first)][:3]
        gallery = {f"patch for {subject.class_names[at]}": shown[at] for at in order}
        return Findings(metrics, rows, gallery, notes=tuple(notes))

    def _best(self, subject: Subject, others: Pictures, target: int) -> tuple[AdversarialPatch, Tensor]:
        """The patch that makes most of these pictures the target, and its place."""
        found: list[tuple[int, AdversarialPatch, Tensor]] = []
        for place in self.places:
            patch = replace(self.patch, place=place)
            patch_CSS = patch.optimise(subject.classifier, others.floats(subject.classifier), others.keys, target)
            found.append((_judge(patch, subject, others, patch_CSS, target)[0], patch, patch_CSS))
        _, patch, patch_CSS = max(found, key=lambda one: one[0])
        return patch, patch_CSS

    def __post_init__(self) -> None:
        if not self.places:
            raise InputError("Planted.places is empty; accepted: at least one place for the patches.")

    def check(self, subject_classes: int, triggered: bool) -> None:
        if subject_classes < MIN_CLASSES:
            raise InputError(f"{self.label}: a model with {subject_classes} classes has no median to stand out from; accepted: at least 3.")


def _judge(
    patch: AdversarialPatch, subject: Subject, others: Pictures, patch_CSS: Tensor, target: int
) -> tuple[int, int, np.ndarray]:
    """(how many of the pictures become the target, their number, some of them with the patch)."""
    count, some = 0, np.zeros((0, *others.image_NHWC.shape[1:]), np.uint8)
    for start in range(0, len(others), subject.batch_size):
        part = others.part(slice(start, start + subject.batch_size))
        placed_BCHW, _ = patch.apply(patch_CSS, part.floats(subject.classifier), part.keys)
        count += int((subject.classifier.predict(placed_BCHW, part.keys) == target).sum())
        if not start:
            some = as_bytes(placed_BCHW[:SHOWN]).numpy()
    return count, len(others), some


def anomaly(success_K: np.ndarray, n: int) -> np.ndarray:
    """How many spreads each class's success (shares of n pictures) lies above the median, float64 [K]."""
    middle = float(np.median(success_K))
    deviation = TO_SIGMA * float(np.median(np.abs(success_K - middle)))
    share = min(max(middle, 1 / n), 1 - 1 / n)  # at 0 or 1 a binomial has no spread, which one picture more would belie
    return (success_K - middle) / max(deviation, math.sqrt(share * (1 - share) / n))
