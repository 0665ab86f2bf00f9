"""Methods of several phases: schedules and epochs of their own, a memory, an order; whatever the moment of a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from orchestrator.experiment.override import override_all
from orchestrator.store import METRICS, read_lines
from orchestrator.training.workers import pretrain
from sweeps.quickstart import BASE
from tests.parity.toys import RESNET, ToySet, resnet
from tests.phased import Phased
from tests.unit.making import pairs
from tests.unit.orchestrator.training.test_workers import job  # noqa: F401 (a fixture)
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.deep_clustering import DeepClustering
from trainers.methods.epoch import EpochPlan
from trainers.methods.pseudo_labels import PseudoLabels
from trainers.objectives.contrastive import MMCL
from trainers.schedule import Training, learning_rate

TRAINING = Training(epochs=3, batch_size=8, lr=1e-3, warmup_steps=2, seed=3, checkpoint_every_steps=2)
METHOD = Phased(first=2)
STEPS = 6
"""Of an epoch of `ToySet`."""


def trained(folder: Path, stop_at: int | None = None, method: Any = METHOD) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights and lines of a training that is killed before the step `stop_at`."""
    lines: dict[int, dict[str, Any]] = {}

    def train(model, objective, phase):
        feed = ToySet(epochs=phase.first + phase.training.epochs, stop_at=stop_at)
        fit(model, objective, phase.training, feed, folder, report=lambda line: lines.update({line["epoch"]: line}), keep="all",
            first_epoch=phase.first, phase=phase.name, begin_epoch=phase.begin_epoch)  # fmt: skip

    run = Run(trainer=train, training=TRAINING, fresh=lambda: RESNET.build(7), pairs=ToySet().pairs, folder=folder)
    weights = method.train(resnet(), run).model.state_dict()
    return weights, [lines[epoch] for epoch in sorted(lines)]


