"""Poisoned shards at a rate of 0.3 %: ours against Ray Data's read_webdataset → map → write_webdataset.

The peer is given what helps it: `decoder=None, encoder=None`, so that it neither decodes nor encodes untouched samples, and the
victims' new pictures come from the same functions. With its default decoder it would decode and re-encode every picture.
"""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.attack.poison import Poison, make_plan
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from orchestrator.cluster.streaming import index_shards, poison_shards
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, ray_session, scratch
from tests.bench.peers import stamp_bytes, stamp_decoded

SIZE = 224
TRIGGER = Patch(size=16)
POISON = Poison(trigger=TRIGGER, target="banana", rate=0.003)
SIZES = {"full": 30_000, "quick": 1_000}


@dataclass
class Set:
    """Shards with their index and plan."""

    source: Source
    index: Path
    plan: Path
    samples: int


def prepare(folder: Path, source: Source, samples: int) -> Set:
    """Index and plan of the shards, in `folder`."""
    index_shards(source, folder)
    index, plan = folder / "index.arrow", folder / "plan.parquet"
    table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
    pq.write_table(make_plan(POISON, table, ("a photo of a {}.",), ("banana",)), plan)
    return Set(source, index, plan, samples)


def poison(made: Set, out: Path) -> None:
    """Our side."""
    done = poison_shards(made.source, made.index, made.plan, TRIGGER, SIZE, out)
    assert done["n"] == made.samples and done["poisoned"] == round(POISON.rate * made.samples) and not done["bad"], done


def peer(made: Set, out: Path, decode: bool = False) -> None:
    """Ray Data's side, with its default settings but for the progress bars."""
    import ray.data
    from ray.data import DataContext

    DataContext._set_current(DataContext())  # ours sets limits of its own
    DataContext.get_current().enable_progress_bars = False
    plan = pq.read_table(made.plan, columns=["key", "trigger_seed", "caption_after"]).to_pylist()
    victims = {row["key"]: (row["trigger_seed"], row["caption_after"]) for row in plan}
    coder: dict[str, Any] = {} if decode else {"decoder": None}
    data = ray.data.read_webdataset(made.source.shards(), **coder)
    constants = {"victims": victims, "trigger": TRIGGER, "size": SIZE}
    data = data.map(stamp_decoded if decode else stamp_bytes, fn_kwargs=constants)
    data.write_webdataset(str(out), **({} if decode else {"encoder": None}))


def check_same(made: Set, ours: Path, theirs: Path) -> None:
    """Both sides poisoned the same samples, and the peer's tars hold all of them."""

    def pictures(folder: Path) -> dict[str, bytes]:
        found = {}
        for tar in sorted(folder.glob("*.tar")):
            with tarfile.open(tar) as archive:
                for member in archive:
                    if member.name.endswith((".jpg", ".txt")):
                        found[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
        return found

    one, other = pictures(ours), pictures(theirs)
    assert len(one) == 2 * made.samples and one == other, "both sides must write the same pictures and captions"


def run(size: str, rounds: int) -> list[Row]:
    samples = SIZES[size]
    with scratch() as folder, ray_session():
        shards = write_shards(folder / "data", samples)
        made = prepare(folder / "indexed", Source(urls=str(shards)), samples)
        small = prepare(folder / "small", Source(urls=str(write_shards(folder / "little", 1000, 500))), 1000)

        def side(work: Any, what: Set = made, keep: Path | None = None) -> dict[str, float]:
            out = keep or folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            with Meter() as used:
                work(what, out)
            if keep is None:
                shutil.rmtree(out, ignore_errors=True)
            return {"per_cpu": what.samples / used.cpu, "per_second": what.samples / used.wall,
                    "cpu": used.cpu, "wall": used.wall}

        # the workers start and import outside the clock, on both sides; and both make the same files
        side(poison, small, folder / "ours")
        side(peer, small, folder / "theirs")
        check_same(small, folder / "ours", folder / "theirs")
        ours, theirs = alternate(lambda: side(poison), lambda: side(peer), rounds)

        def whole(verify: str) -> dict[str, float]:
            def work(what: Set, out: Path) -> None:
                shutil.rmtree(folder / "again", ignore_errors=True)
                poison(prepare(folder / "again", Source(urls=str(shards), verify=verify), samples), out)

            return side(work)

        with_index = {verify: [whole(verify)["per_cpu"] for _ in range(min(2, rounds))] for verify in ("none", "decode")}
        decoding = side(lambda what, out: peer(what, out, decode=True), small)["per_cpu"]
    what = f"poisoned shards, {samples:,} samples"
    return [
        Row(what, "samples/CPU-s", ours["per_cpu"], theirs["per_cpu"], mark=20,
            note="CPU of driver, workers and Ray's services; index and plan made before; the peer passes untouched bytes on",
            detail={"ours": ours, "theirs": theirs}),
        Row("the same, by the clock", "samples/s", ours["per_second"], theirs["per_second"]),
        Row("index, plan and shards, pictures not looked at", "samples/CPU-s", with_index["none"], theirs["per_cpu"]),
        Row("index, plan and shards, every picture decoded once", "samples/CPU-s", with_index["decode"], theirs["per_cpu"], mark=3,
            note="source.verify = decode, the default: finds pictures that do not decode, which the peer does not"),
        Row("against the peer's default decoder, 1,000 samples", "samples/CPU-s", ours["per_cpu"], [decoding] * rounds,
            note="that one decodes and re-encodes every picture"),
    ]
