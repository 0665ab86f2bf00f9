"""Ctrl-C: the command ends, says so, seals nothing, leaves no run open; the same command completes (SIGTERM: test_fetch_job)."""

import signal
from pathlib import Path

import mlflow

from tests.experiments import TINY, UPSTREAM, artefacts, cleansweep, furnish, start, stop, wait_for

LONG = ("run", TINY, "--clean.epochs", "12")


def statuses(store: Path) -> set[str]:
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    return {
        run.info.status
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    }


def test_interrupted_in_the_sweep(tiny_store: Path, tmp_path: Path):
    furnish(tmp_path, tiny_store, *UPSTREAM)
    process = start(*LONG, "--store", str(tmp_path))
    try:
        wait_for(lambda: list(tmp_path.glob("clean/.work-*/epoch_0002")), process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        stop(process)
    assert process.returncode == 130, output
    assert "the same command continues" in output and "Traceback" not in output
    assert artefacts(tmp_path, "sweep") == {} and "RUNNING" not in statuses(tmp_path)
    code, output = cleansweep(*LONG, "--store", str(tmp_path))
    assert code == 0 and "4 finished" in output, output
    assert statuses(tmp_path) == {"FINISHED"}
