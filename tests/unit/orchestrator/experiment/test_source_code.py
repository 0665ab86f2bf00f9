"""A class of the user's own whose code changes: nothing is made anew, and that is said."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray import cloudpickle

from datasets.component import Component
from orchestrator.console.log import hearing
from orchestrator.experiment.source_code import code_of
from orchestrator.running.driver import _tell_of_other_code
from orchestrator.stages.base import seal
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import BASE
from tests.experiments import ROOT

SWEEP = '''
"""Mine."""
from dataclasses import dataclass, replace
from orchestrator.experiment.spec import Sweep
from sweeps.quickstart import BASE
from trainers.methods.base import Method
from trainers.objectives.contrastive import MMCL

@dataclass(frozen=True, kw_only=True)
class Base(Method):
    def train(self, model, run):
        run.fit(model, MMCL())
        return model

@dataclass(frozen=True, kw_only=True)
class Mine(Base):
    share: float = 0.5

SWEEP = Sweep(name="mine", base=replace(BASE, clean=replace(BASE.clean, method=Mine())))
'''


def told(folder: Path, name: str, text: str, store: Store, make: bool = False) -> list[str]:
    """What is said of the sweep of this text; with `make` its cleaning is made first."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "mine_own_code.py").write_text(text)
    plan = make_plan(load_sweep(str(folder / name / "mine_own_code.py")))
    if make:
        stage = stages(plan.sweep.base)["clean"]
        with store.working(stage.kind, stage.fingerprint) as work:
            (work / "metrics.jsonl").write_text("")
            seal(stage, store, 1.0)
    said: list[str] = []
    with hearing(said.append):
        _tell_of_other_code(plan, store)
    return said


@pytest.mark.parametrize(("was", "is_now", "notes"), [
    ("share: float = 0.5\n", "share: float = 0.5\n", 0),
    ("share: float = 0.5\n", "share: float = 0.5\n    def train(self, model, run):\n        return model\n", 1),
    ("run.fit(model, MMCL())", "run.fit(model, MMCL(clip_weight=2.0))", 1),  # of its base
    ("share: float = 0.5\n", "share: float = 0.5\n    version: int = 2\n    def train(self, model, run):\n        return model\n", 0),
    ('name="mine"', 'name="other"', 0),
])  # fmt: skip
def test_a_change_of_the_code_is_said(tmp_path, was, is_now, notes):
    store = Store(tmp_path / "store")
    assert told(tmp_path, "before", SWEEP, store, make=True) == []
    said = told(tmp_path, "after", SWEEP.replace(was, is_now), store)
    assert len(said) == notes
    if notes:
        assert "Mine has changed since clean mine-" in said[0] and "one more field" in said[0]


def test_the_projects_own_classes_are_not_noted():
    assert code_of((BASE.poison, BASE.pretrain, BASE.clean)) == ()
    assert all(stage.code == () for stage in stages(BASE).values())


def test_a_class_that_travelled_by_value_brings_it_along(tmp_path):
    """Stages are sealed in workers, which have no file of the sweep's."""
    (tmp_path / "mine_own_code.py").write_text(SWEEP)
    base = load_sweep(str(tmp_path / "mine_own_code.py")).base
    code = code_of(base.clean)
    arrived = cloudpickle.dumps(base.clean)
    shown = "import sys, pickle; from orchestrator.experiment.source_code import code_of; print(code_of(pickle.load(sys.stdin.buffer)))"
    for path in tmp_path.glob("*.py"):
        path.unlink()
    done = subprocess.run([sys.executable, "-c", shown], input=arrived, capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and done.stdout.decode().strip() == str(code), done.stderr.decode()[-500:]


def test_a_class_without_source_is_passed_over():
    made = type("Made", (Component,), {"__module__": "nowhere"})
    assert code_of(made()) == ()


def test_where_it_stands_within_others_does_not_matter(tmp_path):
    (tmp_path / "mine_own_code.py").write_text(SWEEP)
    base = load_sweep(str(tmp_path / "mine_own_code.py")).base
    [(name, digest)] = code_of(base.clean)
    assert name.endswith(".Mine") and len(digest) == 16
    assert code_of((1, (base.clean.method, base.clean.method))) == ((name, digest),)
    assert dict(stages(base)["clean"].code) == {name: digest} and stages(replace(base, clean=None))["pretrain"].code == ()
