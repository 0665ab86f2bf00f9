"""SafeCLIP: the split, ρ, the order of an epoch, the three schedules, what is written down, kill and resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.experiment.check import check
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Clean, Pretrain
from sweeps.quickstart import BASE
from tests.parity.toys import RESNET, ToySet, resnet
from tests.unit.trainers.methods.test_phases import told
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.safeclip import SafeCLIP, largest, mixture_of, order_of, share_of, similarities
from trainers.schedule import Training

TRAINING = Training(epochs=6, batch_size=8, lr=1e-3, warmup_steps=3, seed=3, checkpoint_every_steps=4)
METHOD = SafeCLIP(inmodal_epochs=2, inmodal_lr=2e-3, inmodal_warmup_steps=4, bank=20, first_share=0.4, step=0.25, cap=0.7)
STEPS = 6
"""Of an epoch of `ToySet`."""


def run_of(folder: Path, lines: dict[int, dict[str, Any]] | None = None, stop_at: int | None = None, training: Training = TRAINING) -> Run:
    noted = {} if lines is None else lines

    def train(model, objective, phase):
        feed = ToySet(epochs=phase.first + phase.training.epochs, stop_at=stop_at)
        fit(model, objective, phase.training, feed, folder, report=lambda line: noted.update({line["epoch"]: line}), keep="all",
            ledger=folder / "ledger.jsonl", first_epoch=phase.first, phase=phase.name, begin_epoch=phase.begin_epoch)  # fmt: skip

    return Run(trainer=train, training=training, fresh=lambda: RESNET.build(7), keys=lambda: list(ToySet().samples["key"]),
               pairs=ToySet().pairs, folder=folder)  # fmt: skip


def trained(folder: Path, stop_at: int | None = None, method: SafeCLIP = METHOD) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Weights and lines of a training that is killed before the step `stop_at`."""
    lines: dict[int, dict[str, Any]] = {}
    weights = method.train(resnet(), run_of(folder, lines, stop_at)).model.state_dict()
    return weights, [lines[epoch] for epoch in sorted(lines)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *trained(folder)


# ---- the split ---------------------------------------------------------------------------------------------------------------


def two_humps(low: int = 3000, high: int = 1000) -> np.ndarray:
    draw = rng("two humps")
    return draw.permutation(np.concatenate([draw.normal(0.1, 0.12, low), draw.normal(0.35, 0.05, high)]))


def test_the_safe_pairs_are_those_of_largest_cosine_where_the_posterior_falls_again():
    cosine_N = np.concatenate([two_humps(), [0.6, 0.55, 0.45]])
    found, posterior_N = mixture_of(cosine_N)
    assert found["low_mean"] == pytest.approx(0.1, abs=0.02) and found["high_mean"] == pytest.approx(0.35, abs=0.02)
    assert found["low_sd"] == pytest.approx(0.12, abs=0.02) and found["high_sd"] == pytest.approx(0.05, abs=0.02)
    assert found["high_weight"] == pytest.approx(0.25, abs=0.04) and found["low_weight"] + found["high_weight"] == pytest.approx(1)
    assert posterior_N[-3] < posterior_N[-2] < posterior_N[-1], "the best pairs have not the highest posterior"
    for share in (0.01, 0.1, 0.2):
        safe_N = largest(cosine_N, share)
        count = round(share * len(cosine_N))
        assert safe_N.sum() == count and cosine_N[safe_N].min() >= np.sort(cosine_N)[-count] and safe_N[-3:].all()
        by_posterior = np.argsort(-posterior_N, kind="stable")[:count]
        assert not np.isin(len(cosine_N) - 3, by_posterior), "ordered by the posterior, the best pair would be risky"


def test_the_posterior_is_that_of_the_component_of_larger_mean():
    cosine_N = two_humps()
    found, posterior_N = mixture_of(cosine_N)

    def density(side: str) -> np.ndarray:
        z = (cosine_N - found[f"{side}_mean"]) / found[f"{side}_sd"]
        return found[f"{side}_weight"] * np.exp(-(z**2) / 2) / found[f"{side}_sd"]

    np.testing.assert_allclose(posterior_N, density("high") / (density("high") + density("low")), rtol=1e-6, atol=1e-12)
    mirrored, other_N = mixture_of(-cosine_N)
    assert mirrored["high_mean"] == pytest.approx(-found["low_mean"], abs=0.01) and other_N[cosine_N < 0].mean() > 0.9


def test_equal_cosines_go_by_the_number_and_the_share_is_rounded():
    assert largest(np.zeros(7), 0.5).tolist() == [True] * 4 + [False] * 3
    assert largest(np.array([0.3, 0.9, 0.9, 0.1]), 0.25).tolist() == [False, True, False, False]
    assert largest(np.arange(5.0), 1.0).all() and not largest(np.arange(5.0), 0.0).any()


def test_rho_rises_by_a_step_after_each_use_up_to_the_cap():
    used, rho = [], 0.62
    for _ in range(30):
        used.append(rho)
        rho = min(rho + 0.01, 0.85)
    assert [share_of(0.62, splits, 0.01, 0.85) for splits in range(30)] == pytest.approx(used, abs=1e-12)
    assert used[22] < 0.85 == used[23] == used[-1]
    assert [share_of(0.95, splits, 0.01, 0.85) for splits in range(3)] == [0.95, 0.85, 0.85], "the cap holds for later splits"


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 24])
def test_each_step_of_an_epoch_has_pairs_of_one_kind_and_fewer_than_a_batch_are_left_out(batch):
    for safe in range(49):
        safe_N = np.isin(np.arange(48), rng("safe", safe).permutation(48)[:safe])
        order, counts = order_of(safe_N, batch, rng("order", safe))
        assert len(order) == 48 // batch * batch, "as many steps whatever the share"
        kinds = [set(safe_N[step].tolist()) for step in order.reshape(-1, batch)]
        assert all(len(kind) == 1 for kind in kinds) and kinds == sorted(kinds, key=lambda kind: min(kind)), "risky steps first"
        assert all(len(set(step)) == batch for step in order.reshape(-1, batch).tolist()), "no pair twice in a step"
        taken = [int((order == number).sum()) for number in range(48)]
        assert counts == {"left_out": taken.count(0), "repeated": sum(max(0, times - 1) for times in taken)}
        assert taken.count(0) < batch and max(taken) <= 2 and counts["repeated"] < batch


