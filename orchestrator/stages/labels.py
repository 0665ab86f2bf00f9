"""The stage `labels`: a class for each cleaning picture, predicted by a separate model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.experiment.fingerprint import encode, fingerprint
from orchestrator.experiment.identity import weights_identity
from orchestrator.experiment.spec import Experiment
from orchestrator.stages.base import Around, At, Stage
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.testset import TestSet
from orchestrator.stages.trained import Unpoisoned, last_checkpoint
from orchestrator.store import write_json
from orchestrator.training.job import load_model, whole_pictures
from trainers.distributed import World
from trainers.methods.labels import FILE, Labels
from trainers.methods.pseudo_labels import zero_shot_labels
from trainers.methods.with_labels import Labelling
from trainers.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled(Stage):
    """The classes of the cleaning pictures, for a cleaning that needs them (`WithLabels`)."""

    kind = "labels"
    apart = True
    serves = (Labelling,)
    need: Labelling
    experiment: Experiment
    """Its views and triggers say how the pictures are read and resized."""
    cleanset: CleaningSet
    testset: TestSet
    labeller: Unpoisoned | None
    """The training whose model labels; None: the labeller is a model with given weights."""

    @classmethod
    def serve(cls, need: Labelling, around: Around) -> Labelled:
        """The labels of the experiment's cleaning pictures."""
        cleanset, test, own = around.made["cleanset"], around.made["testset"], around.experiment
        labeller = None if isinstance(need.labeller, Model) else around.ask(need.labeller)
        assert isinstance(cleanset, CleaningSet) and isinstance(test, TestSet) and isinstance(labeller, Unpoisoned | None)
        return cls(need=need, experiment=own, cleanset=cleanset, testset=test, labeller=labeller)

    @property
    def name(self) -> str:
        if self.labeller is not None:
            return self.labeller.name
        assert isinstance(self.need.labeller, Model)
        return self.need.labeller.name

    @cached_property
    def config(self) -> Any:
        method = self.need
        config: dict[str, Any] = {
            "classes": encode(method.classes),
            "templates": encode(method.templates),
            "prompts": fingerprint(method.prompts((), ())),
        }  # the digest, because the list behind a name can change
        if self.labeller is not None:
            return config
        assert isinstance(method.labeller, Model)
        weights = weights_identity(method.labeller)
        model = replace(method.labeller, pretrained=None) if weights else method.labeller
        return {**config, "model": encode(model), "weights": weights}

    @property
    def inputs(self) -> dict[str, Stage]:
        inputs: dict[str, Stage] = {"cleanset": self.cleanset}
        if "auto" in (self.need.classes, self.need.templates):
            inputs["testset"] = self.testset
        if self.labeller is not None:
            inputs["labeller"] = self.labeller
        return inputs

    @property
    def needs(self) -> tuple[Stage, ...]:
        return (self.testset, *self.inputs.values())

    def make(self, at: At) -> None:
        import torch

        method = self.need
        if isinstance(method.labeller, Model):
            encoder = method.labeller.build(0)
        else:
            assert self.labeller is not None
            encoder = load_model(self.labeller.experiment, str(last_checkpoint(at.of(self.labeller))))
        encoder.place(World.current().device if at.compute.trial_gpus else torch.device("cpu"))
        inputs, test = self.cleanset.attack.read(at), self.testset.read(at)
        names, templates = method.prompts(test.class_names, test.templates)
        pairs = inputs.pairs(self.cleanset.read(at))
        views = replace(self.experiment.views, size=encoder.image_size)
        recipe = self.cleanset.attack.resolved(self.experiment, at).recipe(views)
        labels = zero_shot_labels(encoder, whole_pictures(pairs, recipe, World()), names, templates)
        labels.write(at.folder / FILE)
        own = dict(zip(pairs.keys().to_pylist(), pairs.labels().tolist()))
        write_json(at.folder / "summary.json", _summary(labels, names, own))


def _summary(labels: Labels, names: tuple[str, ...], own: dict[str, int]) -> dict[str, Any]:
    """Pictures of each class, and the share (in percent) of the labels that are those of the data set, where it has some."""
    counts = np.bincount(list(labels.by_key.values()), minlength=len(names))
    known = [key for key, label in own.items() if label >= 0]
    agree = sum(labels.by_key[key] == own[key] for key in known)
    return {
        "pictures": len(labels.by_key),
        "counts": {f"{i} {name}": int(count) for i, (name, count) in enumerate(zip(names, counts)) if count},
        "agreement": 100 * agree / len(known) if known else None,
    }
