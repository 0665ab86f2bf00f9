"""Ray Data does what one process does: the same index, the same shards, the same batches."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from datasets.attack.poison import PLAN_SCHEMA
from datasets.attack.poisoned_shards import poison_shard
from datasets.errors import InputError
from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.addresses import read_bytes
from datasets.index.source import Source
from datasets.index.write import write_tar
from orchestrator.cluster import network
from orchestrator.cluster.streaming import RayFeed, index_shards, poison_shards
from tests.experiments import ROOT

pytestmark = pytest.mark.usefixtures("ray_session")


def tree(folder: Path) -> dict[str, str]:
    """Relative name → SHA-256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
            assert np.array_equal(value, other[name]), name
        else:
            assert value == other[name], name


# ---- the index -----------------------------------------------------------------------------------------


def test_the_index_is_the_one_a_single_process_makes(make: Callable, tmp_path: Path) -> None:
    made = make()
    write_tar(
        tmp_path / "data" / "00003.tar",
        [
            ("bad", {"jpg": b"\xff\xd8 no picture", "txt": "a word"}),
            ("mute", {"jpg": b"", "txt": ""}),
            ("none", {"txt": "a word"}),
        ],
    )
    summary = index_shards(made.source, tmp_path / "out", cpus=2)
    program = "import sys; from pathlib import Path; from datasets.index.source import Source; "
    program += "from orchestrator.cluster.streaming import index_shards; import ray; "
    program += " print(index_shards(Source(urls=sys.argv[1]), Path(sys.argv[2]))); assert not ray.is_initialized()"
    words = [sys.executable, "-c", program, made.source.urls, tmp_path / "local"]
    local = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert local.stdout.strip() == str(summary) and tree(tmp_path / "local") == tree(tmp_path / "out"), "the same without Ray"
    found = pa.ipc.open_file(tmp_path / "out" / "index.arrow").read_all()
    expected = [made.source.index_shard(number, url) for number, url in enumerate(made.source.shards())]
    assert found.equals(pa.concat_tables(expected).combine_chunks())
    assert (summary["shards"], summary["samples"], summary["kept"]) == (4, 63, 60)
    assert sum(summary["drops"].values()) == 3 and summary["drops"]["no_image"] == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.arrow"]


def test_empty_shards_and_the_columns_of_tables_are_in_the_summary(make: Callable, tmp_path: Path) -> None:
    made = make(shards=2)
    write_tar(tmp_path / "data" / "00002.tar", [])
    write_tar(tmp_path / "data" / "00003.tar", [("notes", {"md": "nothing"}), ("odd", {"gif": "GIF", "txt": "a word"})])
    first = made.pairs.records(np.array([0])).to_pylist()[0]
    picture = read_bytes(first["url"], first["offset"], first["length"], first["member"])
    pa.parquet.write_table(pa.table({"jpg": [picture], "text": ["a word"]}), tmp_path / "a.parquet")
    source = Source(urls=(str(tmp_path / "data"), str(tmp_path / "a.parquet")))
    summary = index_shards(source, tmp_path / "out")
    kept = len(made.pairs) + 1
    assert summary == {
        "shards": 5,
        "empty_shards": 1,
        "samples": kept + 1,
        "kept": kept,
        "drops": {"unknown_extension": 1},
        "passed_over": 1,
        "columns": [{"image": "jpg", "caption": "text"}],
    }