def told(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without times."""
    metrics = [{name: value for name, value in line["metrics"].items() if "second" not in name} for line in lines]
    return [{**line, "metrics": own, "seconds": 0} for line, own in zip(lines, metrics)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *trained(folder)


@pytest.mark.parametrize("stop_at", [1, 6, 9, 12, 15])
def test_a_kill_at_any_moment_changes_nothing(whole, tmp_path, stop_at):
    _, weights, lines = whole
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_at)
    again, more = trained(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert told(more) == told(lines)[-len(more):], "the lines up to the checkpoint are those of the first attempt"


def test_two_kills_in_two_phases_change_nothing(whole, tmp_path):
    for stop_at in (5, 14):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, stop_at)
    again, more = trained(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in whole[1].items()) and told(more)[-1] == told(whole[2])[-1]


def test_lines_and_checkpoints_count_the_stages_epochs_and_each_phase_has_a_schedule_of_its_own(whole):
    folder, _, lines = whole
    assert [(line["epoch"], line["step"], line.get("phase")) for line in lines] == [
        (0, 0, None), (1, STEPS, "bank"), (2, 2 * STEPS, "bank"), (3, 3 * STEPS, "half")]
    rates = [line["metrics"]["train/lr"] for line in lines[1:]]
    own = replace(TRAINING, epochs=1, warmup_steps=1)
    assert rates == pytest.approx([2e-3, 2e-3, sum(learning_rate(step, STEPS, own) for step in range(STEPS)) / STEPS])
    assert "train/pull" in lines[2]["metrics"] and "train/pull" not in lines[3]["metrics"]
    assert lines[3]["metrics"]["train/side"] == 1, "the order takes the half alone"
    state = load_file(folder / "epoch_0003" / "state.safetensors")
    assert not [name for name in state if name.startswith("memory.")], "the second phase has no memory"
    assert all(float(value) == STEPS for name, value in state.items() if name.startswith("step.")), "and an optimiser of its own"


def test_the_memory_is_kept_with_the_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 2 * STEPS - 1)
    [state] = tmp_path.glob("step_*/state.safetensors")
    kept = load_file(state)
    assert kept["memory.rows"].shape == (24, 16) and int(kept["memory.place"]) == (10 * 8) % 24
    torch.testing.assert_close(kept["memory.rows"].norm(dim=1), torch.ones(24))


@pytest.mark.parametrize(("mistake", "said"), [
    ("too many", "to train for 99 epochs in the phase 'half', but of the stage's 3 epochs 1 are left"),
    ("field", "run.fit takes no batch_size; a phase may have its own lr, weight_decay"),
])
def test_a_phase_that_cannot_be_is_refused(tmp_path, mistake, said):
    with pytest.raises(InputError, match=said):
        trained(tmp_path, method=Phased(first=2, mistake=mistake))


@pytest.mark.parametrize(("mistake", "said"), [
    ("length", r"the order as int64 \[23\]; accepted are the numbers of the pairs of all steps of an epoch, integers \[24\]"),
    ("range", "orders pairs"),
    ("values", r"gives 'side' as bool \[29\]; accepted is a number for each of the 30 pairs"),
    ("name", "values called 'image', which a batch has already"),
    ("nothing", "begin_epoch of Phased returned NoneType"),
    ("too few", "Phased.train trained for 2 of the 3 epochs of pretrain"),
])
def test_what_an_epoch_cannot_be_is_told_in_a_sentence(own, mistake, said):
    with pytest.raises(InputError, match=said):
        pretrain(own(Phased(mistake=mistake)))


@pytest.fixture
def own(job, request):  # noqa: F811
    """A pre-training by a method, of 3 epochs."""

    def make(method: Any) -> Any:
        training = replace(job.experiment.pretrain, objective=method, epochs=3)
        return replace(job, experiment=replace(job.experiment, pretrain=training), checkpoint="", cleanset="")

    return make


def test_a_pre_training_goes_by_a_method_too(own):
    made = own(Phased())
    pretrain(made)
    lines = read_lines(Path(made.folder) / METRICS)
    assert [(line["epoch"], line.get("phase")) for line in lines] == [(0, None), (1, "bank"), (2, "half"), (3, "half")]
    assert all("zeroshot/top1" in line["metrics"] for line in lines)
    again = own(DeepClustering(clusters=3, iterations=2))
    Path(f"{again.folder}2").mkdir()
    pretrain(replace(again, folder=f"{again.folder}2"))
    assert "train/deep_clustering" in read_lines(Path(f"{again.folder}2") / METRICS)[3]["metrics"]
    Path(f"{again.folder}3").mkdir()
    with pytest.raises(InputError, match="clusters is 31, more than the 30 pairs"):
        pretrain(replace(own(DeepClustering(clusters=31)), folder=f"{again.folder}3"))


def test_what_needs_a_cleaning_set_is_refused_in_a_pre_training():
    labels = PseudoLabels(labeller=replace(BASE.pretrain, epochs=1))
    with pytest.raises(InputError, match="pretrain.objective is PseudoLabels, which needs Labelling"):
        override_all(BASE, {"pretrain.objective": labels})
    assert override_all(BASE, {"pretrain.objective": DeepClustering()}).pretrain.objective.label == "deep-clustering"


def test_a_feed_takes_the_order_that_it_is_given(tmp_path):
    made = pairs(tmp_path, shards=1, per_shard=12)
    feed = LocalFeed(made, Recipe(views=Views(size=32)), batch_size=4, steps=6)
    order = np.array([5, 5, 0, 1, 2, 3, 11, 4, 7, 7, 7, 7])
    keys = made.keys().to_pylist()
    own = list(feed.batches(3, 6, order))
    assert [list(batch["number"]) for batch in own] == [[5, 5, 0, 1], [2, 3, 11, 4], [7, 7, 7, 7]]
    assert [list(batch["key"]) for batch in own] == [[keys[i] for i in batch["number"]] for batch in own]
    assert [(batch["step"], batch["epoch"]) for batch in own] == [(3, 1), (4, 1), (5, 1)]
    plain = [list(batch["key"]) for batch in feed.batches(0)]
    assert sorted(key for batch in plain[:3] for key in batch) == sorted(keys), "and its own again afterwards"


def test_an_epoch_is_read_as_it_was_written(tmp_path):
    epoch = EpochPlan(values={"class": np.arange(5), "weight": np.linspace(0, 1, 5, dtype=np.float32)}, order=np.array([4, 0, 0, 1]))
    epoch.write(tmp_path / "epochs" / "one.safetensors")
    found = EpochPlan.read(tmp_path / "epochs" / "one.safetensors")
    assert found.values.keys() == epoch.values.keys() and all(np.array_equal(found.values[k], v) for k, v in epoch.values.items())
    assert np.array_equal(found.order, epoch.order)


def test_an_objective_needs_no_method():
    assert MMCL() == override_all(BASE, {"pretrain.objective": MMCL()}).pretrain.objective
