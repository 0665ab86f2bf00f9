"""`cleansweep evaluate` on sets of the user's choice, from the command line to CLIP_benchmark's JSON."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.synthetic import tiny
from orchestrator.commands.cli import run
from orchestrator.stages.graph import stages
from tests.experiments import ROOT
from tests.tiny_sweep import BASE
from tests.unit.datasets.evaluation.test_known_sets import TEN, cifar, save
from tests.unit.datasets.evaluation.test_retrieval import karpathy
from trainers.checkpoint import export
from trainers.encoder import Encoder
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.retrieval import Retrieval
from trainers.model import TinyCLIP

SWEEP = "tests/tiny_sweep.py"


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Runs the command: (exit code, what it printed as JSON, stderr)."""
    (tmp_path / "model").mkdir()
    export(tmp_path / "model", TinyCLIP().build(0))

    def command(*arguments):
        code = run(["evaluate", SWEEP, "--checkpoint", str(tmp_path / "model"), "--store", str(tmp_path / "store"), *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else None, err

    return command


def colours(folder, names, count):
    """Pictures of one colour a class, with noise."""
    draw = np.random.default_rng(count)
    for i, name in enumerate(names):
        for j in range(count):
            (folder / name).mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 60, (32, 32, 3)) + np.array([[190, 0, 0], [0, 190, 0], [0, 0, 190]])[i]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{j}.png")


def test_zero_shot_probe_and_retrieval_in_one_call(evaluate, tmp_path, monkeypatch):
    colours(tmp_path / "own" / "train", ("banana", "grass", "sea"), 12)
    colours(tmp_path / "own" / "test", ("banana", "grass", "sea"), 5)
    cifar(tmp_path, "cifar-10", TEN, binary=True)
    karpathy(tmp_path / "coco")
    seen = []
    encode = Encoder.encode_image
    monkeypatch.setattr(Encoder, "encode_image", lambda self, images: seen.append(len(images)) or encode(self, images))
    code, records, err = evaluate(
        "--on", f"own={tmp_path}/own/test", "--on", f"cifar10={tmp_path}", "--linear-probe", f"own={tmp_path}/own/train",
        "--retrieval", f"coco={tmp_path}/coco", "--out", str(tmp_path / "results.json"), "--poison.trigger.size", "8",
    )  # fmt: skip
    assert code == 0, err
    assert records == json.loads((tmp_path / "results.json").read_text())
    own, probe, ten, coco = records
    assert [(r["dataset"], r["task"]) for r in records] == [
        ("own", "zeroshot_classification"), ("own", "linear_probe"), ("cifar10", "zeroshot_classification"), ("coco", "zeroshot_retrieval")
    ]  # fmt: skip
    assert {r["model"] for r in records} == {"TinyCLIP"} and {r["language"] for r in records} == {"en"}
    assert not {"asr5", "asr10"} & own["metrics"].keys()  # of three classes
    assert own["metrics"]["n"] == 15 and own["metrics"]["asr_n"] == 10 and 0 <= own["metrics"]["asr1"] <= 1 and "acc5" not in own["metrics"]
    assert own["metrics"]["mean_per_class_recall"] == pytest.approx(own["metrics"]["acc1"])  # as many of each
    assert probe["metrics"]["acc1"] == 1 and probe["metrics"]["train_n"] == 36 and probe["metrics"]["asr_n"] == 10
    assert ten["metrics"]["n"] == 3 and not any(name.startswith("asr") for name in ten["metrics"])
    assert "'banana' is not among the 10 classes" in ten["asr_refused"] and "NOTE cifar10: no attack success rate" in err
    assert coco["metrics"]["images"] == 3 and coco["metrics"]["captions"] == 11 and coco["metrics"]["image_retrieval_recall@5"] == 1
    assert coco["metrics"]["text_retrieval_recall@10"] > 0 and "no caption names 'banana'" in coco["asr_refused"]
    assert sum(seen) == 2 * 15 + 36 + 3 + 2 * 3  # every picture once; the triggered ones where there is an attack
    [kept] = (tmp_path / "store" / "logs").glob("evaluate-*/driver.log")
    assert "is measured on own, cifar10, coco" in kept.read_text() and "cifar10: no attack success rate" in kept.read_text()
    out = str(tmp_path / "{dataset}_{task}.json")
    code, again, err = evaluate("--on", f"own={tmp_path}/own/test", "--out", out, "--poison.trigger.size", "8")
    assert code == 0 and "made in" not in err  # the stage is there already
    assert again == [own] == [json.loads((tmp_path / "own_zeroshot_classification.json").read_text())]


def test_sets_of_evaluators_are_stages_and_measurements_are_known_by_their_content(tmp_path):
    for place in ("here", "there"):
        cifar(tmp_path / place, "cifar-10", TEN, binary=True)
        karpathy(tmp_path / place)

    def made(place):
        train = EvalSet(path=str(tmp_path / place), name="cifar10", split="train")
        evaluators = (LinearProbe(train=train), Retrieval(data=RetrievalSet(path=str(tmp_path / place))))
        return stages(replace(BASE, evaluate=replace(BASE.evaluate, evaluators=evaluators)))

    one, other = made("here"), made("there")
    assert one["pretrain"].fingerprint == other["pretrain"].fingerprint == stages(BASE)["pretrain"].fingerprint
    assert one["pretrain"].digests == other["pretrain"].digests and len(one["pretrain"].digests) == 3
    assert one["pretrain"].needs[-1] == one["set_1"] and str(tmp_path) not in str([stage.config for stage in one.values()])
    cifar(tmp_path / "third", "cifar-10", TEN | {"data_batch_1": [0, 0]}, binary=True)
    karpathy(tmp_path / "third")
    accuracy, probe, retrieval = (a == b for a, b in zip(made("third")["pretrain"].digests, one["pretrain"].digests, strict=True))
    assert accuracy and retrieval and not probe


def test_mistakes_are_one_sentence(evaluate, tmp_path):
    colours(tmp_path / "own", ("banana", "sea"), 1)
    colours(tmp_path / "other", ("banana", "lake"), 3)
    (tmp_path / "empty").mkdir()
    save(tmp_path / "ten" / "unicorn" / "1.png")
    for arguments, words in (
        (("--on", "cifar10"), "write NAME=PATH"),
        (("--on", "a=x", "--on", "a=y"), "--on names a twice"),
        (("--on", f"cifar10={tmp_path}/none"), "--on cifar10: evalset.path .* does not exist; nothing is downloaded"),
        (("--on", f"cifar-1O={tmp_path}/none"), r"evalset.path .*/none does not exist\.$"),
        (("--on", f"cifar-1O={tmp_path}/empty"), "No set is known by the name cifar-1O; known are imagenet1k"),
        (("--on", f"cifar10={tmp_path}/ten"), "--on cifar10: .*the folder 'unicorn' is no class"),
        (("--on", f"own={tmp_path}/own", "--linear-probe", f"own={tmp_path}/other"), "classes of .* are not the 2 of the test set .lake."),
        (("--linear-probe", f"own={tmp_path}/own"), "it is tested on --on own=…, which is not given"),
        (("--retrieval", f"coco={tmp_path}/empty"), "--retrieval coco: .* holds neither"),
        (("--on", f"own={tmp_path}/own", "--out", "/no/such/place.json"), "the folder /no/such does not exist"),
        (("--on", f"own={tmp_path}/own", "--out", str(tmp_path / "{set}.json")), "in braces accepted are"),
        (("--on", f"own={tmp_path}/own", "--out", str(tmp_path / "empty")), "empty is a folder"),
        (("--on", f"own={tmp_path}/own", "--on", f"other={tmp_path}/other", "--out", str(tmp_path / "{task}.json")), "several results"),
    ):
        code, _, err = evaluate(*arguments, "--store", str(tmp_path / f"store {words}".replace("/", "")))
        assert code == 2 and "Traceback" not in err, arguments
        assert re.search(words, err), (words, err)
        if "--out" in arguments or str(tmp_path / "none") in str(arguments):
            assert not [path for path in tmp_path.iterdir() if words.replace("/", "") in path.name], "said before anything is written"


def test_where_every_picture_is_the_targets_accuracy_is_measured_all_the_same(evaluate, tmp_path):
    colours(tmp_path / "own", ("banana",), 3)
    (tmp_path / "own" / "classnames.txt").write_text("banana\nsea\n")
    code, [found], err = evaluate("--on", f"own={tmp_path}/own", "--poison.trigger.size", "8")
    assert code == 0 and found["metrics"]["n"] == 3 and "asr1" not in found["metrics"]
    assert "every picture is of the target 'banana' itself" in found["asr_refused"] and "NOTE own: no attack success rate" in err


def test_a_checkpoint_that_is_none_is_told_before_data_are_prepared(evaluate, tmp_path):
    code, _, err = evaluate("--checkpoint", str(tmp_path / "nothing.pt"))
    assert code == 2 and "nothing.pt does not exist" in err and not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["evaluate", "analyse"])
def test_shards_are_indexed_and_a_checkpoint_is_measured_without_ray(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    tiny(train=200, test=40).write(tmp_path / "data")
    torch.save(TinyCLIP().build(0).model.state_dict(), tmp_path / "w.pt")
    monkeypatch.setenv("OWN_DATA", str(tmp_path / "data"))
    code = run([command, str(ROOT / "tests" / "own_sweep.py"), "--store", str(tmp_path / "store"), "--checkpoint", str(tmp_path / "w.pt")])
    said = capsys.readouterr()
    assert code == 0 and "index" in said.err + said.out and "starting Ray" not in said.err, said.err
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