def test_shards_of_one_name_are_told_apart_when_poisoned_too(make: Callable, tmp_path: Path) -> None:
    made = make(shards=1)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "00000.tar").write_bytes((tmp_path / "data" / "00000.tar").read_bytes())
    source = Source(urls=(str(tmp_path / "data"), str(tmp_path / "more")), key_prefix=True)
    assert index_shards(source, tmp_path / "both")["kept"] == 2 * len(made.pairs)
    table = pa.ipc.open_file(tmp_path / "both" / "index.arrow").read_all()
    plan = pa.parquet.read_table(made.plan)
    rows = [len(table) // 2 + row for row in plan["row"].to_pylist()]
    plan = plan.set_column(0, "key", table["key"].take(rows)).set_column(1, "row", pa.array(rows))
    pa.parquet.write_table(plan.cast(PLAN_SCHEMA), tmp_path / "plan.parquet")
    index = tmp_path / "both" / "index.arrow"
    done = poison_shards(source, index, tmp_path / "plan.parquet", made.trigger, 32, tmp_path / "poisoned")
    assert (done["shards"], done["poisoned"]) == (2, len(plan))


def test_a_damaged_shard_is_one_clear_error_and_the_others_are_kept(make: Callable, tmp_path: Path) -> None:
    made = make()
    last = tmp_path / "data" / "00002.tar"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00002\.tar is cut short[^\n]*$") as raised:
        index_shards(made.source, tmp_path / "out", cpus=1)
    assert type(raised.value) is InputError and raised.value.__cause__ is None
    last.write_bytes(whole)
    seen: list[tuple[int, int]] = []
    index_shards(made.source, tmp_path / "out", progress=lambda *place: seen.append(place))
    assert seen == [(3, 3)]


def test_a_key_in_two_shards_is_named(make: Callable, tmp_path: Path) -> None:
    made = make(shards=2)
    (tmp_path / "data" / "00009.tar").write_bytes((tmp_path / "data" / "00000.tar").read_bytes())
    with pytest.raises(InputError, match="000000000"):
        index_shards(made.source, tmp_path / "out")


# ---- poisoned shards -----------------------------------------------------------------------------------


def test_poisoned_shards_do_not_depend_on_the_workers(make: Callable, tmp_path: Path) -> None:
    made = make()
    single = tmp_path / "single"
    plan = pa.parquet.read_table(made.plan)
    shard_of = np.asarray(plan["row"]) // 20
    for number, url in enumerate(made.source.shards()):
        poison_shard(url, plan.filter(pa.array(shard_of == number)), made.trigger, 32, single / Path(url).name)
    trees = []
    for cpus in (1, 2):
        out = tmp_path / f"out{cpus}"
        total = poison_shards(made.source, made.index, made.plan, made.trigger, 32, out, cpus=cpus)
        assert total == {"shards": 3, "n": 60, "poisoned": 9, "bad": 0, "bytes": total["bytes"]}
        trees.append(tree(out))
    assert trees[0] == trees[1]
    assert {name: digest for name, digest in trees[0].items() if name != "poison.json"} == tree(single)


def test_poisoning_goes_on_where_it_stopped(make: Callable, tmp_path: Path) -> None:
    made, out = make(), tmp_path / "out"
    arguments = (made.source, made.index, made.plan, made.trigger, 32, out)
    poison_shards(*arguments, cpus=1)
    before = tree(out)
    kept = (out / "00000.tar").stat().st_mtime_ns
    (out / "00001.tar.json").unlink()  # written, not committed
    (out / "00002.tar").write_bytes(b"cut")
    (out / ".work-of-a-killed-worker").mkdir()
    (out / ".work-of-a-killed-worker" / ".00001.tar.tmp").write_bytes(b"half")
    seen: list[tuple[int, int]] = []
    poison_shards(*arguments, cpus=2, progress=lambda *place: seen.append(place))
    assert tree(out) == before and seen == [(2, 3), (3, 3)]
    assert (out / "00000.tar").stat().st_mtime_ns == kept


def test_shards_of_another_plan_are_not_taken_for_these(make: Callable, tmp_path: Path) -> None:
    made = make(shards=1)
    poison_shards(made.source, made.index, made.plan, made.trigger, 32, tmp_path / "out")
    with pytest.raises(InputError, match="another plan"):
        poison_shards(made.source, made.index, made.plan, made.trigger, 24, tmp_path / "out")
    with pytest.raises(InputError, match="shards themselves"):
        poison_shards(made.source, made.index, made.plan, made.trigger, 32, tmp_path / "data")


# ---- the training stream -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "start", "window_rows"), [(1, 0, 30_000), (1, 4, 25), (2, 0, 17), (2, 7, 30_000)]
)
def test_both_feeds_give_the_same_batches(make: Callable, world: int, start: int, window_rows: int) -> None:
    made = make()
    recipe = Recipe(views=Views(size=32), trigger=made.trigger, seed=3, two_views=True, eda="per_epoch")
    for rank in range(world):
        common = {"batch_size": 16, "steps": 11, "rank": rank, "world": world}  # three steps an epoch
        local = LocalFeed(made.pairs, recipe, **common).batches(start)
        stream = RayFeed(made.pairs, recipe, window_rows=window_rows, **common).batches(start)
        steps = []
        for one, other in zip(local, stream, strict=True):
            equal(one, other)
            steps.append(other["step"])
        assert steps == list(range(start, 11))


