"""`cleansweep audit` on a real Ray, with the numbers in MLflow."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from mlflow import MlflowClient

from tests.experiments import TINY, artefacts


def test_audits_are_made_once_and_their_numbers_are_in_the_runs_of_the_checkpoints(
    here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path
) -> None:
    store, page = tmp_path / "store", tmp_path / "page"
    shutil.copytree(tiny_store, store)
    words = ("audit", TINY, "--store", str(store), "--only", "fgsm,jpeg,balance", "--eps", "2/255", "--n", "10", "--rule", "blind")
    code, output = here(*words, "--out", str(page))
    assert code in (0, 1) and "12 audits: 0 stored, 12 to make" in output and "audit 12 of 12" in output, output
    made = artefacts(store, "audit")
    assert len(made) == 12, "3 models: before, and after either method"
    lines = list(csv.DictReader((page / "audit.csv").open()))
    robust = [line for line in lines if line["metric"] == "robust/accuracy"]
    assert len(robust) == 9 and all(0 <= float(line["value"]) <= 100 for line in robust)
    for line in robust:
        rows = pq.read_table(line["rows"]).to_pylist()
        right = sum(row["prediction"] == row["y"] for row in rows)
        assert len(rows) == 10 and float(line["value"]) == 10 * right and all(row["linf"] <= 2 / 255 + 1e-6 for row in rows)

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    runs = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
    audited = [run for run in runs if any(name.startswith("audit/FGSM") for name in run.data.metrics)]
    assert len(audited) == 3 and {run.data.tags["role"] for run in audited} == {"pretrain", "clean"}
    assert all(run.info.status == "FINISHED" for run in audited)

    times = {name: (folder / "manifest.json").stat().st_mtime_ns for name, folder in made.items()}
    again, output = here(*words, "--out", str(page))
    assert again == code and "12 stored, 0 to make" in output
    assert times == {name: (folder / "manifest.json").stat().st_mtime_ns for name, folder in artefacts(store, "audit").items()}
