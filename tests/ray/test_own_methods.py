"""A lab's own cleaning methods in a real sweep: one changes weights after training, one trains nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.experiments import ROOT, UPSTREAM, artefacts, cleansweep, furnish
from trainers.model import WEIGHTS

OWN = str(ROOT / "tests" / "own_methods.py")


def test_weight_surgery_beside_cleanclip(tiny_store: Path, tmp_path: Path) -> None:
    furnish(tmp_path, tiny_store, *UPSTREAM)
    code, output = cleansweep("run", OWN, "--store", str(tmp_path))
    assert code == 0, output
    [pretrained] = artefacts(tmp_path, "pretrain").values()
    before = load_file(pretrained / "epoch_0002" / WEIGHTS)
    ways = {}
    for folder in artefacts(tmp_path, "clean").values():
        method = json.loads((folder / "manifest.json").read_text())["config"]["method"]["class"].rpartition(".")[2]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ways[method] = folder, [line["epoch"] for line in lines], [line["metrics"]["zeroshot/top1"] for line in lines]
    assert {method: epochs for method, (_, epochs, _) in ways.items()} == {
        "CleanCLIP": [0, 1, 2, 3], "WiseFT": [0, 1, 2, 3, 4], "Prune": [0, 1],
    }  # fmt: skip
    folder, _, accuracies = ways["WiseFT"]
    after = load_file(folder / "epoch_0004" / WEIGHTS)
    assert all(torch.equal(after[name], value) for name, value in before.items()) and accuracies[4] == accuracies[0]
    assert (ways["Prune"][0] / "epoch_0001" / WEIGHTS).exists()
    [points] = tmp_path.glob("reports/*/points.csv")
    rows = [row for row in csv.DictReader(points.open()) if row["stage"] == "clean"]
    assert len(rows) == 4 + 5 + 2
    assert cleansweep("show", "--store", str(tmp_path), "--verify")[0] == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    assert cleansweep("run", OWN, "--store", str(tmp_path))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == made
