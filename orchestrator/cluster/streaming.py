"""Indexing shards, writing poisoned ones, and streaming the plan of an epoch into training, all with Ray Data.

The computations of Ray Data's workers are in `datasets`, which does not know Ray. The functions that workers run are at the top level here,
because Ray sends them by name.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.feed.loader import Recipe, StepFeed
from datasets.index.keys import mark_duplicates, shard_names
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import NOTES, Source
from datasets.seeding import hash64
from datasets.storage import known_sha256, sha256, size_of
from datasets.triggers.base import Trigger
from orchestrator.cluster.ray_data import BLOCK_BYTES, THREAD, Progress, configure, decode_block, plain_errors, to_bytes, to_numpy
from orchestrator.cluster.ray_data import over_shards as _over_shards
from orchestrator.console import log
from orchestrator.manifest import digest_of

BLOCK_ROWS = 256
"""Most pictures in one block of a feed. Small pictures would take seconds of decoding to fill a block by size."""
WINDOW_ROWS = 32_768
"""Rows of the plan that a rank hands to Ray Data at once: some 10 MB of records, whatever the data set's size. It is more if many CPUs
would finish them in a few seconds."""

# ---- the index -----------------------------------------------------------------------------------------


def index_shards(source: Source, out: Path, *, cpus: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Write `out/index.arrow`, the rows of all shards in their order, by Ray Data tasks of a few shards, or by threads if no Ray runs.

    At most `cpus` tasks run at a time; None: as many as the cluster, or this machine, has. The shards' own tables are kept in `out/parts`
    until all are there, so an interrupted run continues from them; damaged ones are made again, with a message. The driver holds the keys
    in memory, not the rows.

    Returns {"shards", "empty_shards", "samples", "kept", "drops": {reason: samples}, "passed_over": members of tars that belong to no
    sample, "columns": those of the tables that were read}, and if there are any "label_not_number": samples of tars that get no label
    because theirs is no class number, and "json_broken": samples whose json member is no JSON object. Raises InputError as
    `Source.index_shard` and `mark_duplicates` do.
    """
    urls, parts = source.shards(), Path(out) / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    _sweep(parts)
    # a part's name identifies its source, so that another source's part is never used
    settings = [(name, value) for name, value in sorted(vars(source).items()) if name != "urls"]
    names = [
        f"{number:05d}-{hash64(settings, identity):016x}.arrow"
        for number, identity in enumerate(source.identity())
    ]
    missing = [n for n, name in enumerate(names) if _note_of(parts / name) is None]
    for part in [parts / names[n] for n in missing]:
        if part.exists():
            log.note(f"{part} of an index under way is not as it was written: it is made again.")
    called = shard_names(urls)
    items = [{"number": n, "url": urls[n], "name": called[n], "path": str(parts / names[n])} for n in missing]
    _over_shards(_index_shard, items, {"source": source}, cpus, progress, len(urls))
    tables = [_open(parts / name) for name in names]
    notes = [note for name in names if (note := _note_of(parts / name))]
    assert len(notes) == len(names), "every shard has its table"
    table = mark_duplicates(pa.concat_tables(tables), urls)
    write_index([table], Path(out) / "index.arrow")
    drops = Counter({entry["values"]: entry["counts"] for entry in table["drop"].value_counts().to_pylist()})
    kept = drops.pop("", 0)
    counts = {name: sum(note.get(name, 0) for note in notes) for name in ("label_not_number", "json_broken")}
    shutil.rmtree(parts)
    return {
        "shards": len(urls),
        "empty_shards": sum(not len(one) for one in tables),
        "samples": len(table),
        "kept": kept,
        "drops": dict(sorted(drops.items())),
        "passed_over": sum(note["passed_over"] for note in notes),
        "columns": list({str(note["columns"]): note["columns"] for note in notes if note["columns"]}.values()),
        **{name: count for name, count in counts.items() if count},
    }


