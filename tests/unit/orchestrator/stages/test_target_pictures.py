"""Targeted poisoning: which pictures, what victims become, and how many of the pictures are taken for the target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.feed.loader import make_batch
from datasets.seeding import hash64, rng
from datasets.triggers.targeted import Targeted, TargetPictures
from orchestrator.experiment.override import override
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import At
from orchestrator.stages.graph import knowing_made, stages
from orchestrator.store import Store
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from tests.unit.trainers.evaluate.test_evaluate import CLASSES, oracle
from trainers.evaluate.targeted import TargetedSuccess
from trainers.evaluate.zeroshot import wilson

TARGETED = replace(
    BASE, poison=Poison(trigger=Targeted(chosen=TargetPictures(pictures=5), noise=3), target="banana", count=30), clean=None,
    evaluate=replace(BASE.evaluate, evaluators=(TargetedSuccess(),)),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("store")
    code, said, study = run_here(replace(SWEEP, base=TARGETED, space={}), folder)
    assert code == 0 and study is not None, said
    return folder, study.pretrains[0].metrics[-1]["metrics"]


def test_the_pictures_are_those_of_other_classes_with_the_smallest_hashes(made: tuple[Path, dict]) -> None:
    (chosen,) = made[0].glob("targets/*")
    told, pictures = json.loads((chosen / "summary.json").read_text()), np.load(chosen / "pictures.npy")
    assert pictures.shape == (5, 32, 32, 3) and pictures.dtype == np.uint8 and len({one.tobytes() for one in pictures}) == 5
    at, test = At(store=Store(str(made[0]))), stages(TARGETED)["testset"]
    pairs = test.read(at).pairs()  # type: ignore[attr-defined]
    banana = BASE.evaluate.data.class_names.index("banana")
    others = [key for key, label in zip(pairs.keys().to_pylist(), pairs.labels().tolist()) if label != banana]
    assert set(told["keys"]) == set(sorted(others, key=lambda key: hash64(0, "targets", key))[:5]) and banana not in told["labels"]


def test_each_victim_is_a_near_copy_of_one_of_them(made: tuple[Path, dict]) -> None:
    at, attack = At(store=Store(str(made[0]))), stages(TARGETED)["poison"]
    assert isinstance(attack, AttackPlan)
    inputs, known = attack.read(at), knowing_made(TARGETED, at)
    plan = pq.read_table(inputs.plan)
    stamped = make_batch(inputs.pairs().records(plan["row"].to_numpy()), 0, known.recipe())["image"].astype(int)
    (chosen,) = made[0].glob("targets/*")
    distance = np.abs(stamped[:, None] - np.load(chosen / "pictures.npy").astype(int)[None]).max(axis=(2, 3, 4))
    assert (distance.min(axis=1) == 3).all() and len(set(distance.argmin(axis=1))) == 5
    assert all("banana" in caption for caption in plan["caption_after"].to_pylist())


def test_success_is_counted_with_its_interval(made: tuple[Path, dict]) -> None:
    found = made[1]
    assert found["targeted/n"] == 5 and found["targeted/success"] == 20 * found["targeted/success_count"]
    image = np.zeros((7, 8, 8, 3), np.uint8)
    image[:, 0, 0, 0] = [3, 3, 1, 2, 3, 0, 5]
    batch = {"image": image, "target": 3, "class_names": CLASSES, "templates": ("a {}",)}
    told = TargetedSuccess().measure(oracle(obeys=False), [batch])
    assert told["targeted/success_count"] == 3 and told["targeted/success"] == pytest.approx(300 / 7)
    assert (told["targeted/success_low"], told["targeted/success_high"]) == wilson(3, 7)
    none = TargetedSuccess().measure(oracle(obeys=False), [{**batch, "image": image[2:4].repeat(8, axis=0)}])
    assert none["targeted/success"] == 0 and 19 < none["targeted/success_high"] < 20, "0 of 16"


def test_identity_is_the_choice_and_not_the_place() -> None:
    one = stages(TARGETED)
    for path, value in {"chosen.pictures": 6, "chosen.seed": 1, "noise": 4}.items():
        assert stages(override(TARGETED, f"poison.trigger.{path}", value))["pretrain"] != one["pretrain"], path
    assert stages(override(TARGETED, "poison.target", "circle"))["targets"] != one["targets"]
    assert stages(override(TARGETED, "poison.trigger.path", "/elsewhere"))["pretrain"] == one["pretrain"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trigger.chosen is not made yet"):
        Targeted().stamp(np.zeros((32, 32, 3), np.uint8), rng(0))
    with pytest.raises(InputError, match="a targeted attack needs one class and dirty_label"):
        stages(override(TARGETED, "poison.target", "all-to-all"))
    with pytest.raises(InputError, match="TargetedSuccess measures an attack with the trigger Targeted; there is Patch"):
        stages(replace(TARGETED, poison=BASE.poison))
    code, said, _ = run_here(replace(SWEEP, base=override(TARGETED, "poison.trigger.chosen.pictures", 61), space={}), tmp_path)
    assert code == 2 and "trigger.chosen.pictures is 61; the test set has 60 of other classes" in said
