"""Dotted paths: what they change, and what a wrong one says."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from datasets.component import Component, components
from datasets.errors import InputError
from datasets.triggers.base import Trigger
from datasets.triggers.patch import Patch
from orchestrator.experiment.override import from_text, get, override, override_all
from sweeps.quickstart import BASE
from trainers.objectives.contrastive import MMCLSSL


def test_a_path_changes_one_field_and_nothing_else():
    changed = override(BASE, "clean.lr", 5e-4)
    assert changed.clean.lr == 5e-4 and BASE.clean.lr == 1e-3
    assert override(changed, "clean.lr", BASE.clean.lr) == BASE


def test_components_may_be_values():
    assert get(override(BASE, "pretrain.objective", MMCLSSL()), "pretrain.objective") == MMCLSSL()


def changed(path, text):
    return override(BASE, path, from_text(BASE, path, text))


def test_fields_that_only_fit_together_change_together():
    rate = override_all(BASE, {"poison.count": None, "poison.rate": 0.05})
    assert rate.poison.rate == 0.05 and rate.poison.count is None
    with pytest.raises(InputError, match="count"):
        override(BASE, "poison.rate", 0.05)
    deeper = override_all(BASE, {"clean.method": BASE.clean.method, "clean.method.inmodal_weight": 4.0})
    assert deeper.clean.method.inmodal_weight == 4.0


def test_text_from_the_command_line_becomes_the_fields_type():
    assert changed("clean.lr", "1e-3").clean.lr == 1e-3
    assert changed("clean.epochs", "7").clean.epochs == 7
    assert changed("poison.target", "7").poison.target == "7"
    assert changed("data.subset", "none").data.subset is None
    assert changed("views.crop", "(0.9, 1)").views.crop == (0.9, 1.0)
    assert changed("views.augment", "none").views.augment == "none"
    assert changed("pretrain.checkpoint_every_steps", "none").pretrain.checkpoint_every_steps is None
    assert changed("pretrain.sync_batchnorm", "false").pretrain.sync_batchnorm is False


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("clean.lrr", 1, "Did you mean 'lr'"),
        ("clean.method.weight", 1, "inmodal_weight"),
        ("nothing", 1, "its fields are data, views"),
        ("clean.lr", "fast", "accepted: a number"),
        ("clean.epochs", 1.5, "a whole number"),
        ("clean.method", 3, "Method"),
        ("clean.lr", 0, "clean.lr is 0; accepted: a number (above 0)."),
        ("clean.lr", float("inf"), "is inf; accepted: a number (above 0)."),
        ("clean.epochs", 0.0, "clean.epochs is 0.0; accepted: a whole number (at least 1)."),
        ("data.subset", 0, "accepted: a whole number (at least 1) or none."),
        ("data.max_dropped", 1.5, "accepted: a number (at least 0 and at most 1)."),
        ("pretrain.betas", (0.9, 1), "pretrain.betas[1] is 1; accepted: a number (at least 0 and below 1)."),
        ("pretrain.model.image_size", 40, "accepted: a whole number (at least 32 and a multiple of 32)."),
        ("views.augment", "mixup", "views.augment is 'mixup'; accepted: autoaugment, simclr, none."),
        ("views.augment", 3, "3 is an int; accepted: autoaugment, simclr, none."),
        ("views.crop", (0.5,), "2"),
        ("clean.lr.deeper", 1, "has no field"),
        ("pretrain.order", 5, "pretrain.order: 5 is an int; accepted: an Order component (Drawn, Formula, Windows)."),
        ("pretrain.order", "windows", "accepted: an Order component (Drawn, Formula, Windows)."),
        ("views", 5, "accepted: a Views component."),
    ],
)
def test_mistakes_name_the_path_and_what_is_accepted(path, value, said):
    with pytest.raises(InputError) as error:
        override(BASE, path, value)
    assert path in str(error.value) and said in str(error.value)


def places(node, path=""):
    """(path, component) of every component below an experiment."""
    for field in dataclasses.fields(node):
        value, at = getattr(node, field.name), f"{path}{field.name}"
        if isinstance(value, Component):
            yield at, value
            yield from places(value, f"{at}.")


def test_every_field_for_a_component_names_the_class_that_it_holds():
    found = dict(places(BASE))
    assert {"pretrain.order", "pretrain.model", "pretrain.objective", "poison.trigger", "clean.method"} <= found.keys()
    for path, component in found.items():
        with pytest.raises(InputError) as error:
            override(BASE, path, 5)
        assert type(component).__name__ in str(error.value).partition("accepted")[2], path
    assert {type(one) for one in found.values()} <= {type(one) for one in components(BASE)}


def test_classes_that_nothing_has_used_are_named_too():
    root = Path(__file__).resolve().parents[4]
    bases = {}
    for file in sorted((root / "datasets" / "triggers").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.bases:
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)][0]
    below = {name for name, base in bases.items() if "Trigger" in (base, bases.get(base)) and name not in bases.values()}
    code = "from datasets.component import coerce\nfrom datasets.triggers.base import Trigger\ncoerce(5, Trigger, 'it')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    named = done.stderr.partition("accepted: a Trigger component (")[2].partition(")")[0].split(", ")
    assert set(named) == below and "Watermark" in below, done.stderr[-500:]


def test_a_component_that_is_no_dataclass_is_refused_for_its_fields_would_be_no_part_of_it() -> None:
    class Forgotten(Trigger):
        strength: int = 1
        unit: ClassVar[str] = "pixels"

    class Nothing(Patch):
        unit: ClassVar[str] = "pixels"

    with pytest.raises(InputError, match=r"Forgotten has the field 'strength' but is no dataclass: write @dataclass\(frozen=True"):
        Forgotten()
    assert Nothing(size=4).unit == "pixels"
