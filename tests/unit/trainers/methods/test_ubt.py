"""UBT: its loss against the formula, which pairs are suspect, what the two phases train, kill and resume, input that does not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import hash64
from orchestrator.experiment.check import check
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Clean, Pretrain
from orchestrator.store import METRICS, read_lines
from orchestrator.training.workers import clean
from sweeps.quickstart import BASE
from tests.parity.toys import RESNET, ToyFeed, ToySet, resnet
from tests.unit.orchestrator.training.test_workers import job  # noqa: F401 (a fixture)
from tests.unit.trainers.methods.test_phases import told
from trainers.batch import to_device
from trainers.detect.base import Features, Reference
from trainers.detect.early_loss import EarlyLoss
from trainers.detect.kdistance import KDistance
from trainers.detect.lid import LID
from trainers.detect.lorex import LoREx
from trainers.evaluate.choice import measured, results
from trainers.loop import fit
from trainers.methods import ubt
from trainers.methods.base import Run
from trainers.methods.ubt import FILE, UBT, said
from trainers.objectives.contrastive import MMCL
from trainers.objectives.unlearn import Unlearn
from trainers.schedule import Training

TRAINING = Training(epochs=3, batch_size=8, lr=1e-3, warmup_steps=1, seed=3, checkpoint_every_steps=4)
METHOD = UBT(share=0.2)
STEPS = 6
"""Of an epoch of `ToySet`."""


def reference(image, text, scale: float, suspect: list[int], weight: float, margin: float) -> dict[str, float]:
    """The formula in NumPy's float64, a pair at a time."""
    kept = [i for i in range(len(image)) if not suspect[i]]
    found, total = {}, 0.0
    if kept:
        terms = []
        for one, other in ((image, text), (text, image)):
            for i in kept:
                share = np.exp(scale * (one[i] @ other[i])) / sum(np.exp(scale * (one[i] @ other[j])) for j in kept)
                terms.append(-np.log(share))
        found["mmcl"] = float(np.mean(terms))
        total += found["mmcl"]
    if len(kept) < len(image):
        found["unlearn"] = float(np.mean([max(0.0, image[i] @ text[i] - margin) for i in range(len(image)) if suspect[i]]))
        total += weight * found["unlearn"]
    return found | {"loss": total}


@pytest.mark.parametrize("suspect", [[0] * 8, [1] * 8, [0, 1, 0, 0, 1, 1, 0, 0], [1] * 7 + [0]])
@pytest.mark.parametrize(("weight", "margin"), [(1.0, 0.0), (2.5, -1.0), (0.5, 0.05)])
def test_the_loss_is_the_formula(suspect, weight, margin):
    encoder = resnet().double().eval()
    batch = {**to_device(ToyFeed().batch(0), encoder, False), "suspect": torch.tensor(suspect)}
    with torch.no_grad():
        f = {name: value.numpy() for name, value in encoder(batch).items()}
    expected = reference(f["image"], f["text"], float(f["logit_scale"]), suspect, weight, margin)
    found = Unlearn(weight=weight, margin=margin).loss(encoder, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-12, abs=1e-15), name
    found["loss"].backward()
    assert encoder.model.logit_scale.grad is not None, "whatever the batch: averaging over ranks needs it"


