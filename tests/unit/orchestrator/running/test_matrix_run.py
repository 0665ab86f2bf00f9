"""A matrix from nothing to its page: cells, what is shared, what is not defended, going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from datasets.errors import InputError
from orchestrator.commands import cli
from orchestrator.experiment.matrix import NONE, Defence, Matrix
from orchestrator.experiment.spec import Compute, Gate
from orchestrator.results.board import boards, ratings
from orchestrator.results.cells import read_cells
from orchestrator.running.matrix import plan_text, run_matrix, write_matrix
from orchestrator.stages.graph import stages
from orchestrator.stages.measured import lines_of
from orchestrator.store import Store
from tests.inprocess import without_ray
from tests.tiny_matrix import MATRIX
from trainers.methods.roclip import RoCLIP

ALL = replace(MATRIX, core=None, attacks={row: MATRIX.attacks[row] for row in ("patch", "clean model")})


@contextmanager
def no_ray() -> Iterator[None]:
    with without_ray(), patch("orchestrator.running.driver.session.shutdown"):
        yield


def fill(matrix: Matrix, root: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """The cells by attack and defence, and what failed."""
    with no_ray():
        page, failures = run_matrix(matrix, Compute(store=str(root / "store"), cache="off"), root / "out")
    assert page.read_text().count("<svg") == 5
    cells = [json.loads(path.read_text()) for path in sorted((root / "out" / "cells").glob("*.json"))]
    return {(cell["attack"]["name"], cell["defence"]["name"]): cell for cell in cells}, failures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], dict[str, Any]]]:
    root = tmp_path_factory.mktemp("matrix")
    cells, failures = fill(ALL, root)
    assert failures == []
    return root, cells


def test_every_cell_is_filled_and_models_are_shared(made):
    root, cells = made
    assert set(cells) == {(row, column) for row in ALL.attacks for column in ALL.columns}
    assert len(list((root / "store" / "pretrain").glob("*-*"))) == 4, "two undefended, two with MMCL+SSL"
    assert len(list((root / "store" / "clean").glob("*-*"))) == 4
    cell = cells["patch", "CleanCLIP"]
    assert cell["defence"]["trials"] == 2 and cell["gate"]["asr"] == cell["measured"]["oracle"]["start_asr"]["values"]
    one, both = cell["cost"]["seconds"], cell["cost"]["search_seconds"]
    assert 0 < one < both <= 2 * one, "two settings, which share the cleaning set"
    assert cells["patch", "none"]["cost"]["seconds"] == 0 < cells["patch", "none"]["cost"]["pretraining_seconds"]
    assert cells["patch", "MMCL+SSL"]["cost"]["seconds"] > 0


def test_the_clean_model_gives_each_trigger_its_floor(made):
    root, cells = made
    stage = stages(ALL.experiments(NONE, ("clean model", 0))[0])["pretrain"]
    line = lines_of(Store(root / "store"), stage)[-1]
    blind = cells["patch", "none"]["measured"]["blind"]
    assert blind["clean_asr"]["values"] == [line["metrics"]["asr/patch/top1"]]
    assert blind["clean_accuracy"]["values"] == [line["metrics"]["zeroshot/top1"]]
    assert cells["clean model", "none"]["gate"] is None and cells["clean model", "none"]["attack"]["trigger"] == ""


def test_run_again_nothing_is_made_and_the_cells_are_the_same(made):
    root, cells = made
    with patch("orchestrator.stages.base.seal", side_effect=AssertionError("made again")):
        assert fill(ALL, root) == (cells, [])
    text = plan_text(ALL, Compute(store=str(root / "store")))
    assert "4 pre-trainings, 4 cleanings; 8 of them stored, 0 to make." in text and "MMCL+SSL 1, CleanCLIP 2" in text


def test_an_attack_that_did_not_take_is_said_and_not_defended(made, tmp_path: Path):
    stopping = replace(ALL, gate=Gate(min_asr=100.0))
    shutil.copytree(made[0] / "store", tmp_path / "store", ignore=shutil.ignore_patterns("clean", "sweep", "reports"))
    cells, failures = fill(stopping, tmp_path)
    refused = cells["patch", "CleanCLIP"]
    assert failures == [] and refused["gate"]["took"] == [False] and refused["measured"] is None
    assert cells["patch", "none"]["measured"] and cells["clean model", "CleanCLIP"]["measured"]
    assert "did not take" in (tmp_path / "out" / "index.html").read_text()


def test_a_model_that_is_not_defended_yet_is_no_failure_of_the_defence(made, tmp_path: Path):
    shutil.copytree(made[0] / "store", tmp_path / "store")
    more = replace(ALL, seeds=(0, 1))
    fill(replace(more, defences={}), tmp_path)
    write_matrix(more, Compute(store=str(tmp_path / "store")), tmp_path / "out")
    cells = read_cells(tmp_path / "out" / "cells")
    for cell in cells:  # so short a training learns nothing; only attacks that took are rated
        cell["gate"] = cell["gate"] and cell["gate"] | {"took": [True, True]}
    (board,) = boards(cells)
    choice = board.choice("patch", "CleanCLIP", "blind")
    assert choice and choice["accuracy"]["values"][1] is None and choice["start_asr"]["values"][1] is None
    assert None not in board.cells["patch", "CleanCLIP"]["gate"]["asr"], "the undefended model is there"
    assert len(ratings(board, "patch", "CleanCLIP", "blind")) == 1 and len(ratings(board, "patch", "none", "blind")) == 2


def test_a_seed_with_a_setting_that_was_not_run_is_not_measured(made, tmp_path: Path):
    shutil.copytree(made[0] / "store", tmp_path / "store")
    last = stages(ALL.experiments("CleanCLIP", ("patch", 0))[-1])["clean"]
    (found,) = (tmp_path / "store" / "clean").glob(f"*-{last.fingerprint[:12]}")
    shutil.rmtree(found)
    write_matrix(ALL, Compute(store=str(tmp_path / "store")), tmp_path / "out")
    cells = {(cell["attack"]["name"], cell["defence"]["name"]): cell for cell in read_cells(tmp_path / "out" / "cells")}
    assert ("patch", "CleanCLIP") not in cells and cells["clean model", "CleanCLIP"]["measured"]


def test_a_defence_that_does_not_fit_leaves_the_others_to_be_run(made, tmp_path: Path):
    shutil.copytree(made[0] / "store", tmp_path / "store")
    wrong = {"RoCLIP": Defence(changes={"pretrain.objective": RoCLIP(every=1)})}
    cells, failures = fill(replace(ALL, defences=wrong | ALL.defences), tmp_path)
    (told,) = failures
    assert told.startswith("column RoCLIP: RoCLIP.pool is 21845, more than the ") and ("patch", "CleanCLIP") in cells


def test_cells_of_rows_that_are_gone_are_removed_and_those_of_others_stay(made, tmp_path: Path):
    compute, cells = Compute(store=str(made[0] / "store")), tmp_path / "cells"
    write_matrix(ALL, compute, tmp_path)
    theirs = json.loads((cells / "00-patch--00-none.json").read_text()) | {"matrix": "theirs", "model": "ViT-B-32"}
    (cells / "theirs.json").write_text(json.dumps(theirs))
    write_matrix(replace(ALL, defences={"CleanCLIP": ALL.defences["CleanCLIP"]}), compute, tmp_path)
    names = {path.name for path in cells.glob("*.json")}
    assert len(names) == 5 and "theirs.json" in names and "00-patch--01-cleanclip.json" in names


def test_mistakes_are_told_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = ["--store", str(tmp_path / "store")]
    for words, said in (
        (["tests/tiny_sweep.py"], "has no MATRIX"),
        (["tests/tiny_matrix.py", "--miniature"], "has no MINIATURE"),
        (["tests/tiny_matrix.py", "--clean.lr", "1"], "CleanCLIP sets it"),
        (["tests/tiny_matrix.py", "--clean.batch_size", "100000"], "CleanCLIP"),
    ):
        assert cli.run(["matrix", *words, *store, "--dry"]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    with no_ray(), pytest.raises(InputError, match="is a file"):
        run_matrix(ALL, Compute(store=str(tmp_path / "store")), Path(__file__))
