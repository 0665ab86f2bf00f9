"""Killed or interrupted, and run again: the same weights, the same runs, nothing made twice (SIGTERM: test_fetch_job)."""

import json
import os
import signal
from pathlib import Path

import mlflow
import psutil
from safetensors.numpy import load_file

from tests.experiments import TINY, UPSTREAM, artefacts, cleansweep, descendants, furnish, results, start, stop, wait_for


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


def test_running_again_makes_nothing(tiny_store: Path):
    before = {path: path.stat().st_mtime_ns for path in tiny_store.glob("*/*/manifest.json")}
    assert len(before) == 11, "world, index, testset, poison, pretrain, cleanset, 4 cleanings, sweep"
    code, output = cleansweep("run", TINY, "--store", str(tiny_store))
    assert code == 0, output
    assert {path: path.stat().st_mtime_ns for path in tiny_store.glob("*/*/manifest.json")} == before
    assert runs(tiny_store) == {"sweep": ["FINISHED"], "pretrain": ["FINISHED"], "clean": ["FINISHED"] * 4}


def test_killed_worker(tiny_store: Path, tmp_path: Path):
    """SIGKILL of a pre-training worker within an epoch: the stage continues by itself to the same weights."""
    furnish(tmp_path, tiny_store, "world", "index", "testset", "poison", "cleanset", "clean")
    process = start(
        "run", TINY, "--store", str(tmp_path), "--workers", "2", "--cpus-per-worker", "0.5", CLEANSWEEP_LEDGER="1"
    )  # fmt: skip
    try:
        # killed between the checkpoints of step 4 and step 8, as soon as the first is there
        wait_for(lambda: list(tmp_path.glob("pretrain/.work-*/step_00000004")), process)
        workers = [pid for pid in descendants(process.pid) if "RayTrainWorker" in " ".join(_command(pid))]
        assert len(workers) == 2, workers
        os.kill(workers[-1], signal.SIGKILL)
        output, _ = process.communicate(timeout=400)
    finally:
        stop(process)
    assert process.returncode == 0, output
    assert_same_weights(weights(tmp_path, "pretrain"), weights(tiny_store, "pretrain"))
    assert results(tmp_path) == results(tiny_store)
    [ledger] = tmp_path.glob("pretrain/*/ledger.jsonl")
    [expected] = tiny_store.glob("pretrain/*/ledger.jsonl")
    assert ledger.read_text() == expected.read_text()
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(24))
    for epoch in range(2):
        keys = [key for line in lines[12 * epoch : 12 * epoch + 12] for key in line["keys"]]
        assert len(keys) == len(set(keys)) == 384, "an epoch holds no key twice"


def test_killed_driver_and_interrupted_successor(tiny_store: Path, tmp_path: Path):
    """SIGKILL of the driver in the middle of the sweep, then ctrl-C; the same command makes only what is missing."""
    furnish(tmp_path, tiny_store, *UPSTREAM)
    words = ("run", TINY, "--store", str(tmp_path))
    finished: list[dict[Path, int]] = [{}]
    for number in (signal.SIGKILL, signal.SIGINT):
        before = len(artefacts(tmp_path, "clean"))
        process = start(*words)
        try:
            wait_for(lambda before=before: len(artefacts(tmp_path, "clean")) > before, process)
            process.send_signal(number)
            output, _ = process.communicate(timeout=120) if number == signal.SIGINT else ("", process.wait())
        finally:
            stop(process)
        finished.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")})
        assert finished[-2].items() <= finished[-1].items()
        assert len(artefacts(tmp_path, "clean")) < 4, "it came too late to show anything"
    assert process.returncode == 130 and "the same command continues" in output and "Traceback" not in output, output
    assert artefacts(tmp_path, "sweep") == {} and "RUNNING" not in str(runs(tmp_path))
    code, output = cleansweep(*words)
    assert code == 0 and "4 finished" in output, output
    assert finished[-1].items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}.items()
    assert_same_weights(weights(tmp_path, "clean"), weights(tiny_store, "clean"))
    assert results(tmp_path) == results(tiny_store)
    assert runs(tmp_path) == {"sweep": ["FINISHED"], "pretrain": ["FINISHED"], "clean": ["FINISHED"] * 4}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            steps = [m.step for m in client.get_metric_history(run.info.run_id, "zeroshot/top1")]
            assert len(steps) == len(set(steps)), "no epoch is logged twice"


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
