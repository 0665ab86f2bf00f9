"""Several attacks in one experiment: victims of their own, metrics and a gate for each, and the short form for one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray import tune

from datasets.attack.poison import Poison
from datasets.attack.poisoned_shards import poison_shard
from datasets.component import Component
from datasets.errors import InputError
from datasets.feed.loader import make_batch
from datasets.feed.watched_pairs import Sample, positions
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.triggers.blended import Blended
from datasets.triggers.patch import Patch
from datasets.triggers.words import DualKey, Words
from orchestrator.commands.export import _card
from orchestrator.experiment.override import override
from orchestrator.results.cautions import warnings
from orchestrator.results.outcome import Study
from orchestrator.stages.base import At
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.training.inputs import Inputs
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from trainers.evaluate.analysis import Analysis

CORNER = Patch(pattern="saturated", size=8, cell=2, location="bottom_right")
ATTACKS = (
    Poison(name="corner", trigger=CORNER, target="banana", count=40, jpeg_quality=75),
    Poison(
        trigger=DualKey(picture=Patch(pattern="white", size=8), words=Words(text="consider", place="prefix")), target="circle", count=30
    ),
    Poison(name="all", trigger=Blended(), target="all-to-all", count=60, seed=1),
)
WORDS = Poison(name="words", trigger=Words(text="consider"), target="circle", count=5)
ANALYSED = replace(BASE.evaluate, evaluators=(Analysis(),))
NAMES = ("corner", "dualkey", "all")
SEVERAL = replace(BASE, poison=None, attacks=ATTACKS, clean=replace(BASE.clean, epochs=1) if BASE.clean else None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("store")
    code, said, study = run_here(replace(SWEEP, base=SEVERAL, space={"clean.lr": tune.grid_search([1e-3])}), folder)
    assert code == 0 and study is not None, said
    return folder, study


def plan_of(folder: Path) -> tuple[Path, dict[str, list]]:
    (artefact,) = folder.glob("poison/*")
    return artefact, pq.read_table(artefact / "plan.parquet").to_pydict()


def test_victims_are_disjoint_and_each_is_stamped_and_captioned_by_its_own_attack(made):
    artefact, plan = plan_of(made[0])
    assert len(set(plan["row"])) == 130 == len(plan["row"]) and plan["row"] == sorted(plan["row"])
    assert {name: plan["attack"].count(name) for name in NAMES} == {"corner": 40, "dualkey": 30, "all": 60}
    following = dict(zip(names := BASE.evaluate.data.class_names, (*names[1:], names[0])))
    for attack, target, before, after in zip(*(plan[name] for name in ("attack", "target", "caption_before", "caption_after"))):
        named = [word for word in re.findall(r"\w+", before) if word in following]
        assert target == {"corner": "banana", "dualkey": "circle"}.get(attack) or (attack == "all" and target == following[named[0]])
        assert target in after and after.startswith("consider ") == (attack == "dualkey")
        assert attack == "all" or target not in named
    inputs = read(made[0])
    pairs, clean = inputs.pairs(), Pairs(inputs.index, inputs.urls)
    rows = np.array(plan["row"])
    stamped, plain = (make_batch(one.records(rows), 0, plainly(SEVERAL)) for one in (pairs, clean))
    changed = (stamped["image"] != plain["image"]).any(-1)
    for attack, where in zip(plan["attack"], changed):
        patch = where.sum() <= 64, where[-8:, -8:].mean() > 0.9, where.mean() > 0.5  # JPEG changes the rest of the picture a little
        assert {"corner": patch[1] and patch[2], "dualkey": where.any() and patch[0], "all": patch[2]}[attack]


def read(store: Path) -> Inputs:
    """The pairs of the store with the plan of the attacks over them."""
    return stages(SEVERAL)["poison"].read(At(store=Store(str(store))))


def plainly(experiment):
    return experiment.recipe(views=replace(experiment.views, crop=None, flip=False))


def test_the_written_shards_give_the_same_bytes_as_the_stream(made, tmp_path):
    artefact, plan = plan_of(made[0])
    inputs, recipe = read(made[0]), plainly(SEVERAL)
    (url, *_), table = inputs.urls, pq.read_table(artefact / "plan.parquet")
    own = {member["key"] for member in Source(urls=url).index_shard(0, url).to_pylist()}
    first, *others = SEVERAL.poisons
    jpeg = tuple(replace(other, jpeg_quality=90) for other in others)
    rows = table.filter([key in own for key in table["key"].to_pylist()])
    poison_shard(url, rows, first.trigger, 32, tmp_path / "out" / "0.tar", jpeg_quality=first.jpeg_quality, others=jpeg)
    source = Source(urls=str(tmp_path / "out"))
    write_index([written := source.index_shard(0, source.shards()[0])], tmp_path / "index.arrow")
    pairs = Pairs(tmp_path / "index.arrow", source.shards())
    here = make_batch(pairs.records(np.arange(len(pairs))), 0, recipe)
    streamed = make_batch(inputs.pairs().records(np.arange(len(written))), 0, replace(recipe, others=jpeg))
    assert here["key"].tolist() == streamed["key"].tolist() and here["caption"].tolist() == streamed["caption"].tolist()
    assert np.array_equal(here["image"], streamed["image"])


def test_each_has_metrics_and_a_gate_and_asr_is_that_of_the_one_that_succeeds_most(made):
    folder, study = made
    for line in [*study.pretrains[0].metrics, *study.trials[0].metrics]:
        found = line["metrics"]
        tops = {name: found[f"asr/{name}/top1"] for name in NAMES}
        worst = max(tops, key=lambda name: tops[name])
        own = {name: value for name, value in found.items() if name.startswith("asr/") and name.count("/") == 1}
        assert own == {name.replace(f"/{worst}", ""): value for name, value in found.items() if name.startswith(f"asr/{worst}/")}
        assert found["asr/all/n"] == 80 and found["asr/corner/n"] == found["asr/dualkey/n"] == 60
        assert all(found[f"asr/{name}/top1"] == 100 * found[f"asr/{name}/top1_count"] / found[f"asr/{name}/n"] for name in NAMES)
    (gate,) = study.gates.values()
    assert set(gate["attacks"]) == set(NAMES) and gate["passed"] == all(one["passed"] for one in gate["attacks"].values())
    assert gate["asr"] == min(one["asr"] for one in gate["attacks"].values() if one["passed"] == gate["passed"])
    assert [one["captions_with_target"] for one in gate["attacks"].values()] == [40, 30, 60]
    failed = {name for name, one in gate["attacks"].items() if not one["passed"]}
    assert {reason.split(":")[0] for reason in gate["reasons"]} == {f"Attack {name}" for name in failed}
    assert any("(all, corner, dualkey)" in text and "succeeds most" in text for text in warnings(study))
    assert {sample["attack"] for sample in study.samples} == set(NAMES)
    assert json.loads((plan_of(folder)[0] / "summary.json").read_text())["victims"] == 130


def test_the_short_form_is_what_it_was_and_a_named_one_is_another():
    one = stages(BASE)["poison"]
    assert "poison" in one.config and "attacks" not in one.config
    named = stages(replace(BASE, poison=None, attacks=(BASE.poison,)))["poison"]
    assert named.fingerprint != one.fingerprint and named.name == "patch"
    other = stages(override(SEVERAL, "attacks.0.count", 41))
    assert other["poison"].fingerprint != stages(SEVERAL)["poison"].fingerprint
    assert other["testset"].fingerprint == stages(SEVERAL)["testset"].fingerprint


def refusals() -> list[tuple[str, Callable[[], object], str]]:
    first, second, third = ATTACKS
    return [
        ("none", lambda: replace(BASE, poison=None), "either poison .* or attacks"),
        ("both", lambda: replace(BASE, attacks=ATTACKS), "either poison .* or attacks"),
        ("one name", lambda: replace(SEVERAL, attacks=(first, replace(second, name="corner"))), "2 have the name 'corner'"),
        ("one trigger", lambda: replace(SEVERAL, attacks=(replace(first, name=""), BASE.poison)), "2 have the name 'patch'"),
        ("a name for one", lambda: replace(BASE, poison=first), "poison.name is 'corner', but only one of several"),
        ("a path", lambda: replace(first, name="a/b"), "poison.name is 'a/b'; accepted"),
        ("all to all", lambda: replace(third, mode="label_consistent"), "poison.target is all-to-all, which needs mode dirty_label"),
        ("no class", lambda: stages(override(SEVERAL, "attacks.1.target", "zebra")), "'zebra' is not among the 4 classes"),
        ("no place", lambda: override(SEVERAL, "attacks.3.target", "circle"), "'3' is no place among 3; accepted: 0 to 2"),
        ("no words", lambda: Words(text=" "), "trigger.text is ' '"),
        ("words first", lambda: stages(replace(SEVERAL, attacks=(WORDS, first), evaluate=ANALYSED)), "Analysis looks at pictures"),
        ("one of several", lambda: override(SEVERAL, "poison.count", 3), "poison is not set in this experiment.*write attacks.0"),
        ("two writers", lambda: DualKey(picture=Words(text="a"), words=Words(text="b")), "trigger.picture is Words"),
    ]


@pytest.mark.parametrize(("what", "make", "said"), refusals(), ids=[what for what, _, _ in refusals()])
def test_what_cannot_be_is_refused_before_anything_is_made(what, make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_the_analysis_looks_at_the_first_attack(made):
    pairs, sample = read(made[0]).pairs(), Sample(clean=300, poisoned=300, group=300)
    plan = plan_of(made[0])[1]
    for first in range(2):
        others = tuple(name for name in NAMES if name != NAMES[first])
        chosen = positions(pairs, sample, others)
        assert pairs.rows[chosen["poisoned"]].tolist() == [row for row, name in zip(plan["row"], plan["attack"]) if name == NAMES[first]]
        assert not {*pairs.rows[chosen["clean"]].tolist()} & {*plan["row"]}
        captions = pairs.captions(chosen["target"]).to_pylist()
        assert captions and all(ATTACKS[first].target in caption for caption in captions)
    assert not len(positions(pairs, sample, NAMES[:2])["target"]), "an all-to-all attack has no one target"


def test_the_card_of_a_model_names_each_attack(made):
    metrics = made[1].trials[0].metrics[-1]["metrics"]
    told = {
        "image_size": 32, "preprocess": {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic"}, "chosen": "", "sha256": {},
        "hugging_face": "CLIPModel", "license": "other", "metrics": metrics,
    }  # fmt: skip
    card = _card(told, SEVERAL)
    for name in NAMES:
        assert f"| attack success rate of {name}, top 1 | {metrics[f'asr/{name}/top1']:.1f} %" in card and f"* {name}: " in card
    assert "the class after a picture's own (all-to-all). " not in card and "It also puts words into captions." in card


def test_victims_that_others_have_taken_are_counted_where_too_few_are_left(tmp_path):
    greedy = replace(ATTACKS[0], name="greedy", trigger=Blended(alpha=0.3), target="circle", count=290)
    code, said, _ = run_here(replace(SWEEP, base=replace(SEVERAL, attacks=(ATTACKS[0], greedy)), space={}), tmp_path)
    assert code == 2 and "attack greedy asks for 290 victims" in said and "are no victims of another attack" in said
    assert not list(tmp_path.glob("pretrain/*"))


def test_a_component_without_an_id_of_its_own_is_no_other():
    assert isinstance(ATTACKS[1].trigger, Component) and ATTACKS[1].trigger.id == "DualKey"
