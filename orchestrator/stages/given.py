"""The stage `pretrain` for a model that others trained: its weights in our form, and its metrics, which the gate judges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.experiment.fingerprint import encode, labelled
from orchestrator.experiment.identity import file_identity
from orchestrator.experiment.spec import Compute, Given
from orchestrator.stages.base import At
from orchestrator.stages.trained import Trained
from orchestrator.store import Store
from orchestrator.training.job import Job, load_model
from orchestrator.training.measuring import measure_given
from trainers.checkpoint import epoch_folder, export


@dataclass(frozen=True, kw_only=True, eq=False)
class Brought(Trained):
    """The experiment's given model, identified by the bytes of its checkpoint. Its only epoch is 0."""

    apart = True

    trained_by = None

    @property
    def given(self) -> Given:
        assert isinstance(self.experiment.pretrain, Given)
        return self.experiment.pretrain

    @property
    def name(self) -> str:
        return self.given.label

    @cached_property
    def config(self) -> Any:
        return {
            "given": file_identity(Path(self.given.checkpoint)),
            "model": encode(self.given.model, "pretrain.model"),
        }

    @property
    def shown(self) -> Any:
        return {**self.config, "pretrain": labelled(self.given, encode(self.given, "pretrain"))}

    @property
    def components(self) -> Any:
        return self.given

    def pairs(self, store: Store) -> int | None:
        return 0

    def check(self, compute: Compute) -> None:
        """InputError if the checkpoint does not hold the model."""
        load_model(self.experiment, self.given.checkpoint)

    def make(self, at: At) -> None:
        job = Job(
            experiment=self.attack.resolved(self.experiment, at),
            inputs=self.read(at),
            folder=str(at.folder),
            compute=at.compute,
            stage=str(self),
            made=self.made(at),
            measures=self.digests,
            cpus=at.compute.trial_cpus,
            gpus=at.compute.trial_gpus,
        )
        folder = epoch_folder(at.folder, 0)
        folder.mkdir(exist_ok=True)
        export(folder, measure_given(job, self.given.checkpoint))

    def seconds(self, folder: Path, since: float) -> float:
        return since
