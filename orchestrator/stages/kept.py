"""The stage `kept`: which pairs are trained on after the most suspect ones are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.component import components
from datasets.errors import InputError
from datasets.index.pairs import Pairs
from datasets.seeding import hashes64
from orchestrator.console.log import log
from orchestrator.experiment.identity import clean_pairs
from orchestrator.experiment.spec import Experiment, Given, Keep
from orchestrator.stages.base import At, Stage
from orchestrator.stages.cleanset import FILE, CleaningSet
from orchestrator.stages.given import Brought
from orchestrator.stages.scored import Scored
from orchestrator.stages.trained import Trained
from orchestrator.store import write_json
from trainers.detect.base import Score, crowded
from trainers.detect.scoring import first_positions
from trainers.evaluate.detection import Detection, victims

DROPPED = "dropped.parquet"
"""key, dropped, victim; in the order of the index."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept(Stage):
    """The share of the pairs with the lowest scores, as rows of the index; of equal scores those whose keys hash smallest."""

    kind = "kept"
    wait_s: ClassVar[float] = math.inf
    keep: Keep
    """Of it the share is part of the identity; score and model enter through the scores."""
    scores: Scored

    @property
    def name(self) -> str:
        return f"{100 * self.keep.share:g} % by {self.scores.score.name}"

    @property
    def config(self) -> Any:
        return {"share": self.keep.share}

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"scores": self.scores}

    def make(self, at: At) -> None:
        table, pairs = self.scores.read(at), self.scores.scored(at)
        keys, victim_N = table["key"].to_pylist(), table["victim"].to_numpy()
        if keys != pairs.keys().to_pylist():
            raise InputError(f"{self.scores} was made of other pairs than {self.scores.attack}: delete its folder to make it anew.")
        dropped_N = np.ones(len(keys), bool)
        dropped_N[lowest(table["score"].to_numpy(), keys, self.keep.kept(len(keys)))] = False
        np.save(at.folder / FILE, pairs.rows[~dropped_N])
        pq.write_table(pa.table({"key": keys, "dropped": dropped_N, "victim": victim_N}), at.folder / DROPPED)
        told = {
            "pairs": len(keys),
            "kept": int((~dropped_N).sum()),
            "dropped": int(dropped_N.sum()),
            "victims": int(victim_N.sum()),
            "victims_caught": int((dropped_N & victim_N).sum()),
            "clean_pairs_lost": int((dropped_N & ~victim_N).sum()),
        }
        write_json(at.folder / "summary.json", told)
        log.info("%s", told_of(told))


def told_of(told: dict[str, int]) -> str:
    """What was dropped, in a line."""
    return (
        f"dropped {told['dropped']} of {told['pairs']} pairs: caught {told['victims_caught']} of {told['victims']} victims, lost "
        f"{told['clean_pairs_lost']} clean pairs"
    )


def lowest(score_N: np.ndarray, keys: list[str], count: int) -> np.ndarray:
    """int64: the places of the `count` lowest scores, whatever the order of the pairs."""
    tie_N = hashes64("keep", keys=keys)
    return np.lexsort((tie_N, score_N))[:count]


def scoring_model(experiment: Experiment, keep: Keep, own: Trained) -> Trained:
    """The training by whose model pairs are scored; `own`: the one that does where the keep names none."""
    if keep.model is None:
        return own
    other = replace(
        experiment,
        pretrain=keep.model,
        views=replace(experiment.views, size=keep.model.model.image_size),
        evaluate=replace(experiment.evaluate, evaluators=()),
        prior=None,
        keep=None,
        clean=None,
    )
    kind = Brought if isinstance(keep.model, Given) else Trained
    return kind(experiment=other, attack=own.attack, testset=own.testset, prior=None)


def kept_of(experiment: Experiment, keep: Keep, own: Trained, cleanset: CleaningSet | None = None) -> Kept:
    """The stage of what is kept of the pairs of the attack, or of a cleaning set."""
    model = scoring_model(experiment, keep, own)
    scored = Scored(score=keep.score, model=model, attack=own.attack, experiment=experiment, cleanset=cleanset)
    return Kept(keep=keep, scores=scored)


def check_scores(experiment: Experiment, pairs: Pairs) -> None:
    """InputError where a keep or an evaluator cannot score these pairs, or leaves fewer than a batch; a warning where the reference is
    expected to hold too many victims, also that of a score of the cleaning set."""
    keep, scores, left = experiment.keep, list[Score](), len(pairs)
    if keep is not None:
        keep.score.check(left, "keep.score")
        left, batch_size = keep.kept(left), experiment.training.batch_size
        if left < batch_size:
            told = f"which leaves {left} of {len(pairs)} pairs: fewer than one batch of {batch_size}"
            raise InputError(f"keep.share is {keep.share}, {told}.")
        scores.append(keep.score)
    for evaluator in experiment.evaluate.evaluators:
        if isinstance(evaluator, Detection):
            evaluator.check_pairs(left)
            scores += evaluator.scores
    if scores:
        victim_N = victims(pairs)
        first_positions([score for score in scores if score.trusts], pairs, victim_N)
        if warning := crowded(scores, len(pairs), int(victim_N.sum())):
            log.warning("%s", warning)
    clean = experiment.clean
    if clean is not None:
        inside = [part for part in components((clean.method, clean.keep)) if isinstance(part, Score)]
        if warning := crowded(inside, clean_pairs(clean), clean.poisons):
            log.warning("cleaning set: %s", warning)