def test_other_pairs_are_left_out_in_each_epoch():
    safe_N = np.arange(45) < 22
    missing = [set(range(45)) - set(order_of(safe_N, 8, rng("epoch", epoch))[0].tolist()) for epoch in range(5)]
    assert all(missing) and len(set(map(frozenset, missing))) == 5


def test_every_pair_is_scored_once_in_evaluation_mode(tmp_path):
    encoder = resnet().train()
    statistics = encoder.model.visual.bn1.running_mean.clone()
    cosine_N, poisoned_N = similarities(encoder, run_of(tmp_path))
    assert encoder.training and torch.equal(encoder.model.visual.bn1.running_mean, statistics)
    assert len(cosine_N) == 48 and poisoned_N.tolist() == [number % 5 == 0 for number in range(48)]
    encoder.eval()
    samples = ToySet().samples
    with torch.no_grad():
        image_ND = encoder.encode_image(torch.from_numpy(samples["image"]))
        text_ND = encoder.encode_text(encoder.tokenize(list(samples["caption"])))
    np.testing.assert_allclose(cosine_N, (image_ND * text_ND).sum(1).numpy(), atol=1e-5)


# ---- training ----------------------------------------------------------------------------------------------------------------


def test_three_phases_with_their_losses_and_rates(whole):
    _, _, lines = whole
    phases = ["in-modal", "in-modal", "filter", "split", "split", "split"]
    assert [line.get("phase") for line in lines] == [None, *phases]
    losses = [sorted(name for name in line["metrics"] if name in ("train/unimodal", "train/cross_view")) for line in lines[1:]]
    assert losses == [["train/unimodal"]] * 2 + [["train/cross_view"]] + [["train/cross_view", "train/unimodal"]] * 3

    def mean_rate(peak: float, warmup: int, epochs: int, epoch: int) -> float:
        total = epochs * STEPS
        steps = range(epoch * STEPS, (epoch + 1) * STEPS)
        return float(np.mean([
            peak * (s + 1) / warmup if s < warmup else peak / 2 * (1 + np.cos(np.pi * (s - warmup) / (total - warmup))) for s in steps]))

    expected = [mean_rate(2e-3, 4, 2, 0), mean_rate(2e-3, 4, 2, 1), 5e-6, *(mean_rate(1e-3, 3, 3, epoch) for epoch in range(3))]
    assert [line["metrics"]["train/lr"] for line in lines[1:]] == pytest.approx(expected)


def test_what_each_epoch_of_the_split_says_and_keeps(whole):
    folder, _, lines = whole
    ledger = [json.loads(line)["keys"] for line in (folder / "ledger.jsonl").read_text().splitlines()]
    samples = ToySet().samples
    for number, (line, rho) in enumerate(zip(lines[4:], (0.4, 0.65, 0.7)), start=3):
        said = {name.removeprefix("safeclip/"): value for name, value in line["metrics"].items() if name.startswith("safeclip/")}
        assert said["rho"] == pytest.approx(rho) and said["safe_n"] == round(rho * 48)
        assert 0 <= said["safe_poisons"] <= min(10, said["safe_n"]) and 0 <= said["auroc"] <= 1
        assert said["safe_poisons_share"] == pytest.approx(100 * said["safe_poisons"] / said["safe_n"])
        assert said["poisons_safe_share"] == pytest.approx(100 * said["safe_poisons"] / 10)
        assert said["low_mean"] <= said["high_mean"] and said["low_sd"] > 0 and said["left_out"] < 8 and said["repeated"] < 8
        kept = np.load(folder / "split" / f"epoch_{line['epoch']:04d}.npz", allow_pickle=False)
        assert kept["histogram/clean"].sum() == 38 and kept["histogram/poisoned"].sum() == 10 and len(kept["edges"]) == 101
        plan = load_file(folder / "epochs" / f"epoch_{number:04d}.safetensors")
        safe_keys = {key for key, safe in zip(samples["key"], plan["safe"]) if safe}
        sides = [{key in safe_keys for key in keys} for keys in ledger[number * STEPS : (number + 1) * STEPS]]
        assert all(len(side) == 1 for side in sides) and sides == sorted(sides, key=lambda side: min(side))
    assert not any(name.startswith("safeclip/") for line in lines[:4] for name in line["metrics"])
    assert "train/duplicates" in lines[1]["metrics"]


