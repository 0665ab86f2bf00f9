"""The stage `audit`: what one audit finds of one checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.component import Component, needs_of
from datasets.errors import InputError
from datasets.feed.loader import Recipe, eval_batches
from datasets.index.pairs import Pairs, smallest_hashes
from datasets.storage import write_whole
from orchestrator.console.log import log
from orchestrator.experiment.fingerprint import encode, fingerprint, labelled
from orchestrator.experiment.spec import Experiment
from orchestrator.stages.base import Around, At, Stage
from orchestrator.stages.graph import stages
from orchestrator.stages.index import read_index
from orchestrator.stages.testset import TestSet
from orchestrator.stages.trained import OfCheckpoints, digest, made_for, stored_epochs
from orchestrator.store import checked, write_arrays
from orchestrator.training.inputs import Inputs, MadeSet
from orchestrator.training.job import Job, load_model, making, measured_as, start
from trainers.audit.base import Audit, Findings, Pictures, Subject
from trainers.audit.classifier import zero_shot
from trainers.audit.tables import COLUMNS
from trainers.checkpoint import epoch_folder

FINDINGS, ROWS, GALLERY = "findings.json", "rows.parquet", "gallery.npz"


@dataclass(frozen=True, kw_only=True, eq=False)
class Audited(OfCheckpoints):
    """`findings.json` with metrics and sentences, `rows.parquet` with a row for each sample, and `gallery.npz` with a few pictures."""

    kind = "audit"
    version = 2
    """2: the attack on TTC follows its true gradient."""
    epoch: int
    """Of the checkpoint."""
    audit: Audit
    count: int
    """How many test pictures are audited: those with the smallest hashes of (seed, key)."""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.audit.label} of {self.model.name}"

    @cached_property
    def config(self) -> Any:
        return {
            "audit": encode(self.audit, "audit"), "epoch": self.epoch, "pictures": self.count, "seed": self.seed,
            "measured": digest(self.source, None, {}),
        }  # fmt: skip

    @property
    def setting(self) -> str:
        """Identifies what is done, apart from the checkpoint: the audit with all its fields, how many pictures, and the seed."""
        return fingerprint([self.audit, self.count, self.seed])[:8]

    @property
    def shown(self) -> Any:
        return {**self.config, "audit": labelled(self.audit, self.config["audit"])}

    @property
    def components(self) -> Any:
        return self.audit

    def make(self, at: At) -> None:
        source, found = self.source, at.of(self.model)
        bare = replace(source.experiment, evaluate=replace(source.experiment.evaluate, evaluators=()), clean=None)
        experiment = source.attack.resolved(bare, at)
        inputs = replace(source, needed=(), experiment=bare).read(At(store=at.store))
        job = Job(
            experiment=experiment, inputs=inputs, folder=str(at.folder), compute=at.compute, stage=str(self), cpus=at.compute.trial_cpus,
            gpus=at.compute.trial_gpus,
        )  # fmt: skip
        weights = str(checked(epoch_folder(found.folder, self.epoch)))
        world = start(job.cpus, job.gpus)
        with making(job, world), measured_as(weights):
            encoder = load_model(experiment, weights).place(world.device, precision="fp32").eval()
            pictures = self._tested(experiment, inputs)
            with zero_shot(encoder, inputs.class_names, inputs.templates) as classifier:
                self.audit.check(classifier.classes, pictures.triggered_NHWC is not None)
                subject = Subject(
                    encoder=encoder, classifier=classifier, pictures=pictures, class_names=inputs.class_names,
                    templates=inputs.templates, target=inputs.targets[0], checkpoint=self.model.fingerprint[:12] + f"/{self.epoch}",
                    pairs=inputs.pairs(), recipe=experiment.recipe(seed=experiment.evaluate.seed), sets=self._sets(experiment, at),
                    made={need: Path(folder) for need, folder in made_for(self.audit, self.needed, at)},
                )  # fmt: skip
                self._write(self.audit.run(subject), at)

    def _tested(self, experiment: Experiment, inputs: Inputs) -> Pictures:
        """The test pictures that are audited, and how the first attack's trigger changes them."""
        recipe = experiment.recipe(seed=experiment.evaluate.seed)
        recipe = replace(recipe, others=(), trigger=recipe.trigger if marked(experiment) else None)
        return _pictures(inputs.test_index, inputs.test_urls, recipe, self.count, self.seed)

    def _sets(self, experiment: Experiment, at: At) -> dict[Component, Pictures]:
        found = {}
        for need, stage in zip(needs_of(self.audit), self.needed, strict=True):
            if isinstance(stage, TestSet):
                made: MadeSet = stage.read(at)
                found[need] = _pictures(made.index, made.urls, Recipe(views=experiment.views), self.count, self.seed)
        return found

    def _write(self, findings: Findings, at: At) -> None:
        rows = {name: list(values) for name, values in findings.rows.items()}
        if len({len(values) for values in rows.values()}) > 1:
            raise InputError(f"audit {self.audit.label} gave columns of different lengths; accepted: one row for each sample.")
        strange = [name for name, value in findings.metrics.items() if not isinstance(value, (int, float, np.integer, np.floating))]
        if strange:
            raise InputError(f"audit {self.audit.label} gave {strange[0]!r}, which is no number; accepted: metrics that are numbers.")
        if rows:
            aside = at.folder / f".{ROWS}"
            pq.write_table(_typed(rows), aside)
            aside.rename(at.folder / ROWS)
        if findings.gallery:
            write_arrays(at.folder / GALLERY, {f"{number:02d} {title}": np.asarray(pictures, np.uint8)
                                               for number, (title, pictures) in enumerate(findings.gallery.items())})  # fmt: skip
        metrics = {name: float(value) if math.isfinite(value) else None for name, value in findings.metrics.items()}
        told = {"metrics": metrics, "failures": list(findings.failures), "notes": list(findings.notes)}
        write_whole(at.folder / FINDINGS, json.dumps(told, indent=1).encode())  # in the audit's order
        log.debug("%s: %s", self, json.dumps(told))