def _index_shard(item: dict, source: Source) -> dict:
    path = Path(item["path"])
    if _note_of(path) is not None:  # made by the same task, before its worker died
        return {"number": item["number"]}
    with _private(path.parent) as folder:
        table = source.index_shard(item["number"], item["url"], item["name"])
        write_index([table], folder / path.name)
        note = {**json.loads(table.schema.metadata[NOTES]), "sha256": sha256(folder / path.name)}
        (folder / "note").write_text(json.dumps({**note, "digest": digest_of(note)}))
        os.replace(folder / path.name, path)
        os.replace(folder / "note", path.with_suffix(".json"))
    return {"number": item["number"]}


def _note_of(part: Path) -> dict[str, Any] | None:
    """The notes on a shard's table; None if table or notes are missing or changed."""
    try:
        note = json.loads(part.with_suffix(".json").read_bytes())
        return note if note.pop("digest") == digest_of(note) and note["sha256"] == known_sha256(part) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _open(index: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(index))).read_all()


# ---- poisoned shards -----------------------------------------------------------------------------------


def poison_shards(
    source: Source,
    index: Path,
    plan: Path,
    trigger: Trigger,
    size: int,
    out: Path,
    *,
    jpeg_quality: int | None = None,
    others: Sequence[Poison] = (),
    cpus: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the tar shards of `source` with the plan's victims stamped, a few shards in one Ray Data task.

    `plan` (Parquet, PLAN_SCHEMA) refers to rows of `index`, which was made from `source`; `size` is the canonical view's side in pixels;
    `jpeg_quality` and `others` as in `poisoned_shards.poison_shard`. A shard with a marker, which is written last, is not made again.
    `poison.json` records the folder's plan; a folder of another plan is refused. The bytes of all files depend on the arguments alone, not
    on `cpus`, interruptions or the place. Returns {"shards", "n", "poisoned", "bad", "bytes"}.
    """
    from datasets.attack.poisoned_shards import committed

    out, urls = Path(out), source.shards()
    paths = [out / name for name in _output_names(urls)]
    if any(os.path.realpath(url) == os.path.realpath(path) for url, path in zip(urls, paths)):
        raise InputError(f"{out} is the folder of the shards themselves; poisoned ones go into another.")
    out.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    made_of = {"plan": f"{hash64(Path(plan).read_bytes().hex()):016x}", "trigger": repr(trigger), "size": size}
    made_of |= {} if jpeg_quality is None else {"jpeg_quality": jpeg_quality}
    _claim(out, made_of | ({"others": repr(others)} if others else {}), urls)
    shard_of_row = _open(index)["shard"].to_numpy()
    bounds = np.searchsorted(shard_of_row, np.arange(len(urls) + 1)).tolist()
    items = [
        {"url": url, "path": str(path), "start": bounds[number], "stop": bounds[number + 1], "prefix": name if source.key_prefix else ""}
        for number, (url, path, name) in enumerate(zip(urls, paths, shard_names(urls)))
        if committed(path) is None
    ]
    constants = {"plan": str(plan), "trigger": trigger, "size": size, "json_field": source.json_field, "jpeg_quality": jpeg_quality}
    constants |= {"others": others}
    _over_shards(_poison_shard, items, constants, cpus, progress, len(urls))
    _sweep(out)  # left by workers that were killed while others went on
    total: Counter[str] = Counter(shards=len(urls))
    for path in paths:
        manifest = committed(path, just_made=True)
        assert manifest is not None, f"{path} is not committed"
        total.update({field: manifest[field] for field in ("n", "poisoned", "bad", "bytes")})
    return dict(total)


def _poison_shard(
    item: dict, plan: str, trigger: Trigger, size: int, json_field: str, jpeg_quality: int | None, others: Sequence[Poison]
) -> dict:
    from datasets.attack.poisoned_shards import committed, poison_shard

    path = Path(item["path"])
    if committed(path) is not None:  # by the same task, before its worker died
        return {"path": item["path"]}
    victims = pq.read_table(plan, filters=[("row", ">=", item["start"]), ("row", "<", item["stop"])])
    with _private(path.parent) as folder:
        out = folder / path.name
        names: dict = {"key_prefix": item["prefix"], "caption_key": json_field}
        poison_shard(item["url"], victims, trigger, size, out, jpeg_quality=jpeg_quality, others=others, **names)
        (marker,) = set(folder.iterdir()) - {folder / path.name}
        os.replace(folder / path.name, path)
        os.replace(marker, path.with_name(marker.name))
    return {"path": item["path"]}


def _output_names(urls: Sequence[str]) -> list[str]:
    """Names of the output shards: the shards' own names if they differ, else numbers."""
    names = [url.rsplit("/", 1)[-1] for url in urls]
    return names if len(set(names)) == len(names) else [f"{number:05d}.tar" for number in range(len(names))]


def _claim(out: Path, made_of: dict[str, Any], urls: Sequence[str]) -> None:
    """Record in `out/poison.json` what the folder is for; InputError if it is already used for something else."""
    note = out / "poison.json"
    shards = [[url.rsplit("/", 1)[-1], size_of(url)] for url in urls]
    text = json.dumps({**made_of, "shards": shards}, indent=1) + "\n"
    if not note.exists():
        with _private(out) as folder:
            (folder / note.name).write_text(text)
            os.replace(folder / note.name, note)
    elif note.read_text() != text:
        raise InputError(
            f"{out} holds shards made from another plan, trigger or source ({note}); choose another folder or empty it."
        )


@contextlib.contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` for one attempt at one file, so that an orphaned process never writes into its successor's folder."""
    work = folder / f".work-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove unfinished files of killed workers."""
    for work in folder.glob(".work-*"):
        shutil.rmtree(work, ignore_errors=True)


# ---- the training stream ------------------------------------------------------------------------------


class RayFeed(StepFeed):
    """The batches of one rank, equal to LocalFeed's, decoded by Ray Data tasks wherever the cluster has CPUs.

    The rank reads its rows of the plan from the index and hands them to Ray Data in windows. So the tasks need only the shards, and
    training can begin at any step. The next window starts when half of the last one is left.
    """

    def __init__(
        self,
        pairs: Pairs,
        recipe: Recipe,
        *,
        cpus: int = 1,
        prefetch: int = 2,
        window_rows: int | None = None,
        **steps: int,
    ) -> None:
        """`steps`: the arguments of StepFeed.

        `cpus` tasks of one CPU decode for this rank at a time, so the cluster needs at least one CPU beside those of the training workers,
        and `world * cpus` for full speed. `prefetch` batches lie ready in the rank's memory. InputError also if the training workers leave
        no CPU.
        """
        super().__init__(pairs, recipe, **steps)
        self.stop = self.steps
        self.cpus, self.prefetch = cpus, prefetch
        _require_a_cpu(self.world)
        rows = window_rows or max(WINDOW_ROWS, WINDOW_ROWS // 4 * cpus)
        self._window_steps = max(1, rows * self.world // self.batch_size)

    def batches(
        self, start_step: int = 0, stop_step: int | None = None, order: np.ndarray | None = None
    ) -> Iterator[dict[str, Any]]:
        """Like LocalFeed.batches: `make_batch`'s dict with "step", "epoch" and "number"."""
        self.stop, self.order = self.steps if stop_step is None else stop_step, order
        current = following = None
        try:
            for step in range(start_step, self.stop):
                place = (step - start_step) % self._window_steps
                if place == 0:
                    current, following = following or _Window(self, step), None
                ahead = step - place + self._window_steps
                if following is None and ahead < self.stop and place >= self._window_steps // 2:
                    following = _Window(self, ahead)
                assert current is not None
                yield current.take(step)
        finally:
            for window in (current, following):
                if window is not None:
                    window.close()

    def layout(self, first: int) -> tuple[list[dict], dict[int, tuple[int, np.ndarray]], float]:
        """The window from step `first` on: (a row for each block of its plan, epoch and positions of each step, bytes of the object
        store)."""
        steps = range(first, min(first + self._window_steps, self.stop))
        row_bytes = self.recipe.views.size**2 * 3 * (2 if self.recipe.two_views else 1)
        share = ray.cluster_resources().get("object_store_memory", 0.0) / (3 * self.world)  # two windows, with some reserve
        block_rows = max(1, min(BLOCK_ROWS, int(min(BLOCK_BYTES, share / 6)) // row_bytes))
        parts = [self.share(step) for step in steps]
        items = []
        for epoch, group in itertools.groupby(parts, key=lambda part: part[0]):
            records = self.pairs.records(np.concatenate([positions for _, positions in group]))
            for start in range(0, len(records), block_rows):
                items.append({"epoch": epoch, "records": to_bytes(records.slice(start, block_rows))})
        expected = dict(zip(steps, parts))
        # blocks that are in the making, ready, or being joined to batches; Ray spills the excess to disk
        rows = (2 * self.cpus + 2) * block_rows + 2 * self.batch_size // self.world
        return items, expected, min(share, rows * row_bytes)


def _require_a_cpu(world: int) -> None:
    """Raise InputError if the training workers, including this process, leave no CPU: workers and feed would wait for each other for
    ever."""
    cpus = ray.cluster_resources().get("CPU", 0.0)
    context = ray.get_runtime_context()
    per_worker = context.get_assigned_resources().get("CPU", 0.0) if context.worker.mode == ray.WORKER_MODE else 0.0
    if cpus - world * per_worker < 1:
        raise InputError(
            f"feed = ray needs a whole CPU to decode on, but {world} training workers take {world * per_worker:g} of the "
            f"cluster's {cpus:g}; lower cpus_per_worker, or set feed = local."
        )


class _Window:
    """One execution of Ray Data. A thread moves its batches into a short queue."""

    def __init__(self, feed: RayFeed, first: int) -> None:
        self._feed, self._first = feed, first
        self._expected: dict[int, tuple[int, np.ndarray]] = {}
        self._ready: queue.Queue[Any] = queue.Queue(max(1, feed.prefetch))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-feed", daemon=True)
        self._thread.start()

    def take(self, step: int) -> dict[str, Any]:
        """The batch of `step`; steps must be taken in order."""
        got = self._ready.get()
        if isinstance(got, BaseException):
            with plain_errors():
                raise got
        epoch, positions = self._expected.pop(step)
        rows = self._feed.pairs.rows_at(positions)
        assert np.array_equal(got["row"], rows), f"Ray Data gave other rows than the plan's for step {step}"
        return {**got, "step": step, "epoch": epoch, "number": positions}

    def full(self) -> bool:
        """Whether the queue is full."""
        return self._ready.full() and not self._stopped.is_set()

    def close(self) -> None:
        """Stop the execution and its tasks."""
        self._stopped.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            THREAD.window = self
            recipe, cpus = self._feed.recipe, self._feed.cpus
            items, self._expected, store = self._feed.layout(self._first)
            configure(cpus, store, ordered=True)
            stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                decode_block,  # type: ignore[arg-type]
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"recipe": recipe},
                num_cpus=1,
                compute=ray.data.TaskPoolStrategy(size=cpus),
            )
            rows = self._feed.batch_size // self._feed.world
            for batch in stream.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=1):
                if not self._put(to_numpy(batch, recipe.views.size)):
                    return
            self._put(AssertionError("Ray Data gave fewer rows than the plan has"))
        except BaseException as error:  # `take` raises it in the thread that trains
            self._put(error)

    def _put(self, batch: Any) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(batch, timeout=0.2)
                return True
        return False
