"""The stage `pretrain`: a model trained on the poisoned pairs, or on the same pairs without the poison."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datasets.captions import synonym_digest
from datasets.component import Component, needs_of
from datasets.errors import InputError
from datasets.evaluation.classes import class_name, target_index
from orchestrator.experiment.check import unpoisoned
from orchestrator.experiment.fingerprint import encode, fingerprint, labelled
from orchestrator.experiment.identity import encode_evaluator, weights_identity
from orchestrator.experiment.spec import Compute, Experiment, Pretrain
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import Around, At, Stage, by_role
from orchestrator.stages.cleanset import FILE as ROWS
from orchestrator.stages.testset import TestSet, require_same_classes
from orchestrator.store import METRICS, Artefact, Store, checked, read_lines
from orchestrator.training.inputs import Inputs
from orchestrator.training.job import Job
from orchestrator.training.ray_train import fit_on_workers
from trainers.checkpoint import STATE, epoch_folder, reported
from trainers.evaluate.base import Evaluator
from trainers.weights.epoch_folder import WEIGHTS


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Stage):
    """The experiment's pre-training, which starts from random weights, given weights or its prior. Ray Train's workers run it."""

    kind = "pretrain"
    followed = True
    not_kept = f"epoch_*/{STATE}"
    experiment: Experiment
    attack: AttackPlan
    testset: TestSet
    """Measures the model during the training. Measurements are not part of its identity: see `Measured`."""
    prior: Unpoisoned | None
    needed: tuple[Stage, ...] = ()
    """The stages that its evaluators need, in the order of `needs_of`."""
    kept: Stage | None = None
    """The pairs that it trains on (`Kept`); None: all."""

    @property
    def name(self) -> str:
        return self.experiment.training.objective.slug

    @property
    def trained_by(self) -> Component | None:
        return self.experiment.training.objective

    @cached_property
    def config(self) -> Any:
        return {
            "weights": weights_identity(self.experiment.pretrain.model),
            "eda": [self.experiment.eda, synonym_digest()],
            "pretrain": encode(self.experiment.pretrain, "pretrain"),
        }

    @property
    def inputs(self) -> dict[str, Stage]:
        others = {"prior": self.prior, "kept": self.kept}
        return {"poison": self.attack, **{role: stage for role, stage in others.items() if stage is not None}}

    @property
    def needs(self) -> tuple[Stage, ...]:
        return (*self.inputs.values(), self.testset, *self.needed)

    @property
    def shown(self) -> Any:
        objective, trained = self.experiment.training.objective, self.config["pretrain"]
        return {**self.config, "pretrain": {**trained, "objective": labelled(objective, trained["objective"])}}

    @property
    def components(self) -> Any:
        return self.experiment.pretrain

    @property
    def sets(self) -> tuple[TestSet, ...]:
        """The further test sets among `needed`."""
        return tuple(stage for stage in self.needed if isinstance(stage, TestSet))

    @property
    def pretrained(self) -> Trained:
        return self

    def pairs(self, store: Store) -> int | None:
        spec, kept, keep = self.experiment.training, self.attack.kept(store), self.experiment.keep
        if kept is not None and keep is not None:
            kept = keep.kept(kept)
        return None if kept is None else spec.epochs * (kept // spec.batch_size) * spec.batch_size

    def check(self, compute: Compute) -> None:
        self.experiment.training.check_workers(compute.workers)

    def read(self, at: At) -> Inputs:
        """The data that it is trained and measured on; its cleanings are measured on the same."""
        if self.fingerprint in at.known:
            return at.known[self.fingerprint]
        pairs = self.attack.read(at)
        return self.measured_on(pairs if self.kept is None else replace(pairs, rows=rows_of(self.kept, at)), at)

    def measured_on(self, pairs: Inputs, at: At) -> Inputs:
        """The pairs together with the test sets. InputError if the target is not a class, the classes of two sets differ, or an evaluator
        cannot measure on these classes."""
        test = self.testset.read(at)
        made = tuple(one.read(at) for one in self.sets)
        alike = needs_of(tuple(one for one in self.experiment.evaluate.evaluators if not one.own_classes))
        for one, other in zip(self.sets, made):
            if one.tests in alike:
                require_same_classes(test, one.source(at), other)
        for evaluator in self.experiment.evaluate.evaluators:
            evaluator.check_classes(test.class_names)
        targets = tuple(None if attack.all_to_all else target_place(test.class_names, attack.target) for attack in self.experiment.poisons)
        return replace(
            pairs, test_index=test.index, test_urls=test.urls, class_names=test.class_names, templates=test.templates, targets=targets,
            further=made,
        )  # fmt: skip

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """The digest of each measurement, independent of the model: zero-shot accuracy and ASR, then each evaluator."""
        evaluators = self.experiment.evaluate.evaluators
        sets = dict(zip(needs_of(evaluators), self.needed, strict=True))
        return tuple(digest(self, evaluator, sets) for evaluator in (None, *evaluators))

    def made(self, at: At) -> tuple[tuple[Component, str], ...]:
        """(need, folder of what was made for it) of its evaluators."""
        return made_for(self.experiment.evaluate.evaluators, self.needed, at)

    def make(self, at: At) -> None:
        from orchestrator.training.workers import pretrain

        job = Job(
            experiment=self.attack.resolved(self.experiment, at),
            inputs=self.read(at),
            folder=str(at.folder),
            compute=at.compute,
            stage=str(self),
            checkpoint="" if self.prior is None else str(last_checkpoint(at.of(self.prior))),
            made=self.made(at),
            measures=self.digests,
            cpus=at.compute.cpus_per_worker,
            gpus=at.compute.gpus_per_worker,
        )
        fit_on_workers(job, pretrain, at.compute.workers, at.compute, str(self))

    def seconds(self, folder: Path, since: float) -> float:
        return spent(folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfCheckpoints(Stage):
    """What is found out about the checkpoints of a pre-training or a cleaning, on its test set."""

    apart = True
    model: Stage
    """The stage that made the checkpoints."""
    needed: tuple[Stage, ...] = ()
    """The stages that the component which looks at them needs, in the order of `needs_of`."""

    @property
    def source(self) -> Trained:
        """The pre-training behind the model, or the model if it is one."""
        assert self.model.pretrained is not None
        return self.model.pretrained

    @property
    def inputs(self) -> dict[str, Stage]:
        return {self.model.kind: self.model, "testset": self.source.testset, **by_role(self.needed)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Unpoisoned(Trained):
    """A training on the same pairs without the poison: a healthy model to start from, or one that labels pictures.

    The attack is not part of its identity.
    """

    wait_s: ClassVar[float] = math.inf
    """Other processes that need it wait until it is made."""
    role = "labeller"
    serves = (Pretrain,)

    @classmethod
    def serve(cls, need: Pretrain, around: Around) -> Unpoisoned:
        """The training on the experiment's pairs, measured by its test set, trigger and target."""
        attack = around.made["poison"]
        assert isinstance(attack, AttackPlan)
        testset = around.made["testset"]
        assert isinstance(testset, TestSet)
        return cls(experiment=unpoisoned(around.experiment, need), attack=attack, testset=testset, prior=None)

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
        }

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"index": self.attack.index}

    @property
    def needs(self) -> tuple[Stage, ...]:
        return (*super().needs, self.attack)  # it trains on the attack's subset

    @property
    def components(self) -> Any:
        return self.experiment.pretrain

    def read(self, at: At) -> Inputs:
        return self.measured_on(replace(self.attack.read(at), plan=""), at)


