"""The stage of an optimised patch: made before the plan, of the pairs without the poison, and stamped by everything after it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.attack.poison import Poison
from datasets.component import needs_of
from datasets.errors import InputError
from datasets.feed.loader import make_batch
from datasets.index.pairs import Pairs
from datasets.triggers.native import Native
from datasets.triggers.optimised import FILE, Optimised, OptimisedPatch
from datasets.triggers.words import DualKey, Words
from orchestrator.experiment.override import override
from orchestrator.experiment.spec import Given
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import At
from orchestrator.stages.graph import knowing_made, stages
from orchestrator.store import Store
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from trainers.model import Model, TinyCLIP

assert BASE.clean is not None
REFERENCE = replace(BASE.training, epochs=1)
NEED = OptimisedPatch(reference=REFERENCE, target="banana", size=8, epochs=2, batch_size=32, pictures=64, lr=0.05)
BADCLIP = replace(
    BASE, poison=Poison(trigger=Optimised(patch=NEED), target="banana", count=20), clean=replace(BASE.clean, epochs=1), prior=REFERENCE
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    code, said, study = run_here(replace(SWEEP, base=BADCLIP, space={}), folder)
    assert code == 0 and study is not None, said
    return folder


def test_the_patch_is_made_first_and_by_a_model_without_the_poison(made: Path) -> None:
    (patch,) = made.glob("patch/*")
    told = json.loads((patch / "summary.json").read_text())
    values = np.load(patch / "patch.npy")
    assert values.shape == (8, 8, 3) and values.dtype == np.float32 and told["pictures"] == 64
    assert told["sha256"] == hashlib.sha256((patch / "patch.npy").read_bytes()).hexdigest() and len(told["loss"]) == 2
    roles = stages(BADCLIP)
    assert list(roles)[:4] == ["world", "test_world", "index", "testset"] and list(roles).index("patch") < list(roles).index("poison")
    assert roles["patch"].inputs["reference"] == roles["prior"], "shared with an equal prior"
    assert roles["poison"].inputs["patch"] == roles["patch"]
    assert len(list(made.glob("pretrain/*/manifest.json"))) == 2


def test_victims_and_test_pictures_carry_it(made: Path) -> None:
    at, attack = At(store=Store(str(made))), stages(BADCLIP)["poison"]
    assert isinstance(attack, AttackPlan)
    known = knowing_made(BADCLIP, at)
    assert stages(known) == stages(BADCLIP)
    inputs = attack.read(at)
    rows = pq.read_table(inputs.plan)["row"].to_numpy()
    plain = Pairs(inputs.index, inputs.urls)
    stamped, clean = (make_batch(pairs.records(rows), 0, known.recipe())["image"] for pairs in (inputs.pairs(), plain))
    (patch,) = made.glob("patch/*")
    assert np.abs(stamped[:, 12:20, 12:20] - 255 * np.load(patch / "patch.npy")).max() <= 0.501
    stamped[:, 12:20, 12:20] = clean[:, 12:20, 12:20]
    assert (stamped == clean).all()
    summary = json.loads((at.of(attack).folder / "summary.json").read_text())
    assert summary["visibility"]["eval"] == 100


def test_its_fields_and_reference_are_the_attacks_identity_its_place_is_not() -> None:
    one = stages(BADCLIP)
    for path, value in {"patch.seed": 1, "patch.size": 9, "patch.lr": 0.1, "patch.reference.epochs": 2}.items():
        other = stages(override(BADCLIP, f"poison.trigger.{path}", value))
        assert all(other[role] != one[role] for role in ("patch", "poison", "pretrain")), path
        assert other["index"] == one["index"] and other["prior"] == one["prior"]
    assert stages(override(BADCLIP, "poison.trigger.path", "/elsewhere/patch.npy"))["pretrain"] == one["pretrain"]


def test_a_dual_key_and_several_attacks_pass_the_need_on() -> None:
    dual = Poison(name="dual", trigger=DualKey(picture=Optimised(patch=NEED), words=Words(text="cf")), target="banana", count=5)
    several = replace(BADCLIP, poison=None, attacks=(dual, replace(BASE.poison, name="corner")))
    assert needs_of(several.poisons) == (NEED,) and stages(several)["patch"] == stages(BADCLIP)["patch"]
    for trigger in (dual.trigger, Native(trigger=Optimised(patch=NEED))):
        assert f"path='/made/{FILE}'" in repr(trigger.with_made({NEED: "/made"})), "inside another trigger too"


def test_a_given_reference_is_known_by_its_bytes(made: Path, tmp_path: Path) -> None:
    (weights, *_) = sorted(made.glob("pretrain/*unpoisoned*/epoch_0001"))
    given = Given(model=TinyCLIP(), checkpoint=str(weights))
    own = override(BADCLIP, "poison.trigger.patch.reference", given)
    assert "reference" not in stages(own)["patch"].inputs
    (tmp_path / "epoch_0001").symlink_to(weights)
    moved = override(own, "poison.trigger.patch.reference.checkpoint", str(tmp_path / "epoch_0001"))
    assert stages(moved)["poison"] == stages(own)["poison"] != stages(BADCLIP)["poison"]


def test_a_patch_for_another_target_is_refused() -> None:
    with pytest.raises(InputError, match="trigger.patch.target is 'banana', but the attack's target is 'circle'"):
        stages(override(BADCLIP, "poison.target", "circle"))


@pytest.mark.parametrize(
    ("reference", "told"),
    [(TinyCLIP(), "is a TinyCLIP; accepted: a Pretrain, a Given, or a Model"), (Model(), "is a Model; accepted"),
     (replace(REFERENCE, model=TinyCLIP(image_size=64)), "takes pictures of 64 pixels, the attacked model of 32")],
)  # fmt: skip
def test_a_reference_that_cannot_be_is_refused(reference: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        stages(replace(BADCLIP, poison=Poison(trigger=Optimised(patch=replace(NEED, reference=reference)), target="banana", count=5)))
