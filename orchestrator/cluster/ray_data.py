"""The project's use of Ray Data: its settings, tasks of a few shards, and batches as blocks in the object store.

The functions that its workers run are at the top level, because Ray sends them by name.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback

from datasets.feed.loader import Recipe
from orchestrator.cluster.session import user_error
from orchestrator.console.log import folder, join, log, making, stage

BLOCK_BYTES = 16 << 20
"""Bytes of a block in the object store. With Ray's default of 128 MiB a small epoch would be decoded completely before the first batch."""

Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all)."""
AT_MOST, AT_LEAST = 8, 4
"""Shards in a task at most, and tasks for each CPU at least (as far as there are shards): a task costs Ray some 30 ms of CPU, as much as
copying a shard."""


def configure(cpus: int, store_bytes: float = float("inf"), ordered: bool = False) -> None:
    """Settings of the data sets that this process creates from here on.

    The limits are per execution. Without them each execution claims all CPUs of the cluster and half of its object store, so two ranks and
    their trainers may wait for each other for ever.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that an InputError arrives as an InputError
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = ordered
    context.custom_execution_callback_classes = [_Pace]
    context.execution_options.resource_limits = ExecutionResources(cpu=cpus, object_store_memory=store_bytes)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an InputError of a worker as if it had been raised in this process."""
    try:
        yield
    except Exception as error:  # Ray's exceptions have several base classes
        mistake = user_error(error)
        if mistake is None:
            raise
        raise mistake from None


def over_shards(
    task: Callable[..., dict], items: list[dict], constants: dict, cpus: int | None, progress: Progress | None, total: int
) -> None:
    """Run `task(item, **constants)` for each item, a few of them (`tasks`) in one Ray Data task, or in threads of this process if no Ray
    runs. If a worker dies, all items of its task are run again.

    `total` counts the items that were done before, too.
    """
    if not items:
        return
    if not ray.is_initialized():
        _in_threads(task, items, constants, cpus or len(os.sched_getaffinity(0)), progress, total)
        return
    cpus = min(cpus or max(1, int(ray.cluster_resources().get("CPU", 1))), len(items))
    configure(cpus)
    shards = ray.data.from_items(items, override_num_blocks=tasks(len(items), cpus))
    arguments = {"task": task, "constants": constants, "to": folder(), "stage": stage()}
    pool = ray.data.TaskPoolStrategy(size=cpus)
    done = shards.map(_logged, fn_kwargs=arguments, num_cpus=1, compute=pool)  # type: ignore[arg-type]
    with plain_errors():
        for finished, _ in enumerate(done.iter_rows(), start=total - len(items) + 1):
            if progress is not None:
                progress(finished, total)


def tasks(count: int, cpus: int) -> int:
    """How many Ray Data tasks so many items become."""
    return min(count, max(AT_LEAST * cpus, -(-count // AT_MOST)))


def _logged(item: dict, task: Callable[..., dict], constants: dict, to: str, stage: str) -> dict:
    """Run one task; its process writes into the log of the run, in the folder `to`."""
    join(to)
    began = time.monotonic()
    with making(stage):
        done = task(item, **constants)
        log.debug("%s in %.1f s", item.get("url") or item, time.monotonic() - began)
    return done


def _in_threads(
    task: Callable[..., dict], items: list[dict], constants: dict, threads: int, progress: Progress | None, total: int
) -> None:
    """Like `over_shards`, without Ray. After a failure, finish the items that have begun, then raise it."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = {pool.submit(task, item, **constants) for item in items}
        try:
            for finished, one in enumerate(as_completed(waiting), start=total - len(items) + 1):
                one.result()
                if progress is not None:
                    progress(finished, total)
        finally:
            for one in waiting:
                one.cancel()


THREAD = threading.local()
"""Its attribute `window` is the window that this thread fills, if any."""


class _Pace(ExecutionCallback):
    """Makes Ray Data's scheduling loop sleep while batches are ready; otherwise the loop would keep a whole core busy."""

    def __init__(self) -> None:
        self._window: Any = getattr(THREAD, "window", None)  # the window's thread creates it

    def on_execution_step(self, executor: Any) -> None:
        if self._window is not None and self._window.full():
            time.sleep(0.02)


def decode_block(block: pa.Table, recipe: Recipe) -> pa.Table:
    """Decode one row of a window (an epoch and serialised records) into samples."""
    from datasets.feed.loader import make_batch

    (epoch,), (data,) = block["epoch"].to_pylist(), block["records"].to_pylist()
    with pa.ipc.open_stream(data) as reader:
        samples = make_batch(reader.read_all(), epoch, recipe)
    return pa.table({name: to_arrow(values) for name, values in samples.items()})


def to_arrow(values: np.ndarray) -> pa.Array:
    """Pictures uint8 [B, S, S, 3] as fixed-size binary without a copy, objects as text, numbers as they are."""
    if values.ndim == 4:
        flat = np.ascontiguousarray(values)
        kind = pa.binary(flat[0].nbytes)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    return pa.array(values, pa.string() if values.dtype == object else None)


def to_numpy(batch: pa.Table, size: int) -> dict[str, np.ndarray]:
    """The inverse of `to_arrow`: arrays that own their memory."""
    arrays = {}
    for name, column in zip(batch.column_names, batch.columns):
        if pa.types.is_fixed_size_binary(column.type):
            width = column.type.byte_width
            raw = [
                np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
                for chunk in column.chunks
            ]
            arrays[name] = np.concatenate(raw).reshape(len(column), size, size, 3)
        elif pa.types.is_string(column.type):
            arrays[name] = np.array(column.to_pylist(), object)
        else:
            arrays[name] = np.array(column.to_numpy())
    return arrays


def to_bytes(records: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_table(records)
    return sink.getvalue().to_pybytes()
