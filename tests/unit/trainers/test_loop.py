"""The train loop: schedule, decay, reports, kill and resume, failure."""

import itertools
import json
import shutil

import pytest
import torch

from datasets.errors import InputError
from tests.parity.toys import ToyFeed, resnet, vit
from trainers import loop
from trainers.checkpoint import STATE
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import MMCL, MMCLSSL
from trainers.record import Ledger
from trainers.schedule import Training
from trainers.weights.load import load_weights


def training(**fields) -> Training:
    return Training(**{"epochs": 2, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2, **fields})


def weights(encoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def trained(folder, feed=None, build=resnet, objective=None, **fields):
    encoder, lines = build(), []
    loop.fit(encoder, objective or MMCLSSL(), training(**fields), feed or ToyFeed(steps=8), folder, report=lines.append,
             ledger=folder / "ledger.jsonl")
    return encoder, lines


def test_an_epoch_is_reported_with_means_over_its_steps(tmp_path):
    measured = []

    def measure(encoder, epoch):
        encoder.eval()
        measured.append(epoch)
        return {"asr/top1": 7.0}

    encoder, lines, told = resnet(), [], []
    loop.fit(encoder, MMCLSSL(), training(), ToyFeed(steps=8), tmp_path, measure=measure, report=lines.append,
             progress=lambda *now: told.append(now))
    assert measured == [0, 1, 2] and [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert lines[0]["metrics"] == {"asr/top1": 7.0}
    assert {"train/loss", "train/mmcl", "train/inmodal", "train/lr", "train/logit_scale", "train/samples_per_second",
            "asr/top1"} == set(lines[1]["metrics"])
    assert lines[1]["metrics"]["train/lr"] == pytest.approx((0.005 + 0.01 + 0.01 + 0.01 / 2 * (1 + 0.8660254)) / 4)
    assert told[-1][:2] == (8, 8) and 0 < lines[1]["seconds"] <= lines[2]["seconds"]
    assert encoder.training and sorted(p.name for p in tmp_path.iterdir()) == ["epoch_0002"]


def test_the_rate_warms_up_in_every_stage_and_its_optimiser_is_fresh(tmp_path):
    """A stage that starts from another's weights counts its own steps, and takes no moments from beside the weights."""
    trained(tmp_path / "one")
    held = tmp_path / "one" / "epoch_0002"
    bare = shutil.copytree(held, tmp_path / "bare")
    (bare / STATE).unlink()
    ends = []
    for start in (held, bare):
        encoder, lines = resnet(), []
        load_weights(encoder, start)
        loop.fit(encoder, MMCL(), training(epochs=4), ToyFeed(steps=4), tmp_path / f"from {start.name}", report=lines.append)
        rates = [line["metrics"]["train/lr"] for line in lines[1:]]
        assert rates == pytest.approx([0.005, 0.01, 0.01, 0.005])
        ends.append(weights(encoder))
    assert (held / STATE).is_file() and equal(*ends)


def test_weight_decay_acts(tmp_path):
    small, large = (trained(tmp_path / str(decay), weight_decay=decay)[0].model for decay in (0.0, 10.0))
    unused_token = 40000
    before = resnet().model.token_embedding.weight[unused_token]
    assert torch.equal(small.token_embedding.weight[unused_token], before)
    assert 0 < large.token_embedding.weight[unused_token].norm() / before.norm() < 0.8
    assert large.visual.layer1[0].conv1.weight.norm() < 0.9 * small.visual.layer1[0].conv1.weight.norm()


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_kill_and_resume_gives_the_same_weights_metrics_and_keys(tmp_path, stop_at):
    reference, lines = trained(tmp_path / "whole", checkpoint_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", feed=ToyFeed(steps=8, stop_at=stop_at), checkpoint_every_steps=2)
    resumed, more = trained(tmp_path / "cut", checkpoint_every_steps=2)
    assert equal(weights(reference), weights(resumed))
    ours, theirs = ({line["epoch"]: line for line in found} for found in (more, lines))
    for epoch, line in ours.items():
        for name, value in line["metrics"].items():
            if name != "train/samples_per_second":
                assert value == theirs[epoch]["metrics"][name], (epoch, name)
    assert {1, 2} <= set(ours) or stop_at == 6
    ledger = [json.loads(line) for line in (tmp_path / "cut" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in ledger] == list(range(8))
    assert [entry["keys"] for entry in ledger] == [list(ToyFeed().batch(s)["key"]) for s in range(8)]


@pytest.mark.parametrize("text", ["{", '{"keys": []}\n', "[1]\n", "\udcff\n"])
def test_a_damaged_ledger_is_named(tmp_path, text):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, feed=ToyFeed(steps=8, stop_at=3), checkpoint_every_steps=2)
    (tmp_path / "ledger.jsonl").write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(InputError, match=r"ledger\.jsonl is not as it was written"):
        trained(tmp_path, checkpoint_every_steps=2)


def test_no_bit_of_a_ledger_changes_unseen(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, 0)
    for step in range(4):
        ledger.write(step, [f"k{step}", "é"])
    ledger.flush()
    whole = path.read_bytes()
    Ledger(path, 3)
    kept = path.read_bytes()
    assert kept == b"".join(whole.splitlines(keepends=True)[:3])
    for byte, bit in itertools.product(range(len(kept)), range(8)):
        path.write_bytes(kept[:byte] + bytes([kept[byte] ^ 1 << bit]) + kept[byte + 1 :])
        with pytest.raises(InputError, match=r"ledger\.jsonl is not as it was written"):
            Ledger(path, 3)


def test_a_finished_stage_is_not_trained_again(tmp_path):
    reference, lines = trained(tmp_path)
    again, more = trained(tmp_path, feed=ToyFeed(steps=8, stop_at=0))
    assert equal(weights(reference), weights(again)) and more == lines[-1:]


def test_without_resume_it_starts_anew(tmp_path):
    trained(tmp_path, epochs=1)
    lines: list[dict] = []
    loop.fit(resnet(), MMCLSSL(), training(), ToyFeed(steps=8), tmp_path, report=lines.append, resume=False)
    assert [line["epoch"] for line in lines] == [0, 1, 2]


def test_encoding_in_parts_trains_the_same_model(tmp_path):
    whole, parts = (
        trained(tmp_path / str(n), build=lambda: vit().double(), accumulate=n)[0] for n in (1, 4)
    )
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=1e-6, atol=1e-8)


def test_batch_norm_statistics_move_once_a_part(tmp_path):
    whole, parts = (trained(tmp_path / str(n), accumulate=n)[0].model.visual.bn1 for n in (1, 4))
    assert whole.num_batches_tracked == 8 and parts.num_batches_tracked == 32 and parts.momentum == whole.momentum == 0.1


def test_a_loss_that_is_not_a_number_stops_it_by_name(tmp_path):
    class Diverging(Objective):
        two_views = False

        def loss(self, model, batch):
            values = MMCL().loss(model, batch)
            Diverging.calls += 1
            bad = values["mmcl"] * (float("nan") if Diverging.calls == 6 else 1)
            return {"loss": bad, "broken": bad}

        calls = 0

    with pytest.raises(FloatingPointError, match="step 5.*broken is nan"):
        trained(tmp_path, objective=Diverging())
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["epoch_0001"], "what came before stays"