def rows_of(stage: Stage, at: At) -> str:
    """The file of the rows that a stage has chosen."""
    return str(at.of(stage).folder / ROWS)


def target_place(class_names: Sequence[str], target: str) -> int:
    """The index of an attack's target among the classes; InputError if it is not one of them."""
    place = target_index(class_names, target)
    if class_names[place] != class_name(target):
        raise InputError(f"poison.target is {target!r}, a class's whole name that ends as the number of one does: rename the class.")
    return place


def made_for(value: Any, needed: Sequence[Stage], at: At) -> tuple[tuple[Component, str], ...]:
    """(need, folder of what was made for it) of the components in a value, without test sets, which are in the `Inputs`."""
    pairs = zip(needs_of(value), needed, strict=True)
    return tuple((need, str(at.of(stage).folder)) for need, stage in pairs if not isinstance(stage, TestSet))


def digest(model: Trained, evaluator: Evaluator | None, sets: Mapping[Component, Stage]) -> str:
    """Identifies a measurement by 16 hexadecimal digits; an `evaluator` of None stands for zero-shot accuracy and ASR."""
    experiment = model.experiment
    measured = [
        [attack.name, encode(attack.trigger), attack.target, *(["text_only"] if attack.mode == "text_only" else [])]
        for attack in experiment.poisons
    ]
    measured[0] += [stage.fingerprint for stage in model.attack.needed]  # which the triggers' encodings do not have
    only_measured = not all(attack.planted for attack in experiment.poisons)  # then the plan does not tell which
    attack: Any = [model.attack.fingerprint, measured] if only_measured else model.attack.fingerprint
    needed = [] if evaluator is None else [sets[need].fingerprint for need in needs_of(evaluator)]
    told = {
        "evaluator": None if evaluator is None else encode_evaluator(evaluator),
        "seed": experiment.evaluate.seed,
        "attack": attack if evaluator else measured if model.attack.several else measured[0][1:],
        "views": encode(experiment.views),
        "testset": model.testset.fingerprint,
        "needed": needed,
    }
    return fingerprint(told)[:16]


def stored_epochs(artefact: Artefact) -> list[int]:
    """The epochs whose weights a finished training holds."""
    return sorted(int(match[1]) for name in artefact.manifest["files"] if (match := re.fullmatch(rf"epoch_(\d+)/{WEIGHTS}", name)))


def last_checkpoint(artefact: Artefact) -> Path:
    """The last epoch folder of a finished training; InputError if its weights were lost or changed."""
    return checkpoint_at(artefact, "last")


def checkpoint_at(artefact: Artefact, start: str) -> Path:
    """The epoch folder of a finished training, `last` or by number; InputError if it was not kept, was lost or was changed."""
    stored = stored_epochs(artefact)
    epoch = stored[-1] if start == "last" else int(start)
    if epoch not in stored:
        raise InputError(f"clean.start is {start}, but {artefact.folder} has checkpoints of the epochs {', '.join(map(str, stored))}.")
    return checked(epoch_folder(artefact.folder, epoch))


def spent(folder: Path) -> float:
    """Seconds of training over all attempts, read from the last line of metrics."""
    lines = lines_so_far(folder)
    return lines[-1]["seconds"] if lines else 0.0


def lines_so_far(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics of an unfinished training; if their file is damaged, the lines stored in its newest checkpoint."""
    try:
        return read_lines(folder / METRICS)
    except InputError:
        return reported(folder)
