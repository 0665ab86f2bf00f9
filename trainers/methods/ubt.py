"""UBT (after Liang et al. 2024, arXiv 2403.16257): an overfitted copy shows which pairs are suspect, and the model unlearns these."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval

from datasets.component import Count, Positive
from datasets.errors import InputError
from datasets.storage import write_whole
from trainers import distributed
from trainers.detect.base import Score, smallest
from trainers.detect.cosine import CosineByModel
from trainers.detect.merit import largest, poisons_among
from trainers.detect.scoring import REFERENCE
from trainers.evaluate.detection import score_pairs
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.intact import damaged, digest
from trainers.objectives.contrastive import MMCL
from trainers.objectives.unlearn import Cosine, Unlearn
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder

FILE = "suspects.parquet"
"""In the stage's folder: key, score (by the overfitted copy, high is suspect), suspect, victim, in the order of the pairs."""


@dataclass(frozen=True, kw_only=True)
class UBT(Method):
    """1. A copy of the model is overfitted with MMCL for `overfit_epochs` on the cleaning pairs, so that shortcuts become stronger.
    2. The `share` of the pairs that are most suspect by the copy are the suspects: by the paper, those of the largest cosine of picture and
       caption. Every pair is seen once, not augmented, in evaluation mode.
    3. The model itself trains for the epochs that are left: the suspects are pushed apart, the other pairs go on with MMCL (`Unlearn`).

    So the cleaning pairs must hold poison (`clean.poisons`): on pairs without any it unlearns clean ones. The lines of metrics of the
    first phase describe the copy, and no rule chooses among them.

    From the paper are the three steps. Its loss of the forgetting, which pairs its overfitting prefers, and that only some of the tokens
    are unlearned are not made here: all pairs are overfitted alike, and whole pairs are unlearned, by a hinge of their cosine.
    """

    overfit_epochs: Count = 1
    """of the copy, out of the stage's"""
    overfit_lr: Positive | None = None
    """highest learning rate of the copy; None: the stage's"""
    share: Annotated[float, Interval(gt=0, lt=1)] = 0.01
    """of the pairs that are suspects"""
    score: Score = field(default_factory=CosineByModel)
    """how suspect a pair is to the copy: any of `trainers.detect` that needs no pairs drawn as clean and no earlier checkpoint"""
    weight: Positive = 1.0
    """of pushing suspects apart, beside MMCL on the others"""
    margin: Cosine = 0.0
    """cosine that suspects are pushed down to"""

    def __post_init__(self) -> None:
        if isinstance(self.score.trusts, int) and self.score.trusts:
            raise InputError(f"UBT.score: {self.score.label}.trusted is {self.score.trusts}, a number of pairs that are drawn by who is a "
                             "victim, which UBT does not know; accepted: the keys of pairs of the cleaning set.")
        if tuple(self.score.checkpoints((1, 2))) != (2,):
            raise InputError(f"UBT.score is {self.score.label}, which needs the models of several epochs; accepted: scores by one model.")

    def check(self, pairs: int) -> None:
        self.score.check(pairs, "UBT.score")
        found = round(self.share * pairs)
        if not 1 <= found < pairs:
            raise InputError(f"UBT.share is {self.share}, which makes {found} suspects of {pairs} pairs; accepted: at least one suspect "
                             "and one other pair.")

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        if training.slug == "pretrain":
            raise InputError("pretrain.objective is UBT, which cleans a model that is trained already; accepted: as clean.method.")
        if training.epochs <= self.overfit_epochs:
            raise InputError(f"{training.slug}.epochs is {training.epochs}, but the copy of UBT takes {self.overfit_epochs} of them "
                             f"(UBT.overfit_epochs): at least {self.overfit_epochs + 1}.")
        shortest = min(self.overfit_epochs, training.epochs - self.overfit_epochs)
        steps = None if pairs is None else shortest * (pairs // training.batch_size)
        if steps is not None and training.warmup_steps >= steps:
            raise InputError(f"{training.slug}.warmup_steps is {training.warmup_steps}, but the shorter phase of UBT has only {steps} "
                             "steps; the warm-up must end before the phase does.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        suspect_N, told = self._suspects(model, run)
        plan = EpochPlan(values={"suspect": suspect_N}, metrics=told)
        objective = Unlearn(weight=self.weight, margin=self.margin)
        return run.fit(model, objective, phase="unlearn", begin_epoch=lambda model, epoch: plan)

    def _suspects(self, model: Encoder, run: Run) -> tuple[np.ndarray, dict[str, float]]:
        """(int64 [N], what is said of them): 1 for the pairs that are unlearned. They are kept in the stage's folder."""
        overfitted = copy.deepcopy(model, {id(model.tokenize): model.tokenize})
        changes: dict[str, Any] = {} if self.overfit_lr is None else {"lr": self.overfit_lr}
        run.fit(overfitted, MMCL(), epochs=self.overfit_epochs, phase="overfit", aside=True, **changes)
        file = None if run.folder is None else run.folder / FILE
        found = distributed.from_main(_read(file) if file is not None and file.exists() and run.world.main else None, run.world)
        if found is None:  # else the copy may not be the overfitted one: the second phase has begun
            scores = score_pairs(overfitted, pairs_to_score(run, self.score), (self.score,), run.world)
            score_N = scores.suspicion[self.score]
            found = distributed.from_main((score_N, largest(score_N, self.share), scores.victim_N), run.world)
            if file is not None and run.world.main:
                _write(file, run.keys(), *found)
        score_N, suspect_N, victim_N = found
        return suspect_N.astype(np.int64), said(score_N, suspect_N, victim_N)


def pairs_to_score(run: Run, score: Score) -> Iterator[dict[str, Any]]:
    """This rank's batches for `score_pairs`: of the pairs that the score compares with, then of all."""
    keys = np.array(run.keys(), object)
    m, seed = score.drawn
    assert not isinstance(score.trusts, int) or not score.trusts
    compared = {*keys[smallest(keys, m, seed, REFERENCE)], *(score.trusts or ())}
    if unknown := sorted(compared - set(keys)):
        raise InputError(f"UBT.score: {score.label}.trusted names {unknown[0]!r}, which is no key of the cleaning set.")
    place = {key: number for number, key in enumerate(keys)}
    for first in (True, False) if compared else (False,):
        for batch in run.pairs():
            rows = np.array([not first or key in compared for key in batch["key"]], bool)
            if rows.any():
                own = {name: np.asarray(batch[name])[rows] for name in ("key", "image", "caption")}
                position_B = np.array([place[key] for key in own["key"]], np.int64)
                yield {"first": first, "position": position_B, "victim": np.asarray(batch["poisoned"])[rows], **own}


def said(score_N: np.ndarray, suspect_N: np.ndarray, victim_N: np.ndarray) -> dict[str, float]:
    """Metrics of the suspects: how many they are, and how they relate to the victims (`poisons_among`)."""
    numbers = {"suspects": suspect_N.sum(), **poisons_among("suspect", suspect_N, score_N, victim_N)}
    return {f"ubt/{name}": float(value) for name, value in numbers.items()}


def _write(file: Path, keys: list[str], score_N: np.ndarray, suspect_N: np.ndarray, victim_N: np.ndarray) -> None:
    content = io.BytesIO()
    table = pa.table({"key": keys, "score": score_N, "suspect": suspect_N, "victim": victim_N})
    pq.write_table(table.replace_schema_metadata({"digest": digest(score_N, suspect_N, victim_N)}), content)
    write_whole(file, content.getvalue())


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """score, suspect, victim. InputError if the file is damaged: the copy that found the suspects may be gone."""
    try:
        table = pq.read_table(file)
        score_N, suspect_N, victim_N = (table[name].to_numpy() for name in ("score", "suspect", "victim"))
        whole = table.schema.metadata[b"digest"].decode() == digest(score_N, suspect_N, victim_N)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise damaged(file) from error
    if not whole:
        raise damaged(file)
    return score_N, suspect_N, victim_N
