"""Sweeps whose values are drawn: what was tried is known afterwards, and is not tried again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from tests.experiments import ROOT, UPSTREAM, artefacts, furnish

SEARCH = str(ROOT / "tests" / "search_sweep.py")
DRAWN = str(ROOT / "tests" / "drawn_sweep.py")


def test_optuna_with_asha(here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path):
    furnish(tmp_path, tiny_store, *UPSTREAM)
    code, output = here("run", SEARCH, "--store", str(tmp_path))
    assert code == 0, output
    [record] = artefacts(tmp_path, "sweep").values()
    trials = json.loads((record / "trials.json").read_text())
    assert len(trials) == 2 and len({trial["fingerprint"] for trial in trials}) == 2
    assert {trial["status"] for trial in trials} <= {"finished", "stopped"}
    finished = [trial for trial in trials if trial["status"] == "finished"]
    assert finished, "the first trial to reach a rung is never stopped there"
    assert {t["fingerprint"][:12] for t in finished} == set(artefacts(tmp_path, "clean"))
    for trial in trials:
        assert 1e-4 <= trial["overrides"]["clean.lr"] <= 1e-2
        assert trial["overrides"]["clean.method.inmodal_weight"] in (1.0, 2.0)
    [points] = tmp_path.glob("reports/*/points.csv")
    rows = [row for row in csv.DictReader(points.open()) if row["stage"] == "clean"]
    assert {float(row["clean.lr"]) for row in rows} == {trial["overrides"]["clean.lr"] for trial in trials}

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    code, output = here("run", SEARCH, "--store", str(tmp_path))
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == before


def test_random_draws_are_trials_and_a_second_run_makes_nothing(here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path):
    furnish(tmp_path, tiny_store, *UPSTREAM)
    code, output = here("run", DRAWN, "--store", str(tmp_path), "--max-concurrent-trials", "1")
    assert code == 0, output
    [record] = artefacts(tmp_path, "sweep").values()
    trials = json.loads((record / "trials.json").read_text())
    assert len(trials) == 5 and {trial["status"] for trial in trials} == {"finished"}
    assert {trial["fingerprint"][:12] for trial in trials} == set(artefacts(tmp_path, "clean")) and len(artefacts(tmp_path, "clean")) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    code, output = here("run", DRAWN, "--store", str(tmp_path), RAY_ADDRESS="127.0.0.1:1")  # where no Ray answers
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == before