def test_a_batch_without_suspects_is_mmcl_and_pairs_below_the_margin_are_left_alone():
    encoder = resnet().double().eval()
    batch = {**to_device(ToyFeed().batch(0), encoder, False), "suspect": torch.zeros(8, dtype=torch.long)}
    assert Unlearn().loss(encoder, batch)["loss"].item() == pytest.approx(MMCL().loss(encoder, batch)["loss"].item(), rel=1e-12)
    batch["suspect"] += 1
    Unlearn(margin=0.999).loss(encoder, batch)["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in encoder.model.parameters())


def run_of(folder: Path, lines: dict[int, dict[str, Any]], stop_at: int | None = None, ends: list[Any] | None = None) -> Run:
    def train(model, objective, phase):
        feed = ToySet(epochs=phase.first + phase.training.epochs, stop_at=stop_at)
        fit(model, objective, phase.training, feed, folder, report=lambda line: lines.update({line["epoch"]: line}),
            first_epoch=phase.first, phase=phase.name, aside=phase.aside, begin_epoch=phase.begin_epoch)  # fmt: skip
        if ends is not None:
            ends.append((model, {name: value.clone() for name, value in model.model.state_dict().items()}))

    return Run(trainer=train, training=TRAINING, fresh=lambda: RESNET.build(7),
               keys=lambda: list(ToySet().samples["key"]), pairs=ToySet().pairs, folder=folder)  # fmt: skip


def cleaned(folder: Path, method: UBT = METHOD, stop_at: int | None = None, ends: list[Any] | None = None, double: bool = False):
    """(weights, lines) of a cleaning that is killed before the step `stop_at`."""
    lines: dict[int, dict[str, Any]] = {}
    model = method.train(resnet().double() if double else resnet(), run_of(folder, lines, stop_at, ends))
    return model.model.state_dict(), [lines[epoch] for epoch in sorted(lines)]


def test_the_suspects_are_the_pairs_that_the_overfitted_copy_finds_most_similar(tmp_path):
    ends: list[Any] = []
    _, lines = cleaned(tmp_path, ends=ends)
    (copy, weights), _ = ends
    copy.model.load_state_dict(weights)
    copy.eval()
    samples = ToySet().samples
    with torch.no_grad():
        image, text = copy.encode_image(torch.from_numpy(samples["image"])), copy.encode_text(copy.tokenize(list(samples["caption"])))
    cosine = (image.double() * text.double()).sum(1).numpy()
    table = pq.read_table(tmp_path / FILE).to_pydict()
    np.testing.assert_allclose(table["score"], cosine, atol=1e-6)
    assert table["key"] == list(samples["key"]) and table["victim"] == [i % 5 == 0 for i in range(48)]
    suspects = {i for i in range(48) if table["suspect"][i]}
    assert len(suspects) == round(0.2 * 48) and suspects == set(np.argsort(-np.array(table["score"]), kind="stable")[:10].tolist())
    caught = len(suspects & set(range(0, 48, 5)))
    for line in lines[2:]:
        found = line["metrics"]
        assert (found["ubt/suspects"], found["ubt/suspect_poisons"]) == (10, caught)
        assert found["ubt/suspect_poisons_share"] == found["ubt/poisons_suspect_share"] == 10 * caught
        assert "train/unlearn" in found and "train/mmcl" in found
    assert not any(name.startswith("ubt/") for line in lines[:2] for name in line["metrics"])


@pytest.mark.parametrize("score", [LID(k=4, m=20), KDistance(k=3, m=20, rows="raw"), LoREx(m=20, trusted=("0-3", "0-9", "0-17"))])
def test_any_score_may_choose_the_suspects(tmp_path, score):
    """Against the score of all pairs at once, by features that are computed here."""
    ends: list[Any] = []
    _, lines = cleaned(tmp_path, replace(METHOD, score=score), ends=ends, double=True)
    copy, weights = ends[0]
    copy.model.load_state_dict(weights)
    copy.eval()
    samples = ToySet().samples
    with torch.no_grad():
        image = copy.encode_image(torch.from_numpy(samples["image"]), unit=False)
        text = copy.encode_text(copy.tokenize(list(samples["caption"])), unit=False)
    pairs = Features(keys=samples["key"], image_BD=image, text_BD=text)
    trusted = pairs.take(np.array([3, 9, 17])) if isinstance(score, LoREx) else None
    compared = pairs.take(np.array(sorted(range(48), key=lambda i: (hash64(0, "reference", samples["key"][i]), samples["key"][i]))[:20]))
    expected = score.suspicion(pairs, Reference(compared, trusted, score.depth or 1))
    table = pq.read_table(tmp_path / FILE).to_pydict()
    np.testing.assert_allclose(table["score"], expected, rtol=1e-9)
    assert [i for i in range(48) if table["suspect"][i]] == sorted(np.argsort(-np.array(table["score"]), kind="stable")[:10].tolist())
    assert lines[2]["metrics"]["ubt/suspects"] == 10


def test_scores_that_it_cannot_use_are_refused(tmp_path):
    for score, words in ((LoREx(trusted=5), "UBT.score: LoREx.trusted is 5, a number of pairs that are drawn by who is a victim"),
                         (EarlyLoss(), "UBT.score is EarlyLoss, which needs the models of several epochs")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            UBT(score=score)
    with pytest.raises(InputError, match="UBT.score.m is 2048, but there are only 48 pairs"):
        UBT(score=LID()).check(48)
    with pytest.raises(InputError, match="LoREx.trusted names 'nobody', which is no key of the cleaning set"):
        cleaned(tmp_path, replace(METHOD, score=LoREx(m=20, trusted=("0-3", "nobody"))))


def test_the_model_is_trained_and_not_the_copy(tmp_path):
    ends: list[Any] = []
    weights, lines = cleaned(tmp_path, ends=ends)
    (copy, overfitted), (model, unlearnt) = ends
    assert copy is not model and all(torch.equal(weights[name], value) for name, value in unlearnt.items())
    begun, epochs = resnet(), []

    def train(model, objective, phase):
        feed = ToySet(epochs=1)
        fit(model, objective, replace(phase.training, checkpoint_every_steps=None), feed, tmp_path / "alone", resume=False)
        epochs.append(phase.training.epochs)

    run = replace(run_of(tmp_path, {}), trainer=train)
    run.fit(begun, MMCL(), epochs=1)
    assert all(torch.equal(begun.model.state_dict()[name], value) for name, value in overfitted.items()), "the copy is fine-tuned by MMCL"
    assert [line.get("phase") for line in lines] == [None, "overfit", "unlearn", "unlearn"]
    assert [line.get("aside", False) for line in lines] == [False, True, False, False]


def test_no_rule_chooses_the_copy():
    lines = [{"epoch": epoch, "metrics": {"zeroshot/top1": 90.0 - epoch, "asr/top1": 1.0}} for epoch in range(4)]
    lines[1] |= {"phase": "overfit", "aside": True}
    assert [point.epoch for point in measured(lines)] == [0, 2, 3] and [point.epoch for point in results(measured(lines))] == [2, 3]


def test_the_copy_may_have_a_rate_of_its_own(tmp_path):
    _, lines = cleaned(tmp_path, replace(METHOD, overfit_lr=5e-3, overfit_epochs=2))
    rates = [line["metrics"]["train/lr"] for line in lines[1:]]
    assert [line["phase"] for line in lines[1:]] == ["overfit", "overfit", "unlearn"] and rates[0] > 3e-3 and rates[2] < 1e-3


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 11, 13, 17])
def test_a_kill_in_any_phase_changes_nothing(tmp_path, stop_at):
    weights, lines = cleaned(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path / "cut", stop_at=stop_at)
    again, more = cleaned(tmp_path / "cut")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert told(more) == told(lines)[-len(more):]
    assert (tmp_path / "whole" / FILE).read_bytes() == (tmp_path / "cut" / FILE).read_bytes()


