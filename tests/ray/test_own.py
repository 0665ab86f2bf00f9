"""A lab's own cleaning methods and its own kind of stage, in a real sweep that ctrl-C interrupts.

One method changes weights after training, one trains nothing, one needs what a stage of its own makes.
"""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import mlflow
import torch
from safetensors.torch import load_file

from tests.experiments import ROOT, UPSTREAM, artefacts, furnish, start, stop, wait_for
from trainers.weights.epoch_folder import WEIGHTS

OWN = str(ROOT / "tests" / "own_stage.py")


def steps(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("step_*")}


def test_methods_and_a_stage_of_ones_own(here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path))
    furnish(tmp_path, tiny_store, *UPSTREAM)
    code, output = here("plan", OWN, *store)
    assert code == 0 and any(line.split()[:3] == ["hint", "strength", "0.5"] for line in output.splitlines()), output

    process = start("run", OWN, *store)
    try:
        wait_for(lambda: list(tmp_path.glob("hint/.work-*/step_2")), process)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        stop(process)
    assert process.returncode == 130 and "the same command continues" in output and "Traceback" not in output, output
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    begun = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    assert begun and all(run.info.status != "RUNNING" for run in begun)
    [work] = tmp_path.glob("hint/.work-*")
    before = steps(work)
    assert artefacts(tmp_path, "hint") == {} and 3 <= len(before) < 8
    code, output = here("run", OWN, *store)
    assert code == 0, output
    [hint] = artefacts(tmp_path, "hint").values()
    assert before.items() <= steps(hint).items(), "what was done is not done again"

    [pretrained] = artefacts(tmp_path, "pretrain").values()
    weights = load_file(pretrained / "epoch_0002" / WEIGHTS)
    ways, inputs = {}, {}
    for folder in artefacts(tmp_path, "clean").values():
        manifest = json.loads((folder / "manifest.json").read_text())
        method = manifest["config"]["method"]["label"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ways[method] = folder, [line["epoch"] for line in lines], [line["metrics"]["zeroshot/top1"] for line in lines]
        inputs[method] = manifest["inputs"]
    assert {method: epochs for method, (_, epochs, _) in ways.items()} == {
        "CleanCLIP": [0, 1, 2, 3], "WiseFT": [0, 1, 2, 3, 4], "Prune": [0, 1], "Guided": [0, 1],
    }  # fmt: skip
    folder, _, accuracies = ways["WiseFT"]
    after = load_file(folder / "epoch_0004" / WEIGHTS)
    assert all(torch.equal(after[name], value) for name, value in weights.items()) and accuracies[4] == accuracies[0]
    assert (ways["Prune"][0] / "epoch_0001" / WEIGHTS).exists()
    scaled = load_file(ways["Guided"][0] / "epoch_0001" / WEIGHTS)["logit_scale"]
    assert torch.equal(scaled, weights["logit_scale"] * 0.5), "by what its stage had found"
    assert inputs["Guided"]["hint"] == json.loads((hint / "manifest.json").read_text())["fingerprint"] and "hint" not in inputs["Prune"]

    [points] = tmp_path.glob("reports/*/points.csv")
    assert len([row for row in csv.DictReader(points.open()) if row["stage"] == "clean"]) == 4 + 5 + 2 + 2
    rows = list(csv.DictReader((points.parent / "stages.csv").open()))
    assert [row["name"] for row in rows if row["stage"] == "hint"] == ["strength 0.5"] and {row["state"] for row in rows} == {"finished"}
    assert "strength 0.5" in (points.parent / "report.html").read_text()
    [experiment] = [one for one in client.search_experiments() if one.name == "own"]
    [run] = client.search_runs([experiment.experiment_id], "tags.role = 'sweep'")
    assert "stages.csv" in [file.path for file in client.list_artifacts(run.info.run_id)]

    code, output = here("show", *store, "--verify")
    assert code == 0 and "hint      strength-0-5-" in output, output
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    assert here("run", OWN, *store)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == made
