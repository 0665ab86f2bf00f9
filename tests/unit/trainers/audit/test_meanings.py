"""The table of what numbers are: each row is reached, and says what it has to. That no number lacks one is checked in conftest.py."""

from __future__ import annotations

import re

import pytest

from trainers.audit.meanings import MEANINGS, Meaning, meaning

PART = re.compile(r"<[^>]+>")


@pytest.mark.parametrize("name", MEANINGS)
def test_a_row_is_found_by_its_names_and_says_unit_direction_and_a_sentence(name: str) -> None:
    row = MEANINGS[name]
    assert row.heading and row.unit and row.text and not row.text.endswith(".") and row.better in ("higher", "lower", "–")
    assert set(PART.findall(row.heading)) <= set(PART.findall(name))
    one = PART.sub("7", name)
    for end in ("", "_low", "_high"):
        found = meaning(one + end)
        assert found is not None and found[0] == name, "no row before it takes its names away"
        assert found[1] == row._replace(heading=PART.sub("7", row.heading))


def test_headings_are_different_within_an_audit_and_hold_the_names_parts() -> None:
    of: dict[str, list[str]] = {}
    for name, row in MEANINGS.items():
        of.setdefault(name.split("/")[1] if name.startswith("bias/") else name.split("/")[0], []).append(row.heading)
    assert all(len(set(headings)) == len(headings) for headings in of.values())
    for name, heading in {
        "bias/corruptions/jpeg_compression/3": "jpeg compression, severity 3", "bias/balance/class/a/b_n": "pictures of a/b",
        "bias/balance/class/ice_cream": "accuracy of ice_cream", "bias/balance/red-green/count/red": "captions with red",
        "filter/JPEG75/bare/ra": "recovery accuracy without the filter", "robust/at_0.0157": "accuracy under attack, ε = 0.0157",
        "explain/lime-grid-8/clean/mass": "heat on the trigger, same pictures without trigger",
    }.items():  # fmt: skip
        found = meaning(name)
        assert found is not None and found[1].heading == heading


def test_an_audits_own_rows_come_first_and_what_nobody_explains_has_none() -> None:
    own = {"robust/n": Meaning("mine", "apples", "higher", "how many"), "own/<x>": Meaning("of <x>", "pears", "–", "some")}
    assert meaning("robust/n", own) == ("robust/n", own["robust/n"]) and meaning("robust/clean", own) == meaning("robust/clean")
    assert meaning("own/a_high", own) == ("own/<x>", Meaning("of a", "pears", "–", "some"))
    assert meaning("own/a") is None and meaning("robust") is None and meaning("robust/other") is None
