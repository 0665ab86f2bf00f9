"""Accuracy on corrupted pictures: 15 corruptions in 5 severities (Hendrycks and Dietterich 2019, "Benchmarking neural network robustness").

The corruptions themselves are in `corrupt.py`. They are named as in that work but made anew, so the numbers are not those of its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Interval

from datasets.component import Count
from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.bias.corrupt import CORRUPTIONS
from trainers.audit.bias.shared import answers, by_hash
from trainers.audit.shares import share

Name = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip
Severity = Annotated[int, Interval(ge=1, le=5)]


@dataclass(frozen=True, kw_only=True)
class Corruptions(Audit):
    """Zero-shot accuracy on the same pictures under each corruption and severity, and means over them."""

    group: ClassVar[str] = "bias"

    names: tuple[Name, ...] = tuple(CORRUPTIONS)  # type: ignore[arg-type]
    """Which corruptions."""
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5)
    """Which severities, 1 the weakest."""
    count: Count = 200
    """Pictures, those with the smallest hashes of their keys; all if there are no more."""
    seed: int = 0
    """Seed of the choice of pictures and of the random parts, which depend on (seed, corruption, severity, key)."""

    def __post_init__(self) -> None:
        for field in ("names", "severities"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise InputError(f"Corruptions.{field} is {values}; accepted: at least one value, each once.")

    def run(self, subject: Subject) -> Findings:
        """In percent: bias/corruptions/clean, /<corruption>/<severity> and /<corruption>/mean; /mean over all with _low and _high (95 %,
        normal, from the spread between pictures); /relative, the mean as a share of clean; also /clean_low and _high (Wilson) and /n."""
        given = subject.pictures.part(by_hash(subject.pictures.keys, self.seed, "corruptions")[: self.count])
        clean_N = answers(subject, given) == given.label_N
        n = len(given)
        metrics: dict[str, float] = {"n": n, **share("clean", int(clean_N.sum()), n)}
        rows: dict[str, list] = {name: [] for name in ("key", "corruption", "severity", "label", "answer", "right")}
        right: list[np.ndarray] = []
        shown = {"clean": given.image_NHWC[:4]}
        for name in self.names:
            for severity in self.severities:
                changed = self.corrupted(given, name, severity)
                answer_N = answers(subject, changed)
                right.append(answer_N == given.label_N)
                metrics[f"{name}/{severity}"] = 100 * float(right[-1].mean())
                columns = (given.keys, [name] * n, [severity] * n, given.label_N.tolist(), answer_N.tolist(), right[-1].tolist())
                for column, values in zip(rows, columns):
                    rows[column] += values
                if severity == sorted(self.severities)[len(self.severities) // 2]:
                    shown[name.replace("_", " ")] = changed.image_NHWC[:4]
            metrics[f"{name}/mean"] = 100 * float(np.mean(right[-len(self.severities) :]))
        by_picture_N = 100 * np.mean(right, axis=0)
        middle, half = float(by_picture_N.mean()), 1.96 * float(by_picture_N.std(ddof=min(1, n - 1))) / n**0.5
        metrics |= {"mean": middle, "mean_low": max(0.0, middle - half), "mean_high": min(100.0, middle + half)}
        if metrics["clean"]:
            metrics["relative"] = 100 * middle / metrics["clean"]
        note = "The corruptions are made anew after the published ones: compare models here with each other, not with published numbers."
        return Findings({f"bias/corruptions/{name}": value for name, value in metrics.items()}, rows, shown, notes=(note,))

    def corrupted(self, pictures: Pictures, name: str, severity: int) -> Pictures:
        """The pictures under one corruption."""
        draws = (rng(self.seed, "corruption", name, severity, key) for key in pictures.keys)
        made = [CORRUPTIONS[name](image_HWC / 255, severity, draw) for image_HWC, draw in zip(pictures.image_NHWC, draws)]
        image_NHWC = np.rint(255 * np.clip(np.stack(made), 0, 1)).astype(np.uint8)
        return Pictures(pictures.keys, image_NHWC, pictures.label_N)
