"""A sweep that cleans a model which others trained."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import mlflow
import torch
from safetensors.torch import load_file

from tests.experiments import ROOT, artefacts, furnish
from trainers.weights.epoch_folder import WEIGHTS

GIVEN = str(ROOT / "tests" / "given_sweep.py")


def cleaned(store: Path) -> list[tuple[str, ...]]:
    """What each epoch of each cleaning measured, by its values."""
    [path] = store.glob("reports/*/points.csv")
    columns = ("clean.lr", "clean.method", "epoch", "role", "accuracy", "asr")
    return sorted(tuple(row[name] for name in columns) for row in csv.DictReader(path.open()) if row["stage"] == "clean")


def test_a_checkpoint_of_cleanclips_program_is_judged_and_cleaned_as_if_it_were_trained_here(
    here: Callable[..., tuple[int, str]], tiny_store: Path, tmp_path: Path
) -> None:
    [trained] = artefacts(tiny_store, "pretrain").values()
    weights = load_file(trained / "epoch_0002" / WEIGHTS)
    file = tmp_path / "epoch_2.pt"
    torch.save({"epoch": 2, "name": "theirs", "state_dict": {f"module.{name}": value for name, value in weights.items()}}, file)
    store = tmp_path / "store"
    store.mkdir()
    furnish(store, tiny_store, "world", "index", "testset", "poison", "cleanset")

    code, output = here("run", GIVEN, "--store", str(store), GIVEN=str(file))
    assert code == 0 and "4 finished" in output, output
    assert cleaned(store) == cleaned(tiny_store), "the same weights are cleaned to the same numbers"
    [given] = artefacts(store, "pretrain").values()
    assert given.name.startswith("epoch-2-")
    assert not list(store.glob("pretrain/*/epoch_000[1-9]")), "nothing was trained"
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    [experiment] = [one for one in client.search_experiments() if one.name == "given"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["role"] for run in runs) == ["clean"] * 4 + ["pretrain", "sweep"]

    file.rename(tmp_path / "moved.pt")
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*/manifest.json")}
    code, output = here("run", GIVEN, "--store", str(store), GIVEN=str(tmp_path / "moved.pt"))
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*/manifest.json")} == before, "known by its bytes"

    torch.save({"state_dict": {"visual.conv1.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    code, output = here("run", GIVEN, "--store", str(tmp_path / "new"), GIVEN=str(tmp_path / "other.pt"))
    assert code == 2 and "other.pt" in output and "Traceback" not in output, output
    assert not list((tmp_path / "new").glob("*/*/manifest.json")), "told before anything is made"
