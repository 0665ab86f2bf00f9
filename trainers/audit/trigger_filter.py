"""A defence at test time as a filter for backdoor triggers.

Shape suffixes: N pictures, B pictures of a batch, H and W height and width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.base import Audit, Findings, Subject
from trainers.audit.classifier import as_bytes
from trainers.audit.defences.base import Defence
from trainers.audit.defences.halves import halves
from trainers.audit.shares import share
from trainers.evaluate.zeroshot import Aim

SHOWN = 6
"""Pictures in the gallery."""
WORKS = 50.0
"""A trigger with a lower ASR (in percent) says little about a filter."""

Halves = list[tuple[np.ndarray, Defence]]
"""Positions of pictures, and the defence that filters them."""


@dataclass(frozen=True, kw_only=True)
class TriggerFilter(Audit):
    """What a defence leaves of a backdoor: accuracy and attack success rate (ASR) with and without it.

    ASR is the share of triggered pictures of other classes that are taken for the target; RA (recovery accuracy) the share of the same
    pictures that are taken for their own class. A good filter has low ASR, and RA and accuracy near the accuracy without it.

    A defence that needs clean pictures gets those of the other half of the audited ones (`halves`).
    """

    group: ClassVar[str] = "defences"

    defence: Defence

    @property
    def label(self) -> str:
        return f"Trigger filter {self.defence.label}"

    def check(self, subject_classes: int, triggered: bool) -> None:
        if not triggered:
            raise InputError(f"{self.label} measures what is left of a trigger on pictures, and there is none; accepted: a model whose "
                             "first attack puts a trigger on pictures.")  # fmt: skip

    def run(self, subject: Subject) -> Findings:
        """Under filter/<defence>/{bare,filtered}/: accuracy, asr and ra in percent, each with its Wilson interval of 95 % (_low, _high).
        Under filter/<defence>/: n, asr_n (triggered pictures of other classes), and queries, how many pictures the model saw for each one
        that it was asked for. InputError without a trigger, or if all pictures are of the target."""
        pictures = subject.pictures
        self.check(subject.classifier.classes, pictures.triggered_NHWC is not None)
        label_N = torch.from_numpy(np.asarray(pictures.label_N, np.int64))
        target_N, counts_N = (of_N.numpy() for of_N in Aim(target=subject.target).of(label_N, subject.classifier.classes))
        if not counts_N.any():
            raise InputError(f"{self.label}: every picture is of the target's class; accepted: pictures of other classes too.")
        defended = halves(self.defence, pictures)
        taken, queries = self._predictions(subject, defended)
        under, n = f"filter/{self.defence.label}", len(pictures)
        metrics = {f"{under}/n": float(n), f"{under}/asr_n": float(counts_N.sum()), f"{under}/queries": queries}
        for side in ("bare", "filtered"):
            right_N, triggered_n = taken[f"clean_{side}"] == pictures.label_N, taken[f"triggered_{side}"][counts_N]
            metrics |= share(f"{under}/{side}/accuracy", int(right_N.sum()), n)
            metrics |= share(f"{under}/{side}/asr", int((triggered_n == target_N[counts_N]).sum()), len(triggered_n))
            metrics |= share(f"{under}/{side}/ra", int((triggered_n == pictures.label_N[counts_N]).sum()), len(triggered_n))
        rows = {
            "checkpoint": [subject.checkpoint] * n, "key": list(pictures.keys), "defence": [self.defence.label] * n,
            "y": label_N.tolist(), "target": target_N.tolist(), "counts": counts_N.tolist(),
            **{name: taken_N.tolist() for name, taken_N in taken.items()}, "seed": [self.defence.seed] * n,
        }  # fmt: skip
        return Findings(metrics, rows, self._gallery(subject, defended), notes=self._notes(metrics[f"{under}/bare/asr"]))

    def _predictions(self, subject: Subject, defended: Halves) -> tuple[dict[str, np.ndarray], float]:
        """Classes {clean,triggered}_{bare,filtered}, int64 [N] each; how many pictures the model saw for each filtered one."""
        pictures, bare = subject.pictures, subject.classifier
        taken = {f"{kind}_{side}": np.full(len(pictures), -1) for kind in ("clean", "triggered") for side in ("bare", "filtered")}
        saw = 0
        for half_n, defence in defended:
            for kind in ("clean", "triggered"):
                filtered = defence.guard(bare)
                for start in range(0, len(half_n), subject.batch_size):
                    at_B = half_n[start : start + subject.batch_size]
                    part = pictures.part(at_B)
                    picture_BCHW = part.floats(bare, kind == "triggered")
                    taken[f"{kind}_bare"][at_B] = bare.predict(picture_BCHW, part.keys).cpu().numpy()
                    before = bare.queries
                    taken[f"{kind}_filtered"][at_B] = filtered.predict(picture_BCHW, part.keys).cpu().numpy()
                    saw += bare.queries - before
        return taken, saw / (2 * len(pictures))

    @torch.no_grad()
    def _gallery(self, subject: Subject, defended: Halves) -> dict[str, np.ndarray]:
        columns: dict[str, list[np.ndarray]] = {}
        for half_n, defence in defended:
            part = subject.pictures.part(half_n[: SHOWN // len(defended)])
            for kind in ("clean", "triggered"):
                picture_BCHW = part.floats(subject.classifier, kind == "triggered")
                draws = [rng(defence.seed, "gallery", key) for key in part.keys]
                columns.setdefault(kind, []).append(as_bytes(picture_BCHW).numpy())
                columns.setdefault(f"{kind}, filtered", []).append(as_bytes(defence.apply(picture_BCHW, draws, subject.classifier)).numpy())
        return {title: np.concatenate(parts) for title, parts in columns.items()}

    def _notes(self, asr: float) -> tuple[str, ...]:
        if asr >= WORKS:
            return ()
        return (f"{self.label}: without a filter the trigger works on {asr:.1f} % of the pictures, too few to judge a filter by.",)
