"""A store made by an earlier version is found again, whatever has been tidied since.

`tests/stores/first` is what version 0.1.0 made of the `sweep.py` beside it, without pictures and weights. Where a test here fails, users'
finished trainings would be made again: that is a decision, to be told in the change's message, and then another store is added.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from orchestrator.stages.base import walk
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from tests.experiments import ROOT

STORES = sorted((ROOT / "tests" / "stores").iterdir())


@pytest.fixture(params=STORES, ids=lambda folder: folder.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Store]:
    """(folder with the sweep, a copy of its store)."""
    return request.param, Store(str(shutil.copytree(request.param / "store", tmp_path / "store")))


def test_every_artefact_is_found_again(old):
    folder, store = old
    plan = make_plan(load_sweep(str(folder / "sweep.py")))
    wanted = {stage.fingerprint: str(stage) for _, experiment in plan.grid for stage in walk(*stages(experiment).values())}
    found = {artefact.fingerprint for artefact in store.all()}
    assert not [name for fingerprint, name in wanted.items() if fingerprint not in found]
    assert len(wanted) == 10 and found == wanted.keys() | {plan.fingerprint}


def test_its_numbers_are_read_as_they_were(old):
    folder, store = old
    plan = make_plan(load_sweep(str(folder / "sweep.py")))
    study = load_study(plan, store)
    assert study.missing == 0 and {trial.status for trial in study.trials} == {"finished"}
    with (folder / "points.csv").open() as file:
        expected = {(row["fingerprint"], int(row["epoch"])): (float(row["accuracy"]), float(row["asr"])) for row in csv.DictReader(file)}
    read = {
        (result.fingerprint, line["epoch"]): (line["metrics"]["zeroshot/top1"], line["metrics"]["asr/top1"])
        for result in (*study.pretrains, *study.trials) for line in result.metrics
    }  # fmt: skip
    assert read.keys() == expected.keys() and len(read) == 3 + 4 * 4
    assert all(values == pytest.approx(expected[key]) for key, values in read.items())
