"""Plan, show, run, MLflow and report walk the stages and ask them; they name no kind."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune

from orchestrator.commands.show import plan_rows, plan_text
from orchestrator.experiment.spec import Compute, Sweep
from orchestrator.manifest import OURS
from orchestrator.stages import base
from orchestrator.stages.graph import cleaned_by, stages, trained_by
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from tests.inprocess import without_ray
from tests.own_stage import Guided, Hinted
from tests.tiny_sweep import BASE, SWEEP

ROOMS = ("commands", "running", "sweep", "tracking")
ROOT = Path(__file__).resolve().parents[4] / "orchestrator"


def kinds_named(source: str) -> list[int]:
    """Lines that look a stage up by a word, compare a stage's kind with one, or find it in the store by one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        words = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and one.value in OURS]
        if not words:
            continue
        looked_up = isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and ast.unparse(node.value).startswith(
            ("stages(", "made")
        )
        compared = isinstance(node, ast.Compare) and any(
            isinstance(one, ast.Attribute) and one.attr == "kind" for one in (node.left, *node.comparators)
        )
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("find", "work", "lock")
        sought = called and isinstance(node.args[0], ast.Constant)  # type: ignore[union-attr]
        found += [node.lineno] if looked_up or compared or sought else []
    return found


def test_no_room_above_the_stages_names_a_kind():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 20
    assert not {str(path): lines for path in files if (lines := kinds_named(path.read_text()))}


@pytest.mark.parametrize(
    "source", ['stages(one)["clean"]', 'made["pretrain"].name', 'x = stage.kind == "clean"', 'store.find("poison", digits)']
)
def test_a_kind_that_is_named_is_seen(source):
    assert kinds_named(source) == [1]


def test_stages_tell_what_they_train_on(tmp_path):
    store, made = Store(tmp_path), stages(BASE)
    pairs = {role: stage.pairs(store) for role, stage in made.items()}
    assert pairs == {**dict.fromkeys(made, 0), "pretrain": 2 * 384, "clean": 3 * 96}, "whole batches of 32"
    assert {role for role, stage in made.items() if stage.pretrained} == {"pretrain", "clean"}
    assert cleaned_by(BASE).pretrained == trained_by(BASE)
    fewer = replace(BASE, data=replace(BASE.data, subset=100))
    assert trained_by(fewer).pairs(store) == 2 * 96


def test_a_stage_of_ones_own_is_asked_as_the_others_are(tmp_path, monkeypatch):
    """One that trains tells the plan how many pairs; before these are known the plan says so, and a given rate gives its time."""
    guided = Sweep(name="guided", base=replace(BASE, clean=replace(BASE.clean, method=Guided())))
    plan, compute = make_plan(guided), Compute(store=str(tmp_path))

    def row():
        return next(row for row in plan_rows(plan, compute, 100.0) if row["stage"] == "hint")

    assert (row()["pairs"], row()["hours"]) == (0, None)
    monkeypatch.setattr(Hinted, "pairs", lambda self, store: 720)
    assert (row()["pairs"], row()["hours"]) == (720, 720 / 100 / 3600)
    monkeypatch.setattr(Hinted, "pairs", lambda self, store: None)
    assert "The number of pairs is known once the shards are indexed." in plan_text(plan, compute, plan_rows(plan, compute, None))


def test_what_optuna_draws_is_one_row(tmp_path):
    drawn = replace(SWEEP, search="optuna", num_samples=7, space={"clean.lr": tune.loguniform(1e-4, 1e-2)})
    plan = make_plan(drawn)
    assert not [stage for stage in plan.known().values() if stage.trial]
    rows = plan_rows(plan, Compute(store=str(tmp_path)), None)
    assert [(row["name"], row["pairs"]) for row in rows if row["stage"] == "clean"] == [("7 drawn trials", 7 * 3 * 96)]
    assert [row["stage"] for row in rows] == sorted((row["stage"] for row in rows), key=OURS.index)
    assert "1 pre-training, 7 cleanings." in plan_text(plan, Compute(store=str(tmp_path)), rows)


def test_a_stage_is_checked_against_the_machines_before_a_run():
    with pytest.raises(base.InputError, match="workers"):
        trained_by(BASE).check(Compute(workers=3))
    with pytest.raises(base.InputError, match="workers"):
        cleaned_by(BASE).check(Compute(trial_workers=5))
    stages(BASE)["index"].check(Compute(workers=3))


def test_a_plan_says_what_run_would_refuse(tmp_path):
    """More victims than the stored index can give; before the index is there nobody knows."""
    many = replace(SWEEP, base=replace(BASE, poison=replace(BASE.poison, count=4000)))
    plan, compute = make_plan(many), Compute(store=str(tmp_path))
    assert not any(row["refused"] for row in plan_rows(plan, compute, None))
    with without_ray():
        base.ensure(stages(BASE)["index"], base.At(store=Store(tmp_path)))
    rows = plan_rows(plan, compute, None)
    [(kind, refused)] = [(row["stage"], row["refused"]) for row in rows if row["refused"]]
    assert kind == "poison" and refused.startswith("poison asks for 4000 victims, but of 400 samples only")
    assert f"WARNING `run` will stop at poison banana: {refused}" in plan_text(plan, compute, rows)
    with pytest.raises(base.InputError, match="poison asks for 4000 victims"), without_ray():
        base.ensure(stages(many.base)["poison"], base.At(store=Store(tmp_path)))
    assert not any(row["refused"] for row in plan_rows(make_plan(SWEEP), compute, None))