def test_batches_may_be_written_to(make: Callable) -> None:
    made = make(shards=1)
    feed = RayFeed(made.pairs, Recipe(views=Views(size=32), trigger=made.trigger), batch_size=10, steps=1)
    (batch,) = feed.batches()
    batch["image"][0] = 0
    assert batch["image"].flags.writeable


def test_an_unreadable_picture_is_one_clear_error(make: Callable, tmp_path: Path) -> None:
    made = make(shards=1)
    recipe = Recipe(views=Views(size=32), trigger=made.trigger)
    feed = RayFeed(made.pairs, recipe, batch_size=10, steps=4)
    (tmp_path / "data" / "00000.tar").unlink()
    with pytest.raises(InputError, match=r"the picture of sample '0000000\d\d'[^\n]*$") as raised:
        list(feed.batches())
    assert type(raised.value) is InputError


def test_a_feed_that_is_left_stops(make: Callable) -> None:
    made = make()
    recipe = Recipe(views=Views(size=32), trigger=made.trigger)
    batches = RayFeed(made.pairs, recipe, batch_size=4, steps=5000).batches()
    next(batches)
    batches.close()
    deadline = time.monotonic() + 20
    while alive := [t.name for t in threading.enumerate() if t.name.startswith(("ray-feed", "StreamingExecutor"))]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def test_a_feed_that_waits_for_training_costs_little(make: Callable) -> None:
    """Ray Data's scheduling loop spins on a whole core while it is held back, unless it is paced."""
    made = make()
    recipe = Recipe(views=Views(size=224), trigger=made.trigger)
    batches = RayFeed(made.pairs, recipe, batch_size=40, steps=5000).batches()
    for _ in range(5):
        next(batches)
    time.sleep(2)  # until all that may wait is full
    before = time.process_time()
    time.sleep(2)
    assert time.process_time() - before < 1.0
    batches.close()


def test_training_workers_that_leave_no_cpu_are_refused(make: Callable) -> None:
    pairs = make(shards=1).pairs  # what the worker gets must not be of a class of these tests

    @ray.remote(num_cpus=1)
    def worker() -> str:
        try:
            RayFeed(pairs, Recipe(views=Views(size=32)), batch_size=4, steps=1, world=2)
        except InputError as error:
            return str(error)
        return "accepted"

    assert "feed = ray needs a whole CPU" in ray.get(worker.remote())


def test_two_train_workers_are_fed_on_two_cores_and_talk_over_loopback(make: Callable, tmp_path: Path) -> None:
    """Two ranks of half a CPU each and one CPU to decode on: neither waits for the other for ever. Ray is on loopback, and so are they."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    made = make()
    pairs, recipe = made.pairs, Recipe(views=Views(size=32), trigger=made.trigger)
    out = tmp_path / "digests"
    out.mkdir()

    def loop(config: dict) -> None:
        import hashlib
        import os

        import ray.train
        import torch

        from orchestrator.cluster.session import quiet
        from orchestrator.cluster.streaming import RayFeed

        quiet()
        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        feed = RayFeed(pairs, recipe, batch_size=16, steps=9, rank=rank, world=world, window_rows=20)
        digests = [hashlib.sha256(batch["image"].tobytes()).hexdigest() for batch in feed.batches()]
        (out / f"{rank}").write_text("\n".join(digests))
        total = torch.ones(3)
        torch.distributed.all_reduce(total)
        assert total.tolist() == [2, 2, 2]
        (out / f"interface{rank}").write_text(os.environ["GLOO_SOCKET_IFNAME"])

    TorchTrainer(
        loop,
        torch_config=network.torch_config(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(name="feed", storage_path=str(tmp_path / "train")),
    ).fit()
    for rank in range(2):
        local = LocalFeed(pairs, recipe, batch_size=16, steps=9, rank=rank, world=2)
        expected = [hashlib.sha256(batch["image"].tobytes()).hexdigest() for batch in local.batches()]
        assert (out / f"{rank}").read_text().split("\n") == expected
        assert (out / f"interface{rank}").read_text() == network.interface_of("127.0.0.1")


def test_source_of_one_file(make: Callable, tmp_path: Path) -> None:
    made = make(shards=1)
    source = Source(urls=str(tmp_path / "data" / "00000.tar"))
    assert index_shards(source, tmp_path / "out")["kept"] == len(made.pairs)
