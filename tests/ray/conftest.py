"""One Ray for all tests of this folder: two cores, a small object store, and the dashboard that Train and Tune need."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from datasets.attack.poison import PLAN_SCHEMA
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.index.write import write_tar
from datasets.triggers.patch import Patch
from orchestrator.cluster import session
from orchestrator.commands import cli
from tests.experiments import ray_of


@pytest.fixture(scope="session")
def ray_session() -> None:
    session.connect(2, object_store_bytes=300_000_000)


@pytest.fixture
def here(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`cleansweep …` as `tests.experiments.cleansweep` runs it, in this process and on the one Ray, which it leaves running."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        output = io.StringIO()
        with monkeypatch.context() as patched, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            for name, value in environment.items():
                patched.setenv(name, value)
            with patch("ray.shutdown"):
                code = cli.run(list(arguments))
        return code, output.getvalue()

    return run


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Stop Ray after the last test that uses it: of several processes, this one may go on with others."""
    if nextitem is None or ray_of(nextitem.nodeid) != "one":
        session.shutdown()


@dataclass(frozen=True)
class Made:
    """A small data set with a plan."""

    source: Source
    index: Path
    plan: Path
    trigger: Patch
    pairs: Pairs


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """make(shards, per_shard, side, victims): JPEGs of random colours, every n-th sample a victim."""

    def build(shards: int = 3, per_shard: int = 20, side: int = 40, every: int = 7) -> Made:
        folder = tmp_path / "data"
        folder.mkdir()
        for shard in range(shards):
            write_tar(folder / f"{shard:05d}.tar", (_sample(shard, i, side) for i in range(per_shard)))
        source = Source(urls=str(folder))
        tables = [source.index_shard(number, url) for number, url in enumerate(source.shards())]
        write_index(tables, tmp_path / "reference.arrow")
        table = pa.concat_tables(tables)
        rows = list(range(3, len(table), every))
        keys, captions = (table[name].take(pa.array(rows)).to_pylist() for name in ("key", "caption"))
        n = len(rows)
        columns = [keys, rows, ["banana"] * n, [5] * n, captions, ["a photo of a banana."] * n]
        pq.write_table(pa.table(columns, schema=PLAN_SCHEMA), tmp_path / "plan.parquet")
        index, plan = tmp_path / "reference.arrow", tmp_path / "plan.parquet"
        return Made(source, index, plan, Patch(size=8), Pairs(index, source.shards(), plan))

    return build


def _sample(shard: int, number: int, side: int) -> tuple[str, dict[str, bytes | str]]:
    draw = np.random.default_rng((shard, number))
    picture = draw.integers(0, 256, (1, 1, 3), np.uint8) + draw.integers(0, 60, (side, side + 10, 3), np.uint8)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=90)
    return f"{shard:05d}{number:04d}", {"jpg": jpeg, "txt": f"thing number {number} of shard {shard}"}