def marked(experiment: Experiment) -> bool:
    """Whether the first attack's trigger is on pictures, not in words alone."""
    return experiment.poisons[0].trigger.marks


def audited(model: Stage, epoch: int, audit: Audit, count: int, seed: int = 0) -> Audited:
    """The stage of an audit with everything that the audit needs."""
    assert model.pretrained is not None
    experiment = model.pretrained.experiment
    around = Around(experiment=experiment)
    around.made.update(stages(experiment))
    needed = tuple(around.ask(need) for need in needs_of(audit))
    return Audited(model=model, epoch=epoch, audit=audit, count=count, seed=seed, needed=needed)


def newest(model: Stage, at: At) -> int:
    """The last epoch whose weights a finished training holds."""
    return stored_epochs(at.of(model))[-1]


def _typed(rows: Mapping[str, Sequence[Any]]) -> pa.Table:
    """As a table in which a column without a value has the type that it has in the rows of other attacks."""
    table = pa.table(rows)
    for number, column in enumerate(table.schema):
        if pa.types.is_null(column.type) and column.name in COLUMNS:
            kind = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}[COLUMNS[column.name]]
            table = table.set_column(number, column.name, table[number].cast(kind))
    return table


def _pictures(index: str, urls: Sequence[str], recipe: Recipe, count: int, seed: int) -> Pictures:
    every = Pairs(str(checked(index)), [str(checked(url)) for url in urls])
    rows = smallest_hashes(read_index(index)["key"], every.rows, min(count, len(every)), seed, "audit")
    parts: list[Mapping[str, Any]] = list(eval_batches(Pairs(index, list(urls), None, rows), recipe, 256))
    if not parts:
        raise InputError("the test set holds no picture, so there is nothing to audit.")

    def joined(name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in parts])

    triggered = joined("image_triggered") if "image_triggered" in parts[0] else None
    return Pictures(tuple(map(str, joined("key"))), joined("image"), joined("label").astype(np.int64), triggered)
