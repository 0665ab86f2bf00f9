"""Checkpoints are complete or absent, and put everything back."""

import errno
import functools
import json
import resource

import pytest
import torch

from datasets.errors import InputError
from tests.parity.toys import ToyFeed, resnet
from trainers import checkpoint, schedule
from trainers.backward import backward
from trainers.batch import to_device
from trainers.checkpoint import Progress
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL
from trainers.schedule import Training
from trainers.weights.load import load_weights

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
    checkpoint.load(folder, other, fresh)
    assert checkpoint.progress_of(folder) == progress
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

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, encoder, optimizer, Progress(step=4, epoch=2))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_0001"]


def test_why_tensors_cannot_be_written_is_told_as_an_error_of_the_system(tmp_path):
    """safetensors has an error of its own for a full disk; here a file may not grow, which meets it in the same way."""
    encoder, optimizer = stepped(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith("open_clip_model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_one_is_not_found(tmp_path):
    encoder, optimizer = stepped(1)
    folder = checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))
    folder.rename(tmp_path / ".epoch_0001.partial")
    assert checkpoint.newest(tmp_path) is None
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_0001"]
    assert json.loads((folder / "meta.json").read_text())["step"] == 2


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


FILES = ["open_clip_model.safetensors", "open_clip_config.json", "state.safetensors", "meta.json"]


@functools.cache
def tiny():
    """A model of 2 MB that has not been trained, for what is about files alone."""
    encoder = TinyCLIP(vision_width=8, embed_dim=16, text_width=8).build(0)
    return encoder, schedule.optimizer(encoder, TRAINING)


def two_epochs(folder, keep="all", states=2):
    encoder, optimizer = tiny()
    for epoch in (1, 2):
        checkpoint.save(folder, encoder, optimizer, Progress(step=2 * epoch, epoch=epoch, line={"epoch": epoch}), keep, states)
    return encoder, optimizer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("harm", [spoil, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_one_is_passed_over_for_the_one_before_and_said(tmp_path, name, harm):
    two_epochs(tmp_path)
    harm(tmp_path / "epoch_0002" / name)
    assert checkpoint.newest(tmp_path) == tmp_path / "epoch_0001"
    said = []
    assert checkpoint.tidy(tmp_path, "all", 2, said.append) == tmp_path / "epoch_0001"
    assert len(said) == 1 and str(tmp_path / "epoch_0002" / name) in said[0] and "goes on from epoch_0001" in said[0]
    assert names(tmp_path) == ["epoch_0001"]


def test_where_there_is_no_other_the_stage_begins_anew(tmp_path):
    two_epochs(tmp_path, "last", 1)
    spoil(tmp_path / "epoch_0002" / FILES[0])
    said = []
    assert checkpoint.tidy(tmp_path, "last", 1, said.append) is None
    assert len(said) == 1 and "begins anew" in said[0] and names(tmp_path) == []


def test_one_of_another_stage_is_passed_over_and_said(tmp_path):
    for stage in ("a", "b"):
        two_epochs(tmp_path / stage)
    (tmp_path / "a" / "epoch_0002").rename(tmp_path / "aside")
    (tmp_path / "b" / "epoch_0002").rename(tmp_path / "a" / "epoch_0002")
    said: list[str] = []
    assert checkpoint.tidy(tmp_path / "a", "all", 2, said.append) == tmp_path / "a" / "epoch_0001"
    assert len(said) == 1 and "epoch_0002 is a checkpoint of another stage (b); the stage goes on from epoch_0001" in said[0]


def test_a_damaged_one_within_an_epoch_too(tmp_path):
    encoder, optimizer = two_epochs(tmp_path)
    within = checkpoint.save(tmp_path, encoder, optimizer, Progress(step=5, epoch=2, sums={"loss": 1.0}), "all", 2)
    assert checkpoint.newest(tmp_path) == within and (tmp_path / "epoch_0002" / "state.safetensors").exists()
    for name in ("meta.json", "state.safetensors"):
        spoil(within / name)
        assert checkpoint.newest(tmp_path) == tmp_path / "epoch_0002"


def test_what_lies_beside_it_belongs_to_it(tmp_path):
    encoder, optimizer = two_epochs(tmp_path)
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "epoch_0003.npz").write_bytes(b"numbers")
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=6, epoch=3), "all", 2)
    spoil(tmp_path / "analysis" / "epoch_0003.npz")
    said = []
    assert checkpoint.tidy(tmp_path, "all", 2, said.append) == tmp_path / "epoch_0002"
    assert "analysis/epoch_0003.npz is not as it was written" in said[0]


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json", "meta.json"])
def test_a_damaged_epoch_that_is_kept_is_refused_by_name(tmp_path, name):
    two_epochs(tmp_path)
    spoil(tmp_path / "epoch_0001" / name)
    with pytest.raises(InputError, match=f"epoch_0001/{name} is not as it was written.*delete"):
        checkpoint.tidy(tmp_path, "all", 2)


@pytest.mark.parametrize("lost", [["meta.json"], ["open_clip_model.safetensors", "meta.json"], FILES])
def test_a_superseded_one_that_was_half_removed_goes(tmp_path, lost):
    """As a kill of an earlier version left it."""
    two_epochs(tmp_path)
    for name in lost:
        (tmp_path / "epoch_0001" / name).unlink()
    said = []
    assert checkpoint.newest(tmp_path) == tmp_path / "epoch_0002"
    assert checkpoint.tidy(tmp_path, "last", 1, said.append) == tmp_path / "epoch_0002"
    assert names(tmp_path) == ["epoch_0002"] and said == []


def test_a_kill_while_one_is_removed_leaves_nothing_that_is_taken_for_one(tmp_path, monkeypatch):
    encoder, optimizer = tiny()
    checkpoint.save(tmp_path, encoder, optimizer, Progress(step=2, epoch=1))

    def killed(path, ignore_errors=False):
        if not ignore_errors:
            (path / "meta.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoint.save(tmp_path, encoder, optimizer, Progress(step=4, epoch=2))
    assert names(tmp_path) == [".epoch_0001.removed", "epoch_0002"]
    assert checkpoint.tidy(tmp_path) == tmp_path / "epoch_0002" and names(tmp_path) == ["epoch_0002"]


def test_what_a_method_returned_is_not_trained_on_from(tmp_path):
    encoder, _ = two_epochs(tmp_path)
    assert checkpoint.save_returned(tmp_path, encoder, 3) == tmp_path / "epoch_0003"
    assert checkpoint.newest(tmp_path) == tmp_path / "epoch_0002"
    said = []
    assert checkpoint.tidy(tmp_path, "all", 2, said.append) == tmp_path / "epoch_0002"
    assert names(tmp_path) == ["epoch_0001", "epoch_0002"] and said == []


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json", "meta.json"])
def test_a_copied_epoch_folder_with_a_flipped_byte_is_refused_by_name(tmp_path, name):
    encoder, _ = stepped(1)
    copy = checkpoint.save_returned(tmp_path, encoder, 1).rename(tmp_path / "copy")
    load_weights(encoder, copy)
    data = bytearray((copy / name).read_bytes())
    data[-40] ^= 1
    (copy / name).write_bytes(data)
    for path in (copy, copy / "open_clip_model.safetensors"):
        with pytest.raises(InputError, match=f"copy/{name} is not as it was written"):
            load_weights(encoder, path)
