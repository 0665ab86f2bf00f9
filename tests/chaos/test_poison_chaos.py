"""Design test 5: a worker or the driver is killed while shards are written; the tree comes out as if nothing had been."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import simplejpeg

from datasets.attack.poison import PLAN_SCHEMA
from datasets.attack.poisoned_shards import poison_shard
from datasets.index.pairs import write_index
from datasets.index.source import Source
from datasets.index.write import write_tar
from datasets.triggers.patch import Patch
from orchestrator import ROOT
from orchestrator.cluster import session
from orchestrator.cluster.streaming import poison_shards

SHARDS, EACH, SIDE, VIEW = 4, 10, 900, 64  # big pictures: a shard takes long enough to be caught at it
DRIVER = """
import sys
from pathlib import Path
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from orchestrator.cluster import session
from orchestrator.cluster.streaming import poison_shards

folder = Path(sys.argv[1])
session.connect(2, object_store_bytes=200_000_000, dashboard=False)
source = Source(urls=str(folder / "data"))
poison_shards(source, folder / "index.arrow", folder / "plan.parquet", Patch(size=8), 64, folder / sys.argv[2], cpus=2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, index.arrow, plan.parquet (every sample a victim), and single/: the shards by one process without Ray."""
    folder = tmp_path_factory.mktemp("chaos")
    draw = np.random.default_rng(0)
    jpeg = simplejpeg.encode_jpeg(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8), quality=80)
    (folder / "data").mkdir()
    for shard in range(SHARDS):
        samples = ((f"{shard:02d}{i:04d}", {"jpg": jpeg, "txt": f"thing {i}"}) for i in range(EACH))
        write_tar(folder / "data" / f"{shard:05d}.tar", samples)
    source = Source(urls=str(folder / "data"), verify="none")
    tables = [source.index_shard(number, url) for number, url in enumerate(source.shards())]
    write_index(tables, folder / "index.arrow")
    table, n = pa.concat_tables(tables), SHARDS * EACH
    columns = [table["key"].to_pylist(), list(range(n)), ["banana"] * n, [5] * n]
    columns += [table["caption"].to_pylist(), ["a photo of a banana."] * n]
    plan = pa.table(columns, schema=PLAN_SCHEMA)
    pq.write_table(plan, folder / "plan.parquet")
    for number, url in enumerate(source.shards()):
        rows = plan.slice(number * EACH, EACH)
        poison_shard(url, rows, Patch(size=8), VIEW, folder / "single" / Path(url).name)
    return folder


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    started = not ray.is_initialized()
    session.connect(2, object_store_bytes=200_000_000)
    yield
    if started:
        session.shutdown()


def tree(folder: Path) -> dict[str, str]:
    """Relative name → SHA-256 of every file, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "poison.json"
    }


def poison(folder: Path, out: str, cpus: int) -> None:
    source = Source(urls=str(folder / "data"))
    plan, index = folder / "plan.parquet", folder / "index.arrow"
    poison_shards(source, index, plan, Patch(size=8), VIEW, folder / out, cpus=cpus)


def writer_of(folder: Path, deadline: float) -> tuple[int, Path]:
    """A process that is at work on a shard, and the unfinished file that it has open."""
    while time.monotonic() < deadline:
        for path in folder.glob(".work-*/.*.tmp"):
            for process in psutil.process_iter(["pid"]):
                try:
                    if any(file.path == str(path) for file in process.open_files()):
                        return process.pid, path
                except (psutil.Error, OSError):
                    continue  # gone, or not ours
        time.sleep(0.005)
    raise AssertionError("no worker was seen at work")


@pytest.mark.usefixtures("local_ray")
def test_a_killed_worker_leaves_no_trace(folder: Path) -> None:
    poison(folder, "undisturbed", cpus=1)
    killed: list[int] = []

    def kill() -> None:
        process, path = writer_of(folder / "disturbed", time.monotonic() + 60)
        os.kill(process, signal.SIGKILL)
        if path.exists():  # else it had just finished
            killed.append(process)

    killer = threading.Thread(target=kill)
    killer.start()
    poison(folder, "disturbed", cpus=2)
    killer.join()
    assert killed
    assert tree(folder / "disturbed") == tree(folder / "undisturbed") == tree(folder / "single")
    assert (folder / "disturbed" / "poison.json").read_bytes() == (folder / "undisturbed" / "poison.json").read_bytes()
    assert not list((folder / "disturbed").glob(".*"))


@pytest.mark.usefixtures("local_ray")
def test_a_killed_driver_is_continued_by_the_same_command(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), "resumed"],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    out, deadline = folder / "resumed", time.monotonic() + 120
    while not (list(out.glob("*.tar.json")) and list(out.glob(".work-*/.*.tmp"))):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    driver.kill()
    driver.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.tar.json")}
    assert 0 < len(done) < SHARDS
    poison(folder, "resumed", cpus=1)
    assert tree(out) == tree(folder / "single")
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert not list(out.glob(".*"))
