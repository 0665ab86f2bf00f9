"""The stage `labels`: a class for each cleaning picture, by a model of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.component import Component
from datasets.errors import InputError
from datasets.loader import Recipe
from orchestrator import failures
from orchestrator.cluster import user_error
from orchestrator.identity import IDENTITIES
from orchestrator.plan import labelling, stages, unpoisoned
from orchestrator.spec import Compute, Experiment
from orchestrator.stages import Inputs, last_checkpoint, make_cleanset, make_stage
from orchestrator.store import FAILED, Store, write_json
from orchestrator.training import StageError, unpoisoned_stage
from orchestrator.workers import load_model, whole_pictures
from trainers.cleaning.labels import Labels
from trainers.cleaning.pseudo_labels import zero_shot_labels
from trainers.distributed import World
from trainers.model import Model

FILE = "labels.parquet"


def make_labels(experiment: Experiment, inputs: Inputs, store: Store, gpus: float) -> str:
    """The file of labels, found or made in this process; empty where the cleaning needs none.

    A labeller that is trained must be there: see `prepare_labels`.
    """
    method = labelling(experiment)
    if method is None:
        return ""
    stage = stages(experiment)["labels"]

    def make(folder: Path) -> None:
        if isinstance(method.labeller, Model):
            encoder = method.labeller.build(0)
        else:
            trained = store.find("pretrain", stages(experiment)["labeller"].fingerprint)
            assert trained is not None, "the labeller is trained before it labels"
            encoder = load_model(unpoisoned(experiment, "labeller"), str(last_checkpoint(trained)))
        encoder.place(World.current().device if gpus else torch.device("cpu"))
        names, templates = method.prompts(inputs.class_names, inputs.templates)
        pairs = inputs.pairs(make_cleanset(experiment, inputs, store))
        views, poison = replace(experiment.views, size=encoder.image_size), experiment.poison
        recipe = Recipe(views=views, trigger=poison.trigger, jpeg_quality=poison.jpeg_quality)
        labels = zero_shot_labels(encoder, whole_pictures(pairs, recipe, World()), names, templates)
        labels.write(folder / FILE)
        write_json(folder / "summary.json", _summary(labels, names, dict(zip(pairs.keys().to_pylist(), pairs.labels().tolist()))))

    return str(make_stage(store, stage, make).folder / FILE)


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


def prepare_labels(experiment: Experiment, inputs: Inputs, store: Store, compute: Compute) -> None:
    """Train the labeller and make the labels, where the experiment's cleaning needs them, before its trials begin."""
    import ray

    made = stages(experiment)
    if "labels" not in made or store.find("labels", made["labels"].fingerprint):
        return
    if "labeller" in made:
        unpoisoned_stage(experiment, "labeller", inputs, store, compute)
    task = ray.remote(num_cpus=compute.trial_cpus, num_gpus=compute.trial_gpus, max_retries=compute.retries)(_apart)
    try:
        ray.get(task.remote(experiment, inputs, str(store.root), compute, dict(IDENTITIES)))
    except ray.exceptions.RayError as error:
        mistake = user_error(error)
        if mistake is not None:
            raise InputError(f"{made['labels']}: {mistake}") from error
        kind, text = failures.kind_of(error), str(error).strip().splitlines()[-1][:400]
        folder = store.work("labels", made["labels"].fingerprint)
        if folder.is_dir():
            write_json(folder / FAILED, {"kind": kind, "error": text, "rank": 0})
        raise StageError(f"{made['labels']} {failures.SAID.get(kind, 'failed')}: {text}") from error


def _apart(
    experiment: Experiment, inputs: Inputs, store: str, compute: Compute, identities: dict[Component | str, Any]
) -> None:
    """`make_labels` in a process of its own, which may have a GPU."""
    IDENTITIES.update(identities)
    torch.set_num_threads(max(1, int(compute.trial_cpus)))
    make_labels(experiment, inputs, Store(store), compute.trial_gpus)
