"""What a training process makes of its compute settings, without Ray."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.feed import cache
from datasets.images.view import Views
from datasets.index.pairs import write_index
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Pretrain
from orchestrator.results.outcome import Study
from orchestrator.running.follow import Follower
from orchestrator.stages.graph import stages
from orchestrator.store import MANIFEST, METRICS, NOTES, Store, read_arrays, read_lines
from orchestrator.sweep.plan import make_plan
from orchestrator.training.inputs import Inputs
from orchestrator.training.job import Job
from orchestrator.training.measuring import ANALYSIS
from orchestrator.training.workers import clean
from tests.tiny_sweep import SWEEP as TINY
from tests.unit.making import pairs
from trainers.checkpoint import STATE, export
from trainers.evaluate.base import Evaluator
from trainers.evaluate.choice import Epoch, chosen_epochs
from trainers.methods.finetune import CleanCLIP
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL
from trainers.weights.epoch_folder import WEIGHTS

MODEL = TinyCLIP(vision_width=8, embed_dim=16)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A cleaning of a fresh model on 24 of 30 pairs, one of them a victim; tested on all 30."""
    for name in ("index", "testset", "cleanset", "checkpoint", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(json.dumps({"fingerprint": name}))
    made = pairs(tmp_path / "index", plan={4: "a banana.", 25: "a photo of a banana."})
    source = Source(urls=str(tmp_path / "index"), format="webdataset")
    table = pa.concat_tables([source.index_shard(n, url) for n, url in enumerate(made.urls)])
    labels = pa.array(np.arange(30, dtype=np.int32) % 3)
    write_index([table.set_column(table.schema.get_field_index("label"), "label", labels)], tmp_path / "testset" / "index.arrow")
    np.save(tmp_path / "cleanset" / "rows.npy", np.arange(24))
    export(tmp_path / "checkpoint", MODEL.build(0))
    training = {"epochs": 1, "batch_size": 8, "lr": 1e-3, "warmup_steps": 0}
    experiment = Experiment(
        data=Data(source=source), views=Views(size=32), poison=Poison(trigger=Patch(size=6), target="banana", count=2),
        pretrain=Pretrain(model=MODEL, objective=MMCL(), **training),
        evaluate=Evaluate(data=EvalSet(path=str(tmp_path / "testset"))), clean=Clean(method=CleanCLIP(), pairs=24, **training),
    )  # fmt: skip
    inputs = Inputs(
        index=made.index, urls=tuple(made.urls), plan=str(made.plan), rows=None, test_index=str(tmp_path / "testset" / "index.arrow"),
        test_urls=tuple(made.urls), class_names=("apple", "banana", "cherry"), templates=("a {}",), targets=(1,),
    )  # fmt: skip
    return Job(
        experiment=experiment, inputs=inputs, folder=str(tmp_path / "run"), compute=Compute(cache=str(tmp_path / "cache")),
        stage="clean", checkpoint=str(tmp_path / "checkpoint"), cleanset=str(tmp_path / "cleanset" / "rows.npy"),
    )  # fmt: skip


def outcome(job: Job, folder: Path) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Metrics that are no times, and weights, of the cleaning in a folder of its own."""
    folder.mkdir()
    clean(replace(job, folder=str(folder)))
    lines = [line["metrics"] for line in read_lines(folder / METRICS)]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines], load_file(folder / "epoch_0001" / WEIGHTS)


def test_a_cleaning_from_decoded_pictures_is_the_same_and_needs_no_shard_again(job, tmp_path):
    shards = outcome(replace(job, compute=Compute(cache="off")), tmp_path / "shards")
    kept = outcome(job, tmp_path / "kept")
    for path in map(Path, job.inputs.urls):  # spoilt, but not newer
        at = path.stat().st_mtime_ns
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(at, at))
    again = outcome(job, tmp_path / "again")
    assert len(list((tmp_path / "cache").iterdir())) == 2 and len(shards[0]) == 2
    for other in (kept, again):
        assert other[0] == shards[0] and all(np.array_equal(other[1][name], value) for name, value in shards[1].items())
    assert not (tmp_path / "kept" / NOTES).exists()


@pytest.mark.parametrize("keep", ["chosen", "last", "all"])
def test_the_epochs_that_the_reports_rules_pick_keep_their_checkpoint(job, tmp_path, keep):
    experiment = replace(job.experiment, clean=replace(job.experiment.clean, epochs=5, lr=3e-2))
    before = Epoch(1, 40.0, 100.0)
    clean(replace(job, experiment=experiment, uncleaned=before, compute=replace(job.compute, keep=keep)))
    found = {int(path.name.removeprefix("epoch_")) for path in (tmp_path / "run").glob("epoch_*")}
    lines = read_lines(tmp_path / "run" / METRICS)
    chosen = chosen_epochs(lines, before)
    assert len(lines) == 6 and found == {"chosen": chosen | {5}, "last": {5}, "all": {1, 2, 3, 4, 5}}[keep]
    for epoch in found:
        folder = tmp_path / "run" / f"epoch_{epoch:04d}"
        assert (folder / WEIGHTS).is_file() and (folder / STATE).is_file() == (epoch == 5), "the optimiser's state is kept once"


def test_a_cleaning_takes_no_optimiser_state_from_the_checkpoint_that_it_starts_from(job, tmp_path):
    outcome(job, tmp_path / "first")
    held = tmp_path / "first" / "epoch_0001"
    bare = shutil.copytree(held, tmp_path / "bare")
    (bare / STATE).unlink()
    ours, theirs = (outcome(replace(job, checkpoint=str(start)), tmp_path / f"from {start.name}") for start in (held, bare))
    assert (held / STATE).is_file() and ours[0] == theirs[0] and len(ours[0]) == 2
    assert all(np.array_equal(ours[1][name], value) for name, value in theirs[1].items())


def test_without_room_the_stage_says_so_and_goes_on(job, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SPARE_BYTES", 1 << 60)
    metrics, _ = outcome(job, tmp_path / "full")
    notes = (tmp_path / "full" / NOTES).read_text().splitlines()
    assert len(metrics) == 2 and len(notes) == 2 and all("no room" in note for note in notes)
    (tmp_path / "file").write_text("")
    outcome(replace(job, compute=Compute(cache=str(tmp_path / "file"))), tmp_path / "blocked")
    assert "no decoded pictures are kept" in (tmp_path / "blocked" / NOTES).read_text()


def test_the_driver_says_a_stages_notes_once(tmp_path, said):
    plan, store = make_plan(TINY), Store(tmp_path)
    for _, experiment in plan.grid[:3]:
        folder = store.work("clean", stages(experiment)["clean"].fingerprint)
        folder.mkdir(parents=True)
        (folder / NOTES).write_text("NOTE no room\n")
    follower = Follower(plan, store, None)  # type: ignore[arg-type]
    for _ in range(2):
        follower._tell(Study(name="x", doc="", fingerprint="", config={}))
    assert said == ["NOTE no room"]


@dataclass(frozen=True, kw_only=True)
class Gives(Evaluator):
    """Gives what it is told to under its name."""

    name: str = "own/x"
    kind: str = "number"

    def measure(self, model: Any, batches: Any, world: Any = None) -> Any:
        kinds = {
            "number": 1.5, "whole": 3, "float32": np.float32(1.5), "int64": np.int64(3), "0-d array": np.array(1.5),
            "0-d tensor": torch.tensor(1.5), "array": np.arange(3), "list": [1.5], "text": np.array(["a"]), "tensor": torch.ones(2),
        }  # fmt: skip
        return None if self.kind == "nothing" else {self.name: kinds[self.kind]}


@dataclass(frozen=True, kw_only=True)
class Breaks(Evaluator):
    """Changes the weights that it measures."""

    def measure(self, encoder, data, world):
        encoder.model.text_projection.data.mul_(0.5)
        return {"own/y": 1.0}


def measured_by(job: Job, *evaluators: Evaluator) -> dict[str, Any]:
    """The metrics before a cleaning."""
    clean(replace(job, experiment=replace(job.experiment, evaluate=replace(job.experiment.evaluate, evaluators=evaluators))))
    return read_lines(Path(job.folder) / METRICS)[0]["metrics"]


def test_numbers_of_numpy_and_torch_become_metrics(job):
    kinds = ("number", "whole", "float32", "int64", "0-d array", "0-d tensor", "array")
    metrics = measured_by(job, *(Gives(name=f"own/{kind}", kind=kind) for kind in kinds))
    found = {name: value for name, value in metrics.items() if name.startswith("own/")}
    halves = dict.fromkeys(("own/number", "own/float32", "own/0-d array", "own/0-d tensor"), 1.5)
    assert found == {**halves, "own/whole": 3, "own/int64": 3} and isinstance(found["own/int64"], int)
    assert read_arrays(Path(job.folder) / ANALYSIS / "epoch_0000.npz")["own/array"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("evaluators", "told"), [
    ([Gives(name="asr/top1")], "evaluator Gives gave 'asr/top1', which another gave already; accepted: names of its own."),
    ([Gives(), Gives(kind="array")], "evaluator Gives gave 'own/x', which another gave already"),
    ([Gives(kind="list")], r"evaluator Gives gave \[1.5\] as 'own/x'; accepted: a number or a numpy array of them."),
    ([Gives(kind="text")], "as 'own/x'; accepted: a number"),
    ([Gives(kind="tensor")], r"gave tensor\(\[1., 1.\]\) as 'own/x'; accepted: a number"),
    ([Breaks()], "evaluator Breaks changed the model that it measured"),
    ([Gives(kind="nothing")], "evaluator Gives gave None; accepted: a dictionary of metrics by name."),
])  # fmt: skip
def test_what_is_no_metric_and_a_name_that_is_taken_are_refused(job, evaluators, told):
    with pytest.raises(InputError, match=told):
        measured_by(job, *evaluators)
