"""The stage `pretrain`: a model trained on the poisoned pairs, or on the same pairs without the poison."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datasets.captions import synonym_digest
from datasets.component import Component, needs_of
from datasets.errors import InputError
from orchestrator.experiment import unpoisoned
from orchestrator.fingerprint import encode, labelled
from orchestrator.identity import encode_evaluate, weights_identity
from orchestrator.spec import Experiment, Pretrain
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import Around, At, Stage, by_role
from orchestrator.stages.inputs import Inputs
from orchestrator.stages.testset import TestSet
from orchestrator.store import METRICS, Artefact, checked, metrics_of, read_lines
from orchestrator.training import fit_on_workers
from orchestrator.workers import Job
from trainers.checkpoint import STATE, epoch_folder, reported
from trainers.evaluate.choice import measured, start_of
from trainers.model import WEIGHTS


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Stage):
    """The experiment's pre-training, from a fresh model, from given weights, or from its prior. Ray Train's workers make it."""

    kind = "pretrain"
    not_kept = f"epoch_*/{STATE}"
    experiment: Experiment
    attack: AttackPlan
    prior: Unpoisoned | None
    needed: tuple[Stage, ...] = ()
    """What its evaluators need, in the order of `needs_of`."""

    @property
    def name(self) -> str:
        return self.experiment.training.objective.slug

    @cached_property
    def config(self) -> Any:
        return {
            "weights": weights_identity(self.experiment.pretrain.model),
            "eda": [self.experiment.eda, synonym_digest()],
            "pretrain": encode(self.experiment.pretrain, "pretrain"),
            "evaluate": encode_evaluate(self.experiment.evaluate),
        }

    @property
    def inputs(self) -> dict[str, Stage]:
        prior = {} if self.prior is None else {"prior": self.prior}
        return {"poison": self.attack, **prior, **by_role(self.needed)}

    @property
    def shown(self) -> Any:
        objective, trained = self.experiment.training.objective, self.config["pretrain"]
        return {**self.config, "pretrain": {**trained, "objective": labelled(objective, trained["objective"])}}

    @property
    def components(self) -> Any:
        return (self.experiment.pretrain, self.experiment.evaluate.evaluators)

    @property
    def sets(self) -> tuple[TestSet, ...]:
        """The further test sets among what is needed."""
        return tuple(stage for stage in self.needed if isinstance(stage, TestSet))

    def read(self, at: At) -> Inputs:
        """The data that it is trained and measured on; cleanings of it are measured on the same."""
        return at.known.get(self.fingerprint) or self.attack.read(at, self.sets)

    def made(self, at: At) -> tuple[tuple[Component, str], ...]:
        """What its evaluators find of what they need."""
        return made_for(self.experiment.evaluate.evaluators, self.needed, at)

    def make(self, at: At) -> None:
        job = Job(
            experiment=self.experiment,
            inputs=self.read(at),
            folder=str(at.folder),
            compute=at.compute,
            stage=str(self),
            checkpoint="" if self.prior is None else str(last_checkpoint(at.of(self.prior))),
            made=self.made(at),
            cpus=at.compute.cpus_per_worker,
            gpus=at.compute.gpus_per_worker,
        )
        fit_on_workers(job, self, at)

    def seconds(self, folder: Path, since: float) -> float:
        return spent(folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unpoisoned(Trained):
    """A training on the same pairs without the poison: a healthy model to begin with, or one that labels pictures.

    Of the attack only trigger and target are part of its identity, by which it is measured, so that plans of all sizes share it.
    """

    wait_s: ClassVar[float] = math.inf
    """Whoever shares it waits."""
    role = "labeller"
    serves = (Pretrain,)

    @classmethod
    def serve(cls, need: Pretrain, around: Around) -> Unpoisoned:
        """The training on the experiment's pairs, measured by its test set, trigger and target."""
        attack = around.made["poison"]
        assert isinstance(attack, AttackPlan)
        return cls(experiment=unpoisoned(around.experiment, need), attack=attack, prior=None)

    @property
    def name(self) -> str:
        return f"{self.experiment.training.objective.slug} unpoisoned"

    @cached_property
    def config(self) -> Any:
        own = self.experiment
        return {
            "unpoisoned": True,
            "weights": weights_identity(own.pretrain.model),
            "eda": [own.eda, synonym_digest()],
            "pretrain": encode(own.pretrain, "unpoisoned"),
            "views": encode(own.views, "views"),
            "subset": [own.data.subset, own.data.seed],
            "evaluate": {
                "seed": own.evaluate.seed,
                "trigger": encode(own.poison.trigger, "poison.trigger"),
                "target": own.poison.target,
            },
        }

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"index": self.attack.index, "testset": self.attack.testset}

    @property
    def needs(self) -> tuple[Stage, ...]:
        return (*self.inputs.values(), self.attack)  # whose subset it trains on

    @property
    def components(self) -> Any:
        return (self.experiment.pretrain, self.experiment.poison.trigger)

    def read(self, at: At) -> Inputs:
        return replace(self.attack.read(at), plan="")


def made_for(value: Any, needed: Sequence[Stage], at: At) -> tuple[tuple[Component, str], ...]:
    """(need, folder of what was made for it) of the components in a value; test sets are among the `Inputs`."""
    pairs = zip(needs_of(value), needed, strict=True)
    return tuple((need, str(at.of(stage).folder)) for need, stage in pairs if not isinstance(stage, TestSet))


def last_checkpoint(artefact: Artefact) -> Path:
    """The last epoch folder of a finished training; InputError where its weights were lost or changed."""
    return checkpoint_at(artefact, "last")


def checkpoint_at(artefact: Artefact, start: str) -> Path:
    """The epoch folder of a finished training that `Clean.start` names; InputError where it was not kept, was lost or changed."""
    stored = sorted(int(match[1]) for name in artefact.manifest["files"] if (match := re.fullmatch(rf"epoch_(\d+)/{WEIGHTS}", name)))
    if start == "most_accurate":
        best = start_of([point for point in measured(metrics_of(artefact)) if point.epoch in stored], start)
        start = str(best.epoch) if best else "last"
    epoch = stored[-1] if start == "last" else int(start)
    if epoch not in stored:
        raise InputError(f"clean.start is {start}, but {artefact.folder} has checkpoints of the epochs {', '.join(map(str, stored))}.")
    return checked(epoch_folder(artefact.folder, epoch))


def spent(folder: Path) -> float:
    """Seconds of training over all attempts, as the last line of metrics tells."""
    lines = lines_so_far(folder)
    return lines[-1]["seconds"] if lines else 0.0


def lines_so_far(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training that has not finished; where their file is damaged those that its newest checkpoint has noted."""
    try:
        return read_lines(folder / METRICS)
    except InputError:
        return reported(folder)
