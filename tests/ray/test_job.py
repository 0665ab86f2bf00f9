"""A Ray head started by hand, a sweep submitted to it, its runs in MLflow."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow

from tests.experiments import ROOT, TINY, furnish, stop, wait_for

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_submitted_job(tiny_store: Path, tmp_path: Path):
    """It trains the model and one of four cleanings; the rest is in the store."""
    store = tmp_path / "store"
    store.mkdir()
    furnish(store, tiny_store, "world", "index", "testset", "poison", "cleanset", "clean")
    shutil.rmtree(next(store.glob("clean/*-*")))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{clean['PATH']}"
    environment = {**clean, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port, dashboard = free_port(), free_port()
    short = tempfile.mkdtemp(prefix="ray-")  # the path of a Unix socket has at most 107 characters
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
         "--object-store-memory=300000000", f"--ray-client-server-port={free_port()}",
         f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}", f"--temp-dir={short}"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: answers(dashboard), head, seconds=60)
        command = [
            "ray", "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--working-dir", str(ROOT), "--",
            "python", "-m", "orchestrator", "run", TINY, "--store", str(store),
        ]  # fmt: skip

        def submit() -> subprocess.CompletedProcess | None:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
            )
            return None if "No available agent" in done.stderr else done  # the head answers before it can take jobs

        submitted = wait_for(submit, head, seconds=120)
        assert isinstance(submitted, subprocess.CompletedProcess)
    finally:
        stop(head)
        shutil.rmtree(short, ignore_errors=True)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "1 pre-training, 4 cleanings (4 finished)" in submitted.stdout
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["role"] for run in runs) == ["clean"] * 4 + ["pretrain", "sweep"]
    assert [run.data.tags["attack"] for run in runs if "attack" in run.data.tags] == ["Patch → banana"]
    assert all(run.info.status == "FINISHED" for run in runs)
