"""Sweep files that go wrong: one sentence that names file and line. What overrides and seeds make of a sweep."""

import subprocess
import sys
from dataclasses import replace

import pytest
from ray import cloudpickle, tune

from datasets.errors import InputError
from orchestrator.commands import cli
from orchestrator.experiment.spec import Sweep
from orchestrator.stages.graph import stages
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from tests.experiments import ROOT
from tests.tiny_sweep import BASE, SWEEP
from trainers.methods.finetune import CleanCLIP, MMCLFineTune
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.objectives.contrastive import MMCLSSL


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1\nint('a')\n", "line 2 cannot be read as a sweep: ValueError"),
    ("{}['key']\n", "line 1 cannot be read as a sweep: KeyError: 'key'"),
    ("def f():\n    open('/no/such')\n\nf()\n", "line 4 .*FileNotFoundError"),
    ("import sys\nsys.exit(3)\n", "line 2 .*SystemExit"),
    ("x = = 1\n", "line 1 .*SyntaxError"),
    ("import no_such_module\n", "line 1: No module named"),
    ("from orchestrator.experiment.spec import Compute\nCompute(workers=0)\n", "line 2: Compute.workers is 0"),
])
def test_a_file_that_raises(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=f"mine.py, {said}"):
        load_sweep(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(("field", "value"), [
    ("space", None), ("space", {1: 2}), ("base", 3), ("name", ""), ("name", "a/b"), ("num_samples", "a"), ("gate", None), ("compute", 1),
])
def test_a_field_of_another_kind(field, value):
    with pytest.raises(InputError, match=rf"Sweep\.{field}\b"):
        replace(SWEEP, **{field: value})
    assert isinstance(SWEEP, Sweep)


@pytest.mark.parametrize(("field", "value"), [
    ("subset", 0), ("subset", -3), ("max_dropped", 2), ("max_dropped", -0.1), ("max_dropped", float("nan")),
])
def test_a_number_of_pairs_or_a_share_that_is_none(field, value):
    with pytest.raises(InputError, match=rf"Data\.{field} is {value}; accepted: a .*number \(at least"):
        replace(BASE.data, **{field: value})
    for good in ({"subset": 1}, {"subset": None}, {"max_dropped": 0}, {"max_dropped": 1}):
        replace(BASE.data, **good)


BOTH = (BASE.pretrain, replace(BASE.pretrain, objective=MMCLSSL(), batch_size=16))
WHOLE = replace(SWEEP, space={
    "pretrain": tune.grid_search(list(BOTH)),
    "clean": tune.grid_search([
        replace(BASE.clean, method=method, lr=lr) for method in (MMCLFineTune(), CleanCLIP(), ShrinkPerturb()) for lr in (1e-3, 3e-3)
    ]),
})  # fmt: skip
"""Varies whole components, as the sweeps of the study do at full size."""


@pytest.fixture
def load(monkeypatch):
    """Loads a sweep that is given in place of one that is named."""

    def loaded(sweep, overrides=None, seeds=None):
        monkeypatch.setattr("tests.tiny_sweep.SWEEP", sweep)
        return load_sweep("tests.tiny_sweep", overrides, seeds=seeds)

    return loaded


def grid(sweep, path):
    return sweep.space[path]["grid_search"]


def fingerprints(sweep):
    return {(stage.kind, stage.fingerprint) for _, experiment in make_plan(sweep).grid for stage in stages(experiment).values()}


def test_an_override_below_a_varied_path_reaches_each_value_of_its_grid(load):
    sweep = load(WHOLE, {"pretrain.precision": "bf16", "pretrain.seed": "1", "pretrain.batch_size": "8", "clean.epochs": "5"})
    wanted = {"precision": "bf16", "seed": 1, "batch_size": 8}
    assert grid(sweep, "pretrain") == [replace(stage, **wanted) for stage in BOTH]
    assert grid(sweep, "clean") == [replace(stage, epochs=5) for stage in grid(WHOLE, "clean")]
    assert sweep.base == replace(BASE, pretrain=replace(BASE.pretrain, **wanted), clean=replace(BASE.clean, epochs=5))


def test_a_field_of_some_values_is_set_in_those_that_have_it(load):
    sweep = load(WHOLE, {"clean.method.shrink_lambda": "0.5"})
    assert [getattr(stage.method, "shrink_lambda", None) for stage in grid(sweep, "clean")] == [None] * 4 + [0.5] * 2
    assert sweep.base == BASE


@pytest.mark.parametrize(("overrides", "said"), [
    ({"pretrain": "1"}, "--pretrain: the sweep tiny varies pretrain itself"),
    ({"pretrain.precison": "bf16"}, "--pretrain.precison: Pretrain has no field 'precison'.*Did you mean 'precision'"),
    ({"clean.method.clusters": "5"}, "MMCLFineTune has no field.*Nor have the other values.*grid of clean: CleanCLIP, ShrinkPerturb"),
    ({"clean.lr": "1"}, "--clean.lr: the sweep tiny varies it itself, in its grid of clean .0.001, 0.003."),
    ({"pretrain.objective.inmodal_weight": "4"}, "varies it itself, in its grid of pretrain .0.0, 1.0."),
    ({"pretrain.epochs": "two"}, "pretrain.epochs: 'two' is a str; accepted: a whole number"),
])  # fmt: skip
def test_what_cannot_be_set_below_a_varied_path(load, overrides, said):
    with pytest.raises(InputError, match=said):
        load(WHOLE, overrides)


def test_fields_that_only_together_make_values_alike(load):
    pair = [replace(BASE.clean, lr=1e-3, batch_size=16), replace(BASE.clean, lr=3e-3, batch_size=8)]
    sweep = replace(SWEEP, space={"clean": tune.grid_search(pair)})
    assert [stage.lr for stage in grid(load(sweep, {"clean.batch_size": "4"}), "clean")] == [1e-3, 3e-3]
    with pytest.raises(InputError, match="--clean.batch_size and --clean.lr together make values of the sweep's grid of clean alike"):
        load(sweep, {"clean.batch_size": "4", "clean.lr": "1"})


def test_a_drawn_space_keeps_what_is_below_it(load):
    drawn = replace(SWEEP, space={"clean.method": tune.choice([MMCLFineTune(), CleanCLIP()])})
    with pytest.raises(InputError, match="varies clean.method itself"):
        load(drawn, {"clean.method.inmodal_weight": "4"})


@pytest.mark.parametrize("space", [
    {"pretrain.objective": tune.grid_search([MMCLSSL()])},
    {"pretrain.objective": tune.grid_search([MMCLSSL()]), "pretrain.seed": tune.grid_search([7, 0])},
    {"pretrain": tune.grid_search([replace(BASE.pretrain, objective=MMCLSSL(), seed=seed) for seed in (5, 6)])},
])
def test_seeds_repeat_every_pre_training_as_a_sweep_written_with_them(load, space):
    """And take the place of the seeds that the sweep has; the prior keeps its own."""
    base = replace(BASE, prior=replace(BASE.pretrain, seed=100))
    mine = load(replace(SWEEP, base=base, space=space | SWEEP.space), seeds=[0, 1, 2])
    by_hand = replace(SWEEP, base=base, space={
        "pretrain.seed": tune.grid_search([0, 1, 2]), "pretrain.objective": tune.grid_search([MMCLSSL()]), **SWEEP.space,
    })  # fmt: skip
    assert fingerprints(mine) == fingerprints(by_hand)
    assert [kind for kind, _ in fingerprints(mine)].count("pretrain") == 1 + 3


def test_the_seeds_of_a_miniature_are_the_sweep_that_it_is():
    assert (make_plan(load_sweep("sweeps.main_cc3m", miniature=True, seeds=[0, 1, 2])).fingerprint
            == make_plan(load_sweep("sweeps.main_cc3m", miniature=True)).fingerprint)  # fmt: skip


def test_three_seeds_at_full_size_are_six_pre_trainings_and_three_times_the_cleanings():
    one, three = (make_plan(load_sweep("sweeps.main_cc3m", seeds=seeds)) for seeds in (None, [0, 1, 2]))
    found = [(experiment.pretrain.seed, experiment.pretrain.objective.label) for _, experiment in three.upstream]
    assert found == [(seed, label) for seed in range(3) for label in ("MMCL", "MMCL+SSL")]
    assert len(three.grid) == 3 * len(one.grid) == 72


def test_plan_counts_pre_trainings_and_names_the_fields_that_can_be_set(load, tmp_path, capsys):
    load(WHOLE)
    assert cli.run(["plan", "tests.tiny_sweep", "--seeds", "0,1,2", "--clean.epochs", "5", "--store", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "6 pre-trainings, 36 cleanings." in told
    assert "pretrain.lr = 0.003\n" in told and "clean.epochs = 5\n" in told
    assert "pretrain.seed = (varied by the sweep)\n" in told and "clean.lr = (varied by the sweep)\n" in told


def test_a_neighbour_of_the_sweep_file_travels_with_it(tmp_path):
    (tmp_path / "lab_methods.py").write_text(
        "from dataclasses import dataclass\nfrom trainers.methods.finetune import CleanCLIP\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Gentle(CleanCLIP):\n    share: float = 0.25\n"
    )
    (tmp_path / "lab.py").write_text(
        "from dataclasses import replace\nfrom lab_methods import Gentle\nfrom tests.tiny_sweep import BASE, SWEEP as TINY\n\n"
        "SWEEP = replace(TINY, base=replace(BASE, clean=replace(BASE.clean, method=Gentle())), space={})\n"
    )
    sweep = load_sweep(str(tmp_path / "lab.py"))
    sent = cloudpickle.dumps(sweep.base.clean)
    there = "import sys, pickle; method = pickle.load(sys.stdin.buffer).method; print(type(method).__name__, method.share)"
    done = subprocess.run([sys.executable, "-c", there], input=sent, capture_output=True, cwd=ROOT, timeout=60)
    assert done.stdout.decode().split() == ["Gentle", "0.25"], done.stderr.decode()[-500:]


def test_every_command_names_the_same_sweep_by_the_same_words(load, monkeypatch):
    load(WHOLE)
    named = []

    def note(plans, *rest):
        named.extend([plans] if not isinstance(plans, list) else plans)
        raise InputError("seen")

    for command, reader in (("run", "run_sweep"), ("report", "report_sweep"), ("claims", "judge_claims")):
        monkeypatch.setattr(f"orchestrator.running.driver.{reader}", note)
        assert cli.run([command, "tests.tiny_sweep", "--seeds", "3,4", "--pretrain.precision", "bf16"]) == 2
    wanted = load(WHOLE, {"pretrain.precision": "bf16"}, [3, 4])
    assert [plan.fingerprint for plan in named] == [make_plan(wanted).fingerprint] * 3


def test_python_itself_may_lie_below_the_folder_of_a_sweep() -> None:
    """As in a home with a Python of its own: the standard library's modules are on every worker, and many cannot be sent by value."""
    program = """
import sys
from pathlib import Path
from orchestrator.sweep import loading
assert "asyncio" not in sys.modules and "ray" not in sys.modules
with loading._own_modules(Path(sys.base_prefix).parent):
    import asyncio
from orchestrator.cluster import by_value
by_value.tell_ray()
from ray import cloudpickle
assert not cloudpickle.list_registry_pickle_by_value(), cloudpickle.list_registry_pickle_by_value()
assert cloudpickle.loads(cloudpickle.dumps(asyncio.Queue)) is asyncio.Queue
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
