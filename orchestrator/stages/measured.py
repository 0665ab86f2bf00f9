"""The stage `measure`: one evaluator's metrics of a training's checkpoints, if it was not measured during the training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.component import needs_of
from orchestrator.experiment.identity import encode_evaluator
from orchestrator.stages.base import At, Stage
from orchestrator.stages.trained import OfCheckpoints, lines_so_far, made_for, stored_epochs
from orchestrator.store import Artefact, Store, metrics_of, part
from orchestrator.training.job import Job
from orchestrator.training.measuring import MEASURED, measure_stored, read_measured
from trainers.checkpoint import epoch_folder
from trainers.evaluate.base import Evaluator


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured(OfCheckpoints):
    """An evaluator's metrics of every stored checkpoint of a pre-training or a cleaning."""

    kind = "measure"
    evaluator: Evaluator | None
    """None: zero-shot accuracy and attack success."""
    digest: str
    """Identifies the measurement, independent of the model."""

    @property
    def name(self) -> str:
        return f"{'accuracy and ASR' if self.evaluator is None else self.evaluator.label} of {self.model.name}"

    @property
    def config(self) -> Any:
        return {"measurement": self.digest, "evaluator": None if self.evaluator is None else encode_evaluator(self.evaluator)}

    @property
    def components(self) -> Any:
        return () if self.evaluator is None else self.evaluator

    def make(self, at: At) -> None:
        found, source = at.of(self.model), self.source
        own = () if self.evaluator is None else (self.evaluator,)
        evaluate = replace(source.experiment.evaluate, evaluators=own)
        job = Job(
            experiment=source.attack.resolved(replace(source.experiment, evaluate=evaluate, clean=None), at),
            inputs=replace(source, needed=self.needed, experiment=replace(source.experiment, evaluate=evaluate)).read(At(store=at.store)),
            folder=str(at.folder),
            compute=at.compute,
            stage=str(self),
            made=made_for(self.evaluator, self.needed, at) if self.evaluator is not None else (),
            cpus=at.compute.trial_cpus,
            gpus=at.compute.trial_gpus,
        )
        measure_stored(job, [(epoch, str(epoch_folder(found.folder, epoch))) for epoch in stored_epochs(found)], self.evaluator)


def measurements(model: Stage) -> Iterator[Measured]:
    """Everything that the sweep asks for about a stage's checkpoints: accuracy and ASR, then each evaluator. Nothing if it has none."""
    source = model.pretrained
    if source is None:
        return
    evaluators = source.experiment.evaluate.evaluators
    sets = dict(zip(needs_of(evaluators), source.needed, strict=True))
    for evaluator, known in zip((None, *evaluators), source.digests):
        needed = () if evaluator is None else tuple(sets[need] for need in needs_of(evaluator))
        yield Measured(model=model, evaluator=evaluator, digest=known, needed=needed)


def afterwards(store: Store, model: Stage) -> list[Measured]:
    """The measurements of a finished training that were not made during it: stages of their own, made or not."""
    found = store.find(model.kind, model.fingerprint) if model.pretrained is not None else None
    along = _along(found) if found else {}
    return [one for one in measurements(model) if not _whole(along, one.digest)] if found else []


def lacking(store: Store, model: Stage) -> list[Measured]:
    """The measurements of a finished training that were made neither during it nor later."""
    return [one for one in afterwards(store, model) if store.find(one.kind, one.fingerprint) is None]


def lines_of(store: Store, model: Stage) -> list[dict[str, Any]]:
    """The lines of metrics of a training, finished or not, with only the metrics that the sweep asks for.

    InputError for an artefact whose metrics were lost or broken.
    """
    found = store.find(model.kind, model.fingerprint)
    folder = store.work(model.kind, model.fingerprint)
    lines = metrics_of(found) if found else lines_so_far(folder)
    along = _along(found) if found else read_measured(folder / MEASURED) or {}
    wanted = list(measurements(model))
    if {one.digest for one in wanted} == along.keys() and all(_whole(along, key) for key in along):
        return lines
    foreign = {name for entry in along.values() for name in entry["names"]}
    foreign -= {name for one in wanted if _whole(along, one.digest) for name in along[one.digest]["names"]}
    later: dict[int, dict[str, float]] = {}
    for artefact in filter(None, (store.find(one.kind, one.fingerprint) for one in wanted if not _whole(along, one.digest))):
        for line in metrics_of(artefact):
            later.setdefault(line["epoch"], {}).update(line["metrics"])
    own = [{name: value for name, value in line["metrics"].items() if name not in foreign} for line in lines]
    return [{**line, "metrics": kept | later.get(line["epoch"], {})} for line, kept in zip(lines, own)]


def arrays_of(store: Store, model: Stage) -> tuple[Path, ...]:
    """Folders that may hold the arrays for the model's figures: those of later measurements, then the model's own."""
    later = [store.find(one.kind, one.fingerprint) for one in measurements(model) if one.evaluator is not None]  # the first gives none
    found = store.find(model.kind, model.fingerprint)
    return (*(one.folder for one in later if one), found.folder if found else store.work(model.kind, model.fingerprint))


def _along(found: Artefact) -> dict[str, Any]:
    """As `read_measured`, of a finished training."""
    return json.loads(part(found, MEASURED))["measured"] if MEASURED in found.manifest["files"] else {}


def _whole(along: dict[str, Any], key: str) -> bool:
    return key in along and along[key]["from"] == 0 and "until" not in along[key]
