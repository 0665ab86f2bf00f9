"""Peak memory of indexing, poisoning and streaming at two sizes of data set, each in a fresh process with a Ray of its own.

The sum of resident memory of driver and Ray workers (Ray's own services left out), looked at ten times a second. Pages shared
between processes, such as those of Ray's object store, count for each of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from datasets.index.source import Source
from tests.bench.data import write_shards
from tests.bench.measure import MB, ROOT, Meter, Row, ray_session, scratch

SIZES = {"full": (5_000, 20_000), "quick": (500, 1_000)}
BATCH = 64
WORK = ("index", "poison", "stream", "stream-ray")


def child(work: str, shards: Path, out: Path, samples: int) -> dict[str, float]:
    """One piece of work over the shards; peak memory in MB."""
    from datasets.feed.loader import LocalFeed, Recipe
    from datasets.images.view import Views
    from datasets.index.pairs import Pairs
    from orchestrator.cluster.streaming import RayFeed, index_shards
    from tests.bench import poison

    source = Source(urls=str(shards), verify="header")
    made = poison.Set(source, out / "made" / "index.arrow", out / "made" / "plan.parquet", samples)
    with ray_session():
        if work == "index":
            with Meter(0.1, memory=True) as used:
                index_shards(source, out / "index")
        elif work == "poison":
            with Meter(0.1, memory=True) as used:
                poison.poison(made, out / "poisoned")
        else:
            pairs = Pairs(made.index, source.shards(), made.plan)
            recipe = Recipe(views=Views(size=poison.SIZE), trigger=poison.TRIGGER)
            feed = (RayFeed if work == "stream-ray" else LocalFeed)(pairs, recipe, batch_size=BATCH, steps=samples // BATCH)
            with Meter(0.1, memory=True) as used:
                for _ in feed.batches():
                    pass
    return {"rss": used.rss / MB, "pss": used.pss / MB, "wall": used.wall}


def run(size: str, rounds: int) -> list[Row]:
    small, large = SIZES[size]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for samples in (small, large):
        with scratch() as folder:
            shards = write_shards(folder / "data", samples)
            _call("plan", shards, folder, samples)
            for work in WORK:
                found[work, samples] = [_call(work, shards, folder, samples)]
                if work == "poison":
                    subprocess.run(["rm", "-r", str(folder / "poisoned")], check=True)
    rows = []
    for work in WORK:
        big, little = found[work, large], found[work, small]
        rows.append(Row(
            {"index": "indexing", "poison": "poisoning", "stream": "one epoch, feed = local", "stream-ray": "one epoch, feed = ray"}[work],
            "MB", [run["rss"] for run in big], [run["rss"] for run in little], mark=1.15, at_least=False,
            detail={f"{large}": big, f"{small}": little},
        ))
    rows[0].note = f"peak resident memory of driver and workers: `ours` with {large:,} samples, `theirs` with {small:,}"
    return rows


def _call(work: str, shards: Path, out: Path, samples: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.memory", work, str(shards), str(out), str(samples)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    work, shards, out, samples = sys.argv[1:]
    if work == "plan":
        from tests.bench import poison

        with ray_session():
            poison.prepare(Path(out) / "made", Source(urls=shards, verify="header"), int(samples))
        print("{}")
    else:
        print(json.dumps(child(work, Path(shards), Path(out), int(samples))))


if __name__ == "__main__":
    main()
