"""A kind of stage written in a file of one's own is planned, run, killed, resumed, shown, mirrored and counted like any other."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import mlflow

from tests.experiments import ROOT, UPSTREAM, artefacts, cleansweep, furnish, start, stop, wait_for

OWN = str(ROOT / "tests" / "own_stage.py")


def test_a_stage_of_ones_own(tiny_store: Path, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path))
    furnish(tmp_path, tiny_store, *UPSTREAM)
    code, output = cleansweep("plan", OWN, *store)
    assert code == 0 and any(line.split()[:3] == ["hint", "strength", "0.5"] for line in output.splitlines()), output

    process = start("run", OWN, *store)
    try:
        wait_for(lambda: list(tmp_path.glob("hint/.work-*/step_2")), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        stop(process)
    before = {path.name: path.read_text() for path in tmp_path.glob("hint/.work-*/step_*")}
    assert artefacts(tmp_path, "hint") == {} and 3 <= len(before) < 8
    code, output = cleansweep("run", OWN, *store)
    assert code == 0, output
    [hint] = artefacts(tmp_path, "hint").values()
    assert before.items() <= {path.name: path.read_text() for path in hint.glob("step_*")}.items(), "what was done is not done again"

    cleanings = [json.loads((folder / "manifest.json").read_text()) for folder in artefacts(tmp_path, "clean").values()]
    made = {manifest["config"]["method"]["label"]: manifest["inputs"] for manifest in cleanings}
    assert made["Guided"]["hint"] == json.loads((hint / "manifest.json").read_text())["fingerprint"] and "hint" not in made["CleanCLIP"]
    code, output = cleansweep("show", *store, "--verify")
    assert code == 0 and "hint      strength-0-5-" in output

    [listed] = tmp_path.glob("reports/*/stages.csv")
    rows = list(csv.DictReader(listed.open()))
    assert [row["name"] for row in rows if row["stage"] == "hint"] == ["strength 0.5"] and {row["state"] for row in rows} == {"finished"}
    assert "strength 0.5" in (listed.parent / "report.html").read_text()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [experiment] = [one for one in client.search_experiments() if one.name == "own stage"]
    [run] = client.search_runs([experiment.experiment_id], "tags.role = 'sweep'")
    assert "stages.csv" in [file.path for file in client.list_artifacts(run.info.run_id)]
    code, output = cleansweep("run", OWN, *store)
    assert code == 0 and before.items() <= {path.name: path.read_text() for path in hint.glob("step_*")}.items(), output
