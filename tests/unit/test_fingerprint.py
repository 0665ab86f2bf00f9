"""Fingerprints: stable text, nothing without one, nothing of how a run is executed."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from datasets.component import ADDED, Component
from datasets.errors import InputError
from datasets.triggers.patch import Patch
from orchestrator.fingerprint import canonical, encode, fingerprint


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
    program = "from datasets.triggers.patch import Patch; from orchestrator.fingerprint import fingerprint; print(fingerprint(Patch()))"
    root = Path(__file__).parents[2]
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env={"PYTHONHASHSEED": "7", "PATH": ""}, capture_output=True, text=True, check=True
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
    later: int | None = field(default=None, metadata=ADDED)


def test_a_field_that_was_added_leaves_no_trace_at_its_default():
    assert encode(Grown()) == {"class": f"{Grown.__module__}.Grown", "rate": 1.0}
    assert encode(Grown(later=3))["later"] == 3 and fingerprint(Grown(later=3)) != fingerprint(Grown())
