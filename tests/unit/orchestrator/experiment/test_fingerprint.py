"""Fingerprints: stable text, nothing without one, nothing of how a run is executed."""

import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ray import tune

import datasets
import orchestrator
import trainers
from datasets.component import NEUTRAL, Component, since
from datasets.errors import InputError
from datasets.triggers.patch import Patch
from orchestrator.experiment.fingerprint import canonical, described, encode, fingerprint
from orchestrator.sweep.plan import make_plan
from tests.experiments import ROOT
from tests.tiny_sweep import SWEEP as TINY
from trainers.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Thing(Component):
    rate: float = 1.0
    names: tuple[str, ...] = ("a",)
    inner: Patch | None = None


def test_whole_numbers_and_lists_are_the_floats_and_tuples_they_stand_for():
    assert canonical(Thing(rate=1, names=["a"])) == canonical(Thing(rate=1.0, names=("a",)))


def test_every_field_and_the_class_enter():
    base = fingerprint(Thing())
    assert fingerprint(Thing(rate=2.0)) != base
    assert fingerprint(Thing(names=("a", "b"))) != base
    assert fingerprint(Thing(inner=Patch())) != base
    assert encode(Thing())["class"].endswith("test_fingerprint.Thing")


def test_same_in_another_process_with_another_hash_seed():
    program = "from datasets.triggers.patch import Patch; "
    program += "from orchestrator.experiment.fingerprint import fingerprint as of; print(of(Patch()))"
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": "7", "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == fingerprint(Patch())


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, Path("x"), object(), {"a": lambda: 0}, {1: 2}, b"bytes"]
)
def test_values_without_a_stable_text_are_refused(value):
    with pytest.raises(InputError):
        canonical(value)


def test_the_refusal_names_the_field():
    with pytest.raises(InputError, match=r"sweep\.steps\[1\]"):
        encode({"steps": [1, {2}]}, "sweep")


def test_canonical_json_is_sorted_ascii_without_spaces():
    text = canonical({"b": 1, "a": "é"})
    assert text == '{"a":"\\u00e9","b":1}'
    assert json.loads(text) == {"a": "é", "b": 1}


@dataclass(frozen=True, kw_only=True)
class Grown(Component):
    rate: float = 1.0
    later: int | None = since(None)
    threads: int = field(default=1, metadata=NEUTRAL)


def test_a_field_that_was_added_leaves_no_trace_at_its_default():
    assert encode(Grown()) == {"class": f"{Grown.__module__}.Grown", "id": "Grown", "rate": 1.0}
    assert encode(Grown(later=3))["later"] == 3 and fingerprint(Grown(later=3)) != fingerprint(Grown())


def test_a_neutral_field_is_no_part_of_the_identity_and_people_see_it():
    assert fingerprint(Grown(threads=8)) == fingerprint(Grown()) and described(Grown(threads=8))["threads"] == 8


def test_a_class_that_was_moved_or_renamed_is_known_by_its_id():
    body = {"__annotations__": {"rate": float}, "rate": 1.0}
    moved = dataclass(frozen=True, kw_only=True)(type("Grown", (Component,), {**body, "__module__": "elsewhere"}))
    renamed = dataclass(frozen=True, kw_only=True)(type("Risen", (Component,), {**body, "id": "Grown"}))
    assert fingerprint(moved()) == fingerprint(renamed()) == fingerprint(Grown())
    assert encode(moved())["class"] == "elsewhere.Grown"

    class Derived(Grown):
        pass

    assert Derived.id == "Derived" and fingerprint(Derived()) != fingerprint(Grown()), "nothing goes by the id of what it was derived from"


def test_no_two_classes_of_the_project_have_one_id():
    for package in (datasets, trainers, orchestrator):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: dict[str, set[str]] = {}
    waiting = [Component]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.partition(".")[0] in ("datasets", "trainers", "orchestrator", "sweeps"):
            found.setdefault(cls.id, set()).add(f"{cls.__module__}.{cls.__qualname__}")
    assert len(found) > 20 and not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_two_classes_of_one_id_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class CleanCLIP(Method):
        def train(self, model, run):
            return model

    sweep = replace(TINY, space={"clean.method": tune.grid_search([CleanCLIP()])})
    with pytest.raises(InputError, match=r"CleanCLIP has the id 'CleanCLIP', as .*finetune.CleanCLIP has.*give it an id of its own"):
        make_plan(sweep)
    CleanCLIP.id = "LabsOwn"
    assert make_plan(sweep).grid


def test_an_id_of_the_project_is_taken_even_if_its_module_was_never_imported():
    words = """
from dataclasses import dataclass
import sys
from datasets.errors import InputError
from orchestrator.experiment.ids import check_ids, project_class
from trainers.methods.base import Method

@dataclass(frozen=True, kw_only=True)
class TBAR(Method):
    pass

assert "trainers.methods.tbar" not in sys.modules
try:
    check_ids([TBAR])
except InputError as error:
    print(error)
assert project_class("nothing of the project") is None
"""
    output = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout
    assert output.startswith("__main__.TBAR has the id 'TBAR', as trainers.methods.tbar.TBAR has")
