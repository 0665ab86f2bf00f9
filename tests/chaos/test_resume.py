"""Killed and run again: the same weights, the same runs, nothing made twice (ctrl-C: test_own; SIGTERM: test_fetch_job)."""

import json
import os
import signal
import subprocess
from pathlib import Path

import mlflow
import psutil
from safetensors.numpy import load_file

from orchestrator.commands import cli
from tests.experiments import TINY, artefacts, cleansweep, descendants, furnish, results, start, stop, wait_for


def weights(store: Path, stage: str) -> dict[str, dict]:
    """Fingerprint → last weights of every artefact of a stage."""
    return {
        name: load_file(max(folder.glob("epoch_*")) / "open_clip_model.safetensors")
        for name, folder in artefacts(store, stage).items()
    }


def assert_same_weights(a: dict[str, dict], b: dict[str, dict]) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        assert a[name].keys() == b[name].keys()
        for tensor in a[name]:
            assert (a[name][tensor] == b[name][tensor]).all(), f"{tensor} of {name}"


def runs(store: Path) -> dict[str, list[str]]:
    """Role → statuses of all runs in the store's MLflow database."""
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    found: dict[str, list[str]] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], max_results=1000):
            found.setdefault(run.data.tags.get("role", "?"), []).append(run.info.status)
    return found


def test_killed_worker_then_killed_driver_then_run_to_the_end_and_once_more(tiny_store: Path, tmp_path: Path, capsys) -> None:
    """SIGKILL of a pre-training worker within an epoch: the stage continues by itself to the same weights. SIGKILL of the driver in the
    middle of the sweep: the same command makes only what is missing, and once more makes nothing."""
    furnish(tmp_path, tiny_store, "world", "index", "testset", "poison", "cleanset")
    words = ("run", TINY, "--store", str(tmp_path), "--workers", "2", "--cpus-per-worker", "0.5")
    process = start(*words, CLEANSWEEP_LEDGER="1")
    try:
        kill_a_worker(tmp_path, process)
        wait_for(lambda: artefacts(tmp_path, "clean"), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        stop(process)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    assert len(artefacts(tmp_path, "clean")) < 4, "it came too late to show anything"
    assert artefacts(tmp_path, "sweep") == {}
    check_ledger(tmp_path, tiny_store)

    code, output = cleansweep(*words)
    assert code == 0 and "4 finished" in output, output
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    assert finished.items() <= made.items() and len(made) == 11, "world, index, testset, poison, pretrain, cleanset, 4 cleanings, sweep"
    for stage in ("pretrain", "clean"):
        assert_same_weights(weights(tmp_path, stage), weights(tiny_store, stage))
    assert results(tmp_path) == results(tiny_store)
    assert cli.run(list(words)) == 0, capsys.readouterr()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == made
    assert runs(tmp_path) == {"sweep": ["FINISHED"], "pretrain": ["FINISHED"], "clean": ["FINISHED"] * 4}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            steps = [m.step for m in client.get_metric_history(run.info.run_id, "zeroshot/top1")]
            assert len(steps) == len(set(steps)), "no epoch is logged twice"


def kill_a_worker(store: Path, process: subprocess.Popen) -> None:
    """Between the checkpoints of step 4 and step 8, as soon as the first is there."""
    wait_for(lambda: list(store.glob("pretrain/.work-*/step_00000004")), process)
    workers = [pid for pid in descendants(process.pid) if "RayTrainWorker" in " ".join(_command(pid))]
    assert len(workers) == 2, workers
    os.kill(workers[-1], signal.SIGKILL)


def check_ledger(store: Path, undisturbed: Path) -> None:
    """Every step once, with the same keys as without a kill."""
    [ledger], [expected] = (one.glob("pretrain/*/ledger.jsonl") for one in (store, undisturbed))
    assert ledger.read_text() == expected.read_text()
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(24))
    for epoch in range(2):
        keys = [key for line in lines[12 * epoch : 12 * epoch + 12] for key in line["keys"]]
        assert len(keys) == len(set(keys)) == 384, "an epoch holds no key twice"


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
