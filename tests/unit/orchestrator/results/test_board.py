"""Boards and the ranking: what a cell is, ties, holes, attacks that did not take."""

from __future__ import annotations

import math

import pytest

from datasets.errors import InputError
from orchestrator.results.board import KINDS, MEASURED, MISSING, NO_MODEL, NOT_TAKEN, REPORTED, boards, ranking, rating, unequal_trials
from tests.unit.fake_cells import cell, many, reported

ATTACKS, DEFENCES = ["a", "b", "c", "d"], ["p", "q", "r", "s"]


def test_states_are_told_apart():
    (board,) = boards(many(ATTACKS, DEFENCES))
    assert board.attacks == (*ATTACKS, "clean model") and board.defences == ("none", *DEFENCES)
    assert board.state("a", "p", "oracle") == MEASURED
    assert board.state("b", "p", "oracle") == NOT_TAKEN and board.state("b", "none", "oracle") == MEASURED and not board.took("b", "none")
    assert board.state("c", "q", "oracle") == NO_MODEL and board.state("c", "q", "blind") == MEASURED
    assert board.state("d", "r", "blind") == MISSING and board.missing() == [("d", "r")]
    assert board.state("d", "s", "blind") == REPORTED


def test_rating_by_hand():
    assert rating(60, 100, 60, 0) == 1 and rating(60, 90, 60, 90) == 0.5 and rating(60, 90, None, None) == 0
    assert rating(20, 100, 10, 50) == pytest.approx((1 + 0.5 - 0.5) / 2)
    assert rating(20, 10, 30, 50) == 0.5, "neither an accuracy that rose nor an ASR that rose counts"


def test_ranks_share_ties_and_leave_out_what_cannot_be_compared():
    cells = [cell("a", "none", oracle=(60.0, 98.0), trials=0), cell("a", "x"), cell("a", "y"), cell("a", "z", oracle=None),
             cell("b", "none", oracle=(60.0, 98.0), trials=0), cell("b", "x", oracle=(59.0, 1.0)), cell("b", "z", oracle=(50.0, 50.0)),
             cell("weak", "x", took=False, oracle=(60.0, 0.0)), cell("clean", "x", clean=True)]  # fmt: skip
    found = {line.defence: line for line in ranking(boards(cells)[0], "oracle")}
    assert (found["x"].rank, found["none"].rank, found["z"].rank) == (1.25, 3.0, (4 + 2) / 2)
    assert found["y"].rank == 1.5 and (found["y"].attacks, found["y"].of) == (1, 2)
    assert [line.defence for line in ranking(boards(cells)[0], "oracle")][-1] == "y", "with a hole, after the others"
    assert all(line.low <= line.rank <= line.high for line in found.values())
    assert ranking(boards(cells)[0], "oracle") == ranking(boards(cells)[0], "oracle")


def test_one_attack_and_one_seed_have_no_interval_and_reported_figures_no_rank():
    one = cell("a", "x", seeds=[0])
    for choice in one["measured"].values():
        choice["settings"] = choice["settings"][:1]
        for quantity in choice.values():
            if isinstance(quantity, dict):
                quantity["values"] = quantity["values"][:1]
    one["gate"] = {"threshold": 90.0, "asr": [98.0], "took": [True]}
    (line,) = ranking(boards([one, reported("a", "y", 50.0, 1.0, "A Paper")])[0], "blind")
    assert line.defence == "x" and math.isnan(line.low)
    assert all(ranking(boards([reported("a", "y", 50.0, 1.0, "A Paper")])[0], kind) == [] for kind in KINDS)


def test_boards_are_of_one_model_and_data_and_a_cell_is_measured_once():
    assert [board.model for board in boards([cell("a", "x"), cell("a", "x", model="ViT-B-32")])] == ["RN50", "ViT-B-32"]
    with pytest.raises(InputError, match="two result files measure x against a with RN50 on CC3M"):
        boards([cell("a", "x"), cell("a", "x")])
    (both,) = boards([cell("a", "x"), reported("a", "x", 50.0, 1.0, "A Paper")])
    assert both.state("a", "x", "oracle") == MEASURED and both.reported["a", "x"]


def test_unequal_numbers_of_trials_are_said():
    assert unequal_trials({"x": 3, "y": 3}) == "" and "x 3, y 12" in unequal_trials({"x": 3, "y": 12})
