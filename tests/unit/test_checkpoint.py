"""Checkpoints are complete or absent, and put everything back."""

import json

import pytest
import torch

from tests.parity.toys import ToyFeed, resnet
from trainers import checkpoint, schedule
from trainers.backward import backward
from trainers.batch import to_device
from trainers.checkpoint import Progress
from trainers.objectives.contrastive import MMCL
from trainers.schedule import Training

TRAINING = Training(epochs=1, batch_size=8, lr=1e-2, warmup_steps=0)


def stepped(steps: int):
    encoder = resnet().train()
    optimizer = schedule.optimizer(encoder, TRAINING)
    advance(encoder, optimizer, range(steps))
    return encoder, optimizer


def advance(encoder, optimizer, steps):
    for step in steps:
        backward(encoder, MMCL(), to_device(ToyFeed().batch(step), encoder, False), 1, 0)
        optimizer.step()
        optimizer.zero_grad()


def test_weights_and_optimiser_come_back_bit_for_bit(tmp_path):
    encoder, optimizer = stepped(2)
    progress = Progress(step=2, epoch=1, seconds=3.25, line={"epoch": 1})
    folder = checkpoint.save(tmp_path, encoder, optimizer, progress)
    assert folder.name == "epoch_0001"
    assert sorted(p.name for p in folder.iterdir()) == [
        "meta.json", "open_clip_config.json", "open_clip_model.safetensors", "state.safetensors"]

    other = resnet().train().place(torch.device("cpu"))  # another memory layout, too
    fresh = schedule.optimizer(other, TRAINING)
    assert checkpoint.load(folder, other, fresh) == progress
    for a, b in ((encoder, optimizer), (other, fresh)):
        advance(a, b, range(2, 4))
    reference, _ = stepped(4)
    for name, value in reference.model.state_dict().items():
        assert torch.equal(value, encoder.model.state_dict()[name]), name
        torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-4, rtol=1e-3)


def test_what_stays(tmp_path):
    encoder, optimizer = stepped(1)

    def names():
        return sorted(p.name for p in tmp_path.iterdir())

    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=1, sums={"loss": 1.0}), keep="all")
    assert names() == ["step_00000001"]
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1), keep="all")
    assert names() == ["epoch_0001"], "a checkpoint within an epoch goes when the next is there"
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=3, epoch=1, sums={"loss": 1.0}), keep="all")
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=4, epoch=2), keep="all")
    assert names() == ["epoch_0001", "epoch_0002"]
    assert not (tmp_path / "epoch_0001" / "state.safetensors").exists(), "the optimiser's state is kept once"
    assert checkpoint.newest(tmp_path) == tmp_path / "epoch_0002"
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=6, epoch=3), keep="last")
    assert names() == ["epoch_0003"]
    checkpoint.clear(tmp_path)
    assert names() == [] and checkpoint.newest(tmp_path) is None


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    encoder, optimizer = stepped(1)
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, encoder, optimizer, Progress(step=4, epoch=2))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_0001"]


def test_a_half_written_one_is_not_found(tmp_path):
    encoder, optimizer = stepped(1)
    folder = checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))
    folder.rename(tmp_path / ".epoch_0001.partial")
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_0001"]
    assert json.loads((folder / "meta.json").read_text())["step"] == 2
