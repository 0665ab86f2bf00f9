"""RoCLIP: which epochs are matched with the pool, what moves the text tower in them, kill and resume, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from orchestrator.experiment.check import check
from orchestrator.experiment.override import override_all
from sweeps.quickstart import BASE
from tests.parity.toys import resnet
from tests.unit.trainers.methods.test_phases import told
from tests.unit.trainers.methods.test_safeclip import TRAINING, run_of
from trainers.methods.base import Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.roclip import RoCLIP
from trainers.objectives.contrastive import MMCL
from trainers.weights.load import load_weights

METHOD = RoCLIP(every=2, pool=20, pool_filled="before")
FOUR = replace(TRAINING, epochs=4, weight_decay=5.0)


def trained(folder: Path, method: RoCLIP = METHOD, stop_at: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights and lines of a training that is killed before the step `stop_at`; checkpoints of all epochs stay."""
    lines: dict[int, dict[str, Any]] = {}
    weights = method.train(resnet(), run_of(folder, lines, stop_at, FOUR)).model.state_dict()
    return weights, [lines[epoch] for epoch in sorted(lines)]


def weights_after(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    encoder = resnet()
    load_weights(encoder, folder / f"epoch_{epoch:04d}")
    return {name: value.detach().clone() for name, value in encoder.model.named_parameters()}


@pytest.fixture(scope="module", params=["decays", "frozen"])
def whole(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[RoCLIP, Path, dict[str, Any], list[dict[str, Any]]]:
    folder, method = tmp_path_factory.mktemp("whole"), replace(METHOD, text_tower=request.param)
    return method, folder, *trained(folder, method)


def test_every_second_epoch_is_matched_with_the_pool(whole):
    _, _, _, lines = whole
    assert [line["metrics"]["roclip/matched"] for line in lines[1:]] == [0, 1, 0, 1]
    for line in lines[1:]:
        names = {name for name in line["metrics"] if name in ("train/mmcl", "train/roclip", "train/duplicates")}
        assert names == ({"train/roclip", "train/duplicates"} if line["metrics"]["roclip/matched"] else {"train/mmcl"})
        assert 0 <= line["metrics"].get("train/duplicates", 0) <= 100


def test_in_a_matched_epoch_the_text_tower_moves_by_momentum_and_decay_or_not_at_all(whole):
    method, folder, _, _ = whole
    weights = [weights_after(folder, epoch) for epoch in range(1, 5)]
    for name, value in weights[0].items():
        if name.startswith("visual.") or name == "logit_scale":
            assert not torch.equal(weights[1][name], value), f"{name} is trained in both kinds of epochs"
        elif name.endswith("weight") and "ln" not in name:
            assert torch.equal(weights[1][name], value) == (method.text_tower == "frozen"), name
    table = [one["token_embedding.weight"] for one in weights]
    unused = 40_000  # a token that no caption has: decay alone moves it
    assert (float(table[1][unused].norm()) < float(table[0][unused].norm())) == (method.text_tower == "decays")
    assert float(table[2][unused].norm()) < float(table[1][unused].norm()), "and it moves again in the next epoch"


@pytest.mark.parametrize("stop_at", [5, 11, 12])
def test_a_kill_in_any_epoch_changes_nothing(whole, tmp_path, stop_at):
    method, folder, weights, lines = whole
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, method, stop_at)
    again, more = trained(tmp_path, method)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert told(more) == told(lines)[-len(more):]
    state = "epoch_0004/state.safetensors"
    assert (folder / state).read_bytes() == (tmp_path / state).read_bytes()


@pytest.mark.parametrize(("filled", "held"), [("during", False), ("before", True)])
def test_the_pool_is_filled_before_a_matched_epoch_or_in_it(tmp_path, filled, held):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, replace(METHOD, pool_filled=filled), stop_at=6)
    state = load_file(tmp_path / "epoch_0001" / "state.safetensors")
    assert int(state["memory.captions.place"]) == (48 % 20 if held else 0)


def test_epochs_are_told_in_their_order():
    plans: list[EpochPlan] = []

    def train(model, objective, phase):
        plans.extend(phase.begin_epoch(model, epoch) for epoch in range(7))

    run = Run(trainer=train, training=FOUR, fresh=resnet, keys=lambda: ["a", "b", "c"])
    RoCLIP(every=3, pool_filled="before", text_tower="frozen").train(resnet(), run)
    assert [plan.values["matched"].tolist() for plan in plans] == [[number % 3 == 0] * 3 for number in range(1, 8)]
    assert [bool(plan.values["filling"][0]) for plan in plans] == [number % 3 == 2 for number in range(1, 8)]
    frozen = set(plans[2].frozen)
    parameters = {name for name, _ in resnet().model.named_parameters()}
    assert frozen == {name for name in parameters if not name.startswith("visual.")} - {"logit_scale"}
    assert [bool(plan.frozen) for plan in plans] == [number % 3 == 0 for number in range(1, 8)]


def test_what_stays_still_and_what_is_said_are_read_as_they_were_written(tmp_path):
    plan = EpochPlan(values={"a": np.arange(3)}, frozen=("text_projection",), metrics={"roclip/matched": 1 / 3})
    plan.write(tmp_path / "one.safetensors")
    found = EpochPlan.read(tmp_path / "one.safetensors")
    assert found.frozen == plan.frozen and found.metrics == plan.metrics


@pytest.mark.parametrize("metrics", [{"share": 1.0}, {"train/loss": 1.0}, {"own/share": float("nan")}])
def test_a_metric_that_cannot_be_is_refused(metrics):
    with pytest.raises(InputError, match="begin_epoch gives the metric .*finite numbers under names such as"):
        EpochPlan(metrics=metrics).check(3, 3)


def test_only_parameters_of_the_model_can_be_frozen(tmp_path):
    run = run_of(tmp_path, training=FOUR)
    with pytest.raises(InputError, match="begin_epoch freezes text.tower; accepted are names of the model's parameters"):
        run.fit(resnet(), MMCL(), begin_epoch=lambda model, epoch: EpochPlan(frozen=("text.tower",)))


@pytest.mark.parametrize(("fields", "epochs", "said"), [
    ({"every": 3}, 2, "RoCLIP.every is 3, but pretrain.epochs is 2: no epoch would be matched"),
    ({"every": 1, "pool_filled": "before"}, 2, "RoCLIP.pool_filled is 'before', but with RoCLIP.every 1 no epoch lies before"),
    ({"every": 0}, 2, "RoCLIP.every is 0"),
    ({"pool": 0}, 2, "RoCLIP.pool is 0"),
    ({"text_tower": "still"}, 2, "RoCLIP.text_tower is 'still'; accepted: decays, frozen"),
])
def test_bad_input_is_refused(fields, epochs, said):
    with pytest.raises(InputError, match=said):
        check(override_all(BASE, {"pretrain.objective": RoCLIP(**fields), "pretrain.epochs": epochs}))


def test_a_pool_larger_than_the_set_is_refused():
    with pytest.raises(InputError, match="RoCLIP.pool is 21845, more than the 4000 pairs"):
        RoCLIP().check(4000)
    RoCLIP(pool=4000).check(4000)
