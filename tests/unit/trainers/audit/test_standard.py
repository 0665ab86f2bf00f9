"""The names of the command line: what each stands for, and that none is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trainers
from datasets.component import components
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.synthetic import World
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.base import Attack
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.nes import NES
from trainers.audit.base import Audit
from trainers.audit.black_box import Transfer
from trainers.audit.defences.base import Defence
from trainers.audit.standard import AUDITS, USUAL, Asked, named_audits

WORLD, SETS = World(train=7), (EvalSet(path="/elsewhere"),)
ASKED = Asked(eps=(1 / 255, 2 / 255, 4 / 255), size=32, classes=8, world=WORLD, sets=SETS)


def shipped(base: type) -> Iterator[type]:
    """The classes that can be made, among those that derive from it and are part of the project."""
    for one in base.__subclasses__():
        if one.__module__.startswith("trainers.") and not getattr(one, "__abstractmethods__", None):
            yield one
        yield from shipped(one)


def test_every_system_has_a_name() -> None:
    named = {type(one) for one in components(tuple(named_audits(tuple(AUDITS), ASKED)))}
    without = {one for base in (Audit, Attack, Defence) for one in shipped(base) if one not in named}
    assert without == {Transfer, FAB}, "a second model has to be given for the first; AutoAttack holds the second"


def test_every_way_of_an_attack_has_a_name() -> None:
    named = list(components(tuple(named_audits(tuple(AUDITS), ASKED))))
    assert {one.loss for one in named if isinstance(one, APGD)} == {"ce", "dlr", "targeted_dlr"}
    assert {one.sees for one in named if isinstance(one, NES)} == {"scores", "top_k", "labels"}
    assert [one.attack.eps for one in named_audits(("apgd-t",), ASKED)] == list(ASKED.eps)  # type: ignore[attr-defined]


def test_every_defence_is_tried_as_a_filter_of_triggers() -> None:
    tried = [type(audit.defence) for audit in named_audits(("filters",), ASKED)]  # type: ignore[attr-defined]
    assert set(tried) == set(shipped(Defence)) and len(tried) == len(set(tried)) == 6


def test_what_the_sweep_has_is_taken() -> None:
    (pairs,), both = named_audits(("attributes",), ASKED), named_audits(("datasets",), ASKED)
    found: Any = [pairs, *both]
    assert found[0].world == WORLD and [one.sets for one in found[1:]] == [SETS, SETS]
    assert [one.over for one in found[1:]] == ["pixels", "features"] and all(one.needs() == SETS for one in found[1:])
    for name, said in (("attributes", "procedural world.*AttributePairs"), ("datasets", "one alone.*NameThatDataset")):
        with pytest.raises(InputError, match=f"'{name}'.*{said}"):
            named_audits((name,), Asked(eps=(0.1,)))
    assert named_audits((), Asked(eps=(0.1,))), "the usual ones need nothing"


def test_the_page_of_names_lists_them_all() -> None:
    text = (Path(trainers.__file__).parents[1] / "docs" / "audit" / "README.md").read_text()
    table = text.split("| names for `--only` |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r"`([^`]+)`", " ".join(first))) == sorted(AUDITS) and set(USUAL) <= set(AUDITS)
