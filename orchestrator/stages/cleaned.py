"""The stage `clean`: a pre-trained model after a cleaning. A trial of Ray Tune makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from datasets.component import Component
from orchestrator import failures
from orchestrator.experiment.fingerprint import labelled
from orchestrator.experiment.identity import clean_pairs, cleanset_fields, encode_cleaning
from orchestrator.experiment.spec import Clean, Compute, Experiment
from orchestrator.stages.base import At, Stage, by_role
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.measured import lines_of
from orchestrator.stages.trained import Trained, checkpoint_at, made_for, rows_of, spent
from orchestrator.store import Store, read_failure
from orchestrator.training.job import Job
from orchestrator.training.ray_train import fit_on_workers
from trainers.checkpoint import STATE
from trainers.evaluate.choice import measured, start_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Cleaned(Stage):
    """The experiment's cleaning of its pre-trained model."""

    kind = "clean"
    followed = True
    trial = True
    not_kept = f"epoch_*/{STATE}"
    wait_s: ClassVar[float] = math.inf
    """A trial with the same values may be making it."""
    experiment: Experiment
    cleanset: CleaningSet
    model: Trained
    needed: tuple[Stage, ...] = ()
    """The stages that its method needs, in the order of `needs_of`."""
    kept: Stage | None = None
    """The pairs of the cleaning set that it trains on (`Kept`); None: all."""

    @property
    def cleaning(self) -> Clean:
        assert self.experiment.clean is not None
        return self.experiment.clean

    @property
    def name(self) -> str:
        return self.cleaning.method.slug

    @property
    def trained_by(self) -> Component | None:
        return self.cleaning.method

    @cached_property
    def config(self) -> Any:
        own = {key: value for key, value in encode_cleaning(self.cleaning).items() if key not in cleanset_fields(self.cleaning)}
        return own | ({"measured": self.model.digests[0]} if self.cleaning.start == "most_accurate" else {})

    @property
    def inputs(self) -> dict[str, Stage]:
        kept = {} if self.kept is None else {"kept": self.kept}
        return {"cleanset": self.cleanset, "pretrain": self.model, **kept, **by_role(self.needed)}

    @property
    def shown(self) -> Any:
        return {**self.config, "method": labelled(self.cleaning.method, self.config["method"])}

    @property
    def components(self) -> Any:
        return self.cleaning

    @property
    def pretrained(self) -> Trained:
        return self.model

    def pairs(self, store: Store) -> int:
        pairs, keep = clean_pairs(self.cleaning), self.cleaning.keep
        return self.cleaning.epochs * ((keep.kept(pairs) if keep else pairs) // self.cleaning.batch_size) * self.cleaning.batch_size

    def check(self, compute: Compute) -> None:
        self.cleaning.check_workers(compute.trial_workers)

    def make(self, at: At) -> None:
        from orchestrator.training.workers import clean

        points = measured(lines_of(at.store, self.model))
        uncleaned = start_of(points, self.cleaning.start)
        epoch = str(uncleaned.epoch) if uncleaned is not None else self.cleaning.start
        job = Job(
            experiment=self.model.attack.resolved(self.experiment, at),
            inputs=self.model.read(at),
            folder=str(at.folder),
            compute=at.compute,
            stage=str(self),
            checkpoint=str(checkpoint_at(at.of(self.model), epoch)),
            uncleaned=uncleaned,
            cleanset=self.cleanset.read(at) if self.kept is None else rows_of(self.kept, at),
            measures=self.model.digests,
            made=(*self.model.made(at), *made_for(self.cleaning.method, self.needed, at)),
            cpus=at.compute.trial_cpus,
            gpus=at.compute.trial_gpus,
        )
        try:
            if at.compute.trial_workers > 1:
                fit_on_workers(job, clean, at.compute.trial_workers, at.compute, str(self))
            else:
                clean(job, at.report)
        except Exception as error:
            failed = read_failure(at.folder)
            if failed and failed["kind"] in failures.CERTAIN:
                raise failures.ComesAgain(failed["error"]) from error
            raise

    def seconds(self, folder: Path, since: float) -> float:
        return spent(folder)