def test_a_kill_between_the_phases_changes_nothing(tmp_path):
    weights, _ = cleaned(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cleaned(tmp_path / "cut", stop_at=STEPS)
    (tmp_path / "cut" / FILE).unlink()
    again, _ = cleaned(tmp_path / "cut")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_what_is_said_of_pairs_of_one_kind():
    found = said(np.array([0.3, 0.2, 0.1]), np.array([True, False, False]), np.zeros(3, bool))
    assert found == {"ubt/suspects": 1, "ubt/suspect_poisons": 0, "ubt/suspect_poisons_share": 0}
    found = said(np.array([0.3, 0.2, 0.1]), np.array([True, False, False]), np.array([False, True, False]))
    assert found["ubt/poisons_suspect_share"] == 0 and found["ubt/auroc"] == 0.5


@pytest.mark.parametrize(("fields", "words"), [
    ({"overfit_epochs": 0}, "UBT.overfit_epochs is 0"), ({"overfit_lr": 0}, "UBT.overfit_lr is 0"), ({"share": 0}, "UBT.share is 0"),
    ({"share": 1}, "UBT.share is 1"), ({"weight": 0}, "UBT.weight is 0"), ({"margin": 1}, "UBT.margin is 1"),
    ({"margin": -1.5}, "UBT.margin is -1.5"),
])  # fmt: skip
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        UBT(**fields)


def test_what_does_not_fit_is_refused_before_anything_is_made():
    for changes, words in (
        ({"clean.epochs": 1}, r"clean.epochs is 1, but the copy of UBT takes 1 of them \(UBT.overfit_epochs\): at least 2"),
        ({"clean.method": UBT(share=1e-4)}, "UBT.share is 0.0001, which makes 0 suspects of 2000 pairs"),
    ):
        with pytest.raises(InputError, match=words):
            check(override_all(BASE, {"clean.method": UBT(), "clean.epochs": 3, **changes}))
    values: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "warmup_steps": 6}
    given = Clean(method=METHOD, pairs=48, **values)
    METHOD.check_training(given)
    with pytest.raises(InputError, match="clean.warmup_steps is 6, but the shorter phase of UBT has only 6 steps"):
        METHOD.check_training(given, 48)
    with pytest.raises(InputError, match="pretrain.objective is UBT, which cleans a model"):
        METHOD.check_training(Pretrain(model=RESNET, objective=METHOD, **values))


def test_through_a_whole_cleaning(job):  # noqa: F811
    experiment = replace(job.experiment, clean=replace(job.experiment.clean, method=METHOD, epochs=2))
    clean(replace(job, experiment=experiment))
    lines = read_lines(Path(job.folder) / METRICS)
    assert [(line["epoch"], line.get("aside", False), line.get("returned", False)) for line in lines] == [
        (0, False, False), (1, True, False), (2, False, False)]  # fmt: skip
    assert "train/unlearn" in lines[2]["metrics"] and "zeroshot/top1" in lines[2]["metrics"]
    assert (Path(job.folder) / FILE).exists()


def test_a_damaged_file_is_named_and_never_read(tmp_path):
    keys, draw = [f"k{i}" for i in range(300)], np.random.default_rng(0)
    arrays = draw.normal(size=300), draw.random(300) < 0.1, draw.random(300) < 0.1
    ubt._write(tmp_path / FILE, keys, *arrays)
    whole = (tmp_path / FILE).read_bytes()
    named = 0
    for place in draw.integers(0, len(whole), 150).tolist():
        (tmp_path / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            read = ubt._read(tmp_path / FILE)
        except InputError as error:
            named += re.search(rf"{FILE} is damaged: remove its folder", str(error)) is not None
            continue
        assert all(np.array_equal(mine, own) for mine, own in zip(read, arrays)), place
    assert named > 50
    (tmp_path / FILE).write_bytes(whole[:-9])
    with pytest.raises(InputError, match=f"{FILE} is damaged"):
        ubt._read(tmp_path / FILE)
