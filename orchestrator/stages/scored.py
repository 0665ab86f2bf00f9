"""The stage `scores`: how suspect each pair looks to a trained model, and how well that finds the victims."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.index.pairs import Pairs
from orchestrator.console.log import log
from orchestrator.experiment.fingerprint import encode, labelled
from orchestrator.experiment.spec import Experiment
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import At, Stage
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.trained import Trained, checkpoint_at, stored_epochs
from orchestrator.store import checked, write_json
from orchestrator.training.job import WHOLE, load_model
from trainers.detect.base import Score, crowded
from trainers.distributed import World
from trainers.evaluate.detection import Scores, score_pairs, scored_batches

FILE = "scores.parquet"
"""key, score (float64, high is suspect), sign (score · sign is the value as its paper defines it), victim; in the order of the index."""
CAUGHT_AT = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Percent of the pairs, the most suspect ones, among which victims are counted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(Stage):
    """The scores of all pairs of an attack, or of a cleaning set's, by a model. One process makes them, with the cores and the GPU of a
    trial; its memory holds the features of the reference and of one batch."""

    kind = "scores"
    apart = True
    wait_s: ClassVar[float] = math.inf
    """Whoever shares it waits."""
    score: Score
    model: Trained
    attack: AttackPlan
    experiment: Experiment
    """Its views and triggers say how the pairs are made."""
    cleanset: CleaningSet | None = None

    @property
    def name(self) -> str:
        return f"{self.score.name} by {self.model.name}"

    @property
    def config(self) -> Any:
        return {"score": encode(self.score, "keep.score")}

    @property
    def shown(self) -> Any:
        return {"score": labelled(self.score, self.config["score"])}

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"poison": self.attack, "pretrain": self.model, **({} if self.cleanset is None else {"cleanset": self.cleanset})}

    @property
    def components(self) -> Any:
        return self.score

    def scored(self, at: At) -> Pairs:
        """The pairs that are scored, as trained on."""
        return self.attack.read(at).pairs(None if self.cleanset is None else self.cleanset.read(at))

    def make(self, at: At) -> None:
        import torch

        found, pairs, score = at.of(self.model), self.scored(at), self.score
        experiment = self.attack.resolved(self.experiment, at)
        device = World.current().device if at.compute.trial_gpus else torch.device("cpu")
        made: list[Scores] = []
        for epoch in score.checkpoints(stored_epochs(found)):
            encoder = load_model(self.model.experiment, str(checkpoint_at(found, str(epoch)))).place(device)
            recipe = experiment.recipe(replace(experiment.views, size=encoder.image_size))
            made.append(score_pairs(encoder, scored_batches(pairs, [score], recipe, WHOLE), [score], World()))
        mean_N = np.mean([one.suspicion[score] for one in made], axis=0)
        last = replace(made[-1], suspicion={score: mean_N})
        sign_N = np.full(len(mean_N), score.sign, np.int8)
        pq.write_table(pa.table({"key": pairs.keys(), "score": mean_N, "sign": sign_N, "victim": last.victim_N}), at.folder / FILE)
        warning = crowded([score], len(pairs), int(last.victim_N.sum()))
        if warning:
            log.warning("%s", warning)
        told = {"score": score.name, "suspect": "high" if score.sign > 0 else "low", "models": len(made), "warning": warning}
        write_json(at.folder / "summary.json", {**told, "figures": last.merit(score, CAUGHT_AT, 0)})

    def read(self, at: At) -> pa.Table:
        """Its table."""
        return pq.read_table(checked(at.of(self).folder / FILE))
