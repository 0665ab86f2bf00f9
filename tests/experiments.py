"""Running the command line as a user does, and reading what it left behind."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "tests" / "tiny_sweep.py")


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """Start `cleansweep …` in a session of its own; stdout and stderr together in a pipe."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def cleansweep(*arguments: str, timeout: float = 400, **environment: str) -> tuple[int, str]:
    """Run `cleansweep …` to its end: (exit code, output)."""
    process = start(*arguments, **environment)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        stop(process)
    return process.returncode, output


def stop(process: subprocess.Popen) -> None:
    """End the process and everything it started."""
    for child in [*descendants(process.pid), process.pid]:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 240) -> object:
    """Poll until the condition gives something true; fails when the process ends or time is up first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        assert process.poll() is None, f"ended early with {process.returncode}:\n{process.stdout.read()}"
        time.sleep(0.02)
    raise AssertionError("timed out")


def artefacts(store: Path, stage: str) -> dict[str, Path]:
    """Fingerprint's first digits → folder of each finished artefact of a stage."""
    return {p.name.rsplit("-", 1)[1]: p for p in store.glob(f"{stage}/*-*") if not p.name.startswith(".")}


UPSTREAM = ("world", "index", "testset", "poison", "pretrain")
"""What is made before the cleanings."""


def furnish(store: Path, made: Path, *stages: str) -> None:
    """Copy the finished artefacts of these stages from another store, and an MLflow database without a run: what is tested is the rest."""
    for stage in stages:
        shutil.copytree(made / stage, store / stage)
    shutil.copy(made.with_name(DATABASE), store / DATABASE)


DATABASE = "mlflow.db"


def make_database(folder: Path) -> None:
    """A database of MLflow's without a run or an experiment; making its tables takes seconds."""
    from orchestrator.tracking.tracker import Tracker

    tracker = Tracker(f"sqlite:///{folder / DATABASE}", "none")
    tracker.check()
    with sqlite3.connect(folder / DATABASE) as database:
        for table in ("experiment_tags", "experiments"):
            database.execute(f"DELETE FROM {table} WHERE experiment_id <> 0")
    database.close()


def results(store: Path) -> list[str]:
    """The rows of points.csv without the columns that differ from run to run, which tell times."""
    import csv

    [path] = store.glob("reports/*/points.csv")
    rows = list(csv.DictReader(path.open()))
    assert rows
    return sorted(str({k: v for k, v in row.items() if k not in ("seconds", "train/samples_per_second")}) for row in rows)


def ray_of(nodeid: str) -> str:
    """Which Ray a test has: `one`, that of `tests/ray`; its `own`; empty: none."""
    file = Path(nodeid.partition("::")[0])
    if file.stem == "test_chaos_kinds":
        return ""
    if file.parent.name == "chaos" or file.stem in ("test_start", "test_job"):
        return "own"
    return "one" if file.parent.name == "ray" else ""


def group_of(nodeid: str) -> str:
    """What goes to one process together: all that uses the one Ray, or a file."""
    return "one" if ray_of(nodeid) == "one" else nodeid.partition("::")[0]