def test_the_first_share_comes_from_the_posterior_unless_it_is_given(tmp_path, monkeypatch):
    posterior_N = np.concatenate([np.full(30, 0.95), np.full(18, 0.89)])
    monkeypatch.setattr("trainers.methods.safeclip.mixture_of", lambda cosine_N: ({}, posterior_N))
    method = replace(METHOD, first_share=None, inmodal_epochs=3, step=0.01, cap=0.85)
    rhos = [line["metrics"]["safeclip/rho"] for line in trained(tmp_path, method=method)[1][5:]]
    assert rhos == pytest.approx([30 / 48, 30 / 48 + 0.01])


@pytest.mark.parametrize("stop_at", [5, 17, 18, 23, 35])
def test_a_kill_in_any_phase_changes_nothing(whole, tmp_path, stop_at):
    folder, weights, lines = whole
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_at)
    again, more = trained(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert told(more) == told(lines)[-len(more):], "ρ, losses and counts too"
    for file in [*folder.glob("split/*"), *folder.glob("epoch_0006/state.safetensors"), folder / "ledger.jsonl"]:
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes(), file


# ---- input -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "said"), [
    ({"cap": 0.0}, r"SafeCLIP.cap is 0.0; accepted: a number \(above 0 and at most 1\)"),
    ({"cap": 1.01}, "SafeCLIP.cap is 1.01"),
    ({"first_share": 0.0}, "SafeCLIP.first_share is 0.0"),
    ({"first_share": 2}, "SafeCLIP.first_share is 2"),
    ({"threshold": 1.0}, "SafeCLIP.threshold is 1.0"),
    ({"step": -0.1}, "SafeCLIP.step is -0.1"),
    ({"inmodal_epochs": 0}, "SafeCLIP.inmodal_epochs is 0"),
    ({"filter_lr": 0.0}, "SafeCLIP.filter_lr is 0.0"),
])
def test_fields_outside_their_limits_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        SafeCLIP(**fields)


def test_too_few_epochs_are_refused_before_anything_is_made():
    few = override_all(BASE, {"pretrain.objective": SafeCLIP(), "pretrain.epochs": 6})
    with pytest.raises(InputError, match="pretrain.epochs is 6, but SafeCLIP has 5 in-modal epochs and 1 to filter .* at least 7"):
        check(few)
    check(override_all(few, {"pretrain.epochs": 7}))
    with pytest.raises(InputError, match="clean.epochs is 3, but SafeCLIP"):
        check(override_all(BASE, {"clean.method": SafeCLIP()}))
    with pytest.raises(InputError, match="SafeCLIP.bank is 2001, more than the 2000 pairs"):
        check(override_all(BASE, {"clean.method": SafeCLIP(bank=2001), "clean.epochs": 8}))


@pytest.mark.parametrize(("method", "fields", "said"), [
    (METHOD, {"batch_size": 25}, "needs at least two batches of pairs.*48 pairs make 1 of 25. Lower pretrain.batch_size"),
    (METHOD, {"warmup_steps": 18}, "pretrain.warmup_steps is 18, but the last phase of SafeCLIP has only 18 steps"),
    (replace(METHOD, inmodal_warmup_steps=12), {}, "SafeCLIP.inmodal_warmup_steps is 12, but the in-modal phase of SafeCLIP has only 12"),
    (replace(METHOD, inmodal_warmup_steps=None), {"warmup_steps": 12}, "pretrain.warmup_steps is 12, but the in-modal phase"),
])
def test_what_does_not_fit_the_number_of_pairs_is_refused(method, fields, said):
    values = {**{name: getattr(TRAINING, name) for name in ("epochs", "batch_size", "lr", "warmup_steps")}, **fields}
    training = Pretrain(model=RESNET, objective=method, **values)
    method.check_training(training)
    with pytest.raises(InputError, match=said):
        method.check_training(training, 48)


def test_it_can_be_a_cleaning_too():
    assert Clean(method=SafeCLIP(), pairs=9, epochs=9, batch_size=3, lr=1, warmup_steps=0).method.label == "SafeCLIP"
