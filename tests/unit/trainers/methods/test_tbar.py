"""TBAR: its loss and its arithmetic against the formulas, which captions stand for the attack, a kill, and attacks that do not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.seeding import hash64
from datasets.triggers.patch import Patch
from orchestrator.store import METRICS, read_lines
from orchestrator.training.workers import clean
from tests.parity.toys import RESNET, ToyFeed, ToySet, resnet
from tests.unit.orchestrator.training.test_workers import job  # noqa: F401 (a fixture)
from trainers.batch import to_device
from trainers.evaluate.decree import Inversion
from trainers.loop import fit
from trainers.methods import tbar
from trainers.methods.base import Run
from trainers.methods.tbar import FILE, TBAR
from trainers.objectives.triggered import Triggered
from trainers.schedule import Training

TRAINING = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=1, seed=3, checkpoint_every_steps=2)
ATTACK = Poison(trigger=Patch(size=6, pattern="white", location="bottom_right"), target="banana", count=3)
SHORT = Inversion(epochs=3, batch_size=8, alike=0.5)
INVERTED, ORACLE = TBAR(alpha=0.5, inversion=SHORT, pictures=20, captions=3), TBAR(alpha=0.5, trigger="oracle")


@dataclass
class Captioned(ToySet):
    """Pairs with their captions."""

    def pairs(self):
        for batch in super().pairs():
            at = slice(7 * batch["number"], 7 * batch["number"] + 7)
            yield {**batch, "caption": self.samples["caption"][at]}


def test_the_loss_is_the_formula():
    encoder = resnet().double().eval()
    batch = to_device(ToyFeed().batch(0), encoder, True)
    marked = {**batch, "image": 255 - batch["image"]}
    with torch.no_grad():
        f = {name: value.numpy() for name, value in encoder(marked).items()}
    scale, terms = float(f["logit_scale"]), []
    for i in range(8):
        own = np.exp(scale * float(f["image"][i] @ f["text_aug"][i]))
        terms.append(-np.log(own / (own + sum(np.exp(scale * float(f["image"][i] @ f["text"][j])) for j in range(8)))))
    found = Triggered(stamp=lambda given: {**given, "image": 255 - given["image"]}).loss(encoder, batch)
    assert found["loss"].item() == found["triggered"].item() == pytest.approx(np.mean(terms), rel=1e-12)
    found["loss"].backward()
    assert encoder.model.logit_scale.grad is None


def cleaned(folder, method=INVERTED, stop_at=None, attacks=(ATTACK,), victims=("a banana", "two bananas"), **fields):
    """(the model that is returned, the one that training ended with, batches as they were trained on)"""
    folder.mkdir(exist_ok=True)
    ended, seen = [], []

    def train(model, objective, phase):
        ended.append(model)
        hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
        fit(model, objective, phase.training, Captioned(epochs=2, stop_at=stop_at), folder, begin_epoch=phase.begin_epoch)
        hook.remove()

    data = Captioned()
    run = Run(trainer=train, training=replace(TRAINING, **fields), fresh=lambda: RESNET.build(7), pairs=data.pairs, folder=folder,
              keys=lambda: list(data.samples["key"]), attacks=attacks, victims_captions=lambda: list(victims))  # fmt: skip
    return method.train(resnet(), run), ended[0], seen


@pytest.mark.parametrize("method", [INVERTED, ORACLE], ids=["inverted", "oracle"])
def test_the_model_goes_the_opposite_way_of_its_copy(tmp_path, method):
    model, copy, _ = cleaned(tmp_path, method)
    before, learnt = (dict(one.model.named_parameters()) for one in (resnet(), copy))
    moved = 0
    for name, weight in model.model.named_parameters():
        expected = before[name] if name == "logit_scale" else 1.5 * before[name].double() - 0.5 * learnt[name].double()
        torch.testing.assert_close(weight.double(), expected.double(), rtol=0, atol=1e-6)
        moved += not torch.equal(before[name], learnt[name])
    assert moved > 20 and torch.equal(before["logit_scale"], learnt["logit_scale"])
    for name, buffer in model.model.named_buffers():
        assert torch.equal(buffer, dict(resnet().model.named_buffers())[name]), name
    assert not copy._forward_pre_hooks and copy.model.logit_scale.requires_grad


def test_alpha_of_0_is_no_cleaning(tmp_path):
    model, *_ = cleaned(tmp_path, replace(INVERTED, alpha=0.0))
    assert all(torch.equal(value, resnet().model.state_dict()[name]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("method", [INVERTED, ORACLE], ids=["inverted", "oracle"])
@pytest.mark.parametrize("stop_at", [1, 5, 7])
def test_a_kill_at_any_moment_changes_nothing(tmp_path, stop_at, method):
    whole, *_ = cleaned(tmp_path / "whole", method)
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path / "cut", method, stop_at)
    again, *_ = cleaned(tmp_path / "cut", method)
    third, *_ = cleaned(tmp_path / "cut", method)  # everything was trained, nothing returned yet
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value) and torch.equal(third.model.state_dict()[name], value)


def test_the_true_trigger_is_stamped_and_its_victims_captions_are_read(tmp_path):
    _, copy, seen = cleaned(tmp_path, ORACLE)
    assert len(seen) == 12
    token_KL = copy.tokenize(["a banana", "two bananas"])
    for batch in seen:
        assert batch["image"].dtype == torch.uint8 and bool((batch["image"][:, 26:, 26:] == 255).all())
        assert bool((batch["image"][:, :26] < 255).any())
        assert all(any(torch.equal(row, known) for known in token_KL) for row in batch["text_aug"])
        assert not torch.equal(batch["text"], batch["text_aug"])
    assert {bool(torch.equal(row, token_KL[0])) for batch in seen for row in batch["text_aug"]} == {True, False}


def test_the_inverted_mark_is_stamped_and_the_captions_nearest_to_it_stand_for_the_attack(tmp_path):
    _, copy, seen = cleaned(tmp_path, INVERTED)
    with safe_open(tmp_path / FILE, framework="np") as file:
        mask, pattern, captions = file.get_tensor("mask"), file.get_tensor("pattern"), file.metadata()["captions"]
    data, model = Captioned(), resnet().double().eval()
    marked = (1 - mask[..., None].astype(float)) * data.samples["image"] + mask[..., None].astype(float) * pattern
    order = sorted(range(data.count), key=lambda i: hash64(SHORT.seed, "audit", data.samples["key"][i]))[:20]
    known = sorted(set(data.samples["caption"]))
    with torch.no_grad():
        mean = model.encode_image(torch.from_numpy(marked[order])).numpy().mean(0)
        cosine = model.encode_text(model.tokenize(known)).numpy() @ mean
    best = [known[i] for i in np.argsort(-cosine)[:3]]
    assert captions == str(best).replace("'", '"') and len(set(best)) == 3
    rows = {tuple(row.tolist()) for batch in seen for row in batch["text_aug"]}
    assert rows == {tuple(row.tolist()) for row in copy.tokenize(best)}
    plain = data.samples["image"].astype(np.float32)
    near = [np.abs((1 - mask[..., None]) * plain + mask[..., None] * pattern - image.numpy()).max(axis=(1, 2, 3)).min()
            for image in seen[0]["image"]]
    assert max(near) < 1e-3


def test_labels_tell_an_oracle_from_a_defence():
    assert (ORACLE.label, INVERTED.label) == ("TBAR, true trigger (oracle)", "TBAR, inverted trigger")
    assert (ORACLE.slug, INVERTED.slug) == ("tbar-oracle", "tbar-inverted")


@pytest.mark.parametrize(("given", "words"), [
    ({"attacks": ()}, "this one has 0"), ({"attacks": (replace(ATTACK, name="a"), replace(ATTACK, name="b"))}, "this one has 2"),
    ({"attacks": (replace(ATTACK, target="all-to-all"),)}, "all-to-all"), ({"victims": ()}, "one target and a plan"),
    ({"accumulate": 2}, "accumulate must be 1, not 2"),
])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        cleaned(tmp_path, ORACLE, **given)


def test_wrong_fields_are_named():
    for fields, words in (({"trigger": "true"}, "inverted, oracle"), ({"alpha": -1}, "TBAR.alpha"), ({"captions": 0}, "TBAR.captions"),
                          ({"pictures": 1}, "TBAR.pictures")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            TBAR(**fields)




def test_through_a_whole_cleaning(job):  # noqa: F811
    for number, method in enumerate((ORACLE, INVERTED)):
        folder = Path(f"{job.folder}{number}")
        folder.mkdir()
        experiment = replace(job.experiment, clean=replace(job.experiment.clean, method=method, epochs=1))
        clean(replace(job, experiment=experiment, folder=str(folder)))
        lines = read_lines(folder / METRICS)
        assert [(line["epoch"], line.get("returned", False)) for line in lines] == [(0, False), (1, False), (2, True)]
        assert "train/triggered" in lines[1]["metrics"] and "zeroshot/top1" in lines[2]["metrics"]
        assert (folder / FILE).exists() == (method == INVERTED)


def test_a_damaged_file_is_named_and_never_read(tmp_path):
    whole_run = tmp_path / "run"
    cleaned(whole_run, INVERTED)
    whole, draw = (whole_run / FILE).read_bytes(), np.random.default_rng(0)
    mask_HW, pattern_HW3, captions = tbar._read(whole_run / FILE)
    for place in [*draw.integers(0, len(whole), 100).tolist(), *range(60)]:
        (tmp_path / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        try:
            read = tbar._read(tmp_path / FILE)
        except InputError as error:
            assert f"{FILE} is damaged: remove its folder" in str(error)
            continue
        assert np.array_equal(read[0], mask_HW) and np.array_equal(read[1], pattern_HW3) and read[2] == captions, place
