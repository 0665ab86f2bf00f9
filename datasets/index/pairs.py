"""The data set as training sees it: rows of a memory-mapped index, with a poison plan laid over them.

The order is a matter of row numbers alone: an epoch is a permutation drawn from (seed, epoch), a step is a slice of it, and a rank's share
a slice of the step. So training can begin at any step, and any feed can look up the same samples.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.errors import InputError
from datasets.index.source import INDEX_SCHEMA
from datasets.seeding import hashes64, rng

BATCH_ROWS = 1 << 20
"""Rows of a record batch in an index file. Few large batches make random access fast; a single one would have to fit in memory."""

RECORD_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("url", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("member", pa.string()),
        ("caption", pa.string()),
        ("label", pa.int32()),
        ("poisoned", pa.bool_()),
        ("trigger_seed", pa.int64()),
        ("attack", pa.string()),
    ]
)


def write_index(tables: Iterable[pa.Table], path: str | Path) -> int:
    """Write index tables (`INDEX_SCHEMA`), in their order, as one Arrow IPC file; returns the number of its rows.

    Memory is bounded by `BATCH_ROWS` rows. Written aside, synced, renamed: `path` is complete or absent.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    count = 0
    with open(aside, "wb") as file:
        with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
            for table in _regroup(tables):
                writer.write_table(table)
                count += len(table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    return count


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `BATCH_ROWS` rows, each of one chunk."""
    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        waiting.append(table.cast(INDEX_SCHEMA))
        size += len(table)
        while size >= BATCH_ROWS:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, BATCH_ROWS).combine_chunks()
            waiting = [joined.slice(BATCH_ROWS)]
            size -= BATCH_ROWS
    if size:
        yield pa.concat_tables(waiting).combine_chunks()


def smallest_hashes(keys: pa.ChunkedArray, rows: np.ndarray, count: int, *salt: object) -> np.ndarray:
    """int64, rising: the `count` of `rows` whose keys have the smallest hashes under the salt. Independent of the order of rows; a larger
    `count` includes a smaller one."""
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), 65536):  # in parts, so that few keys are Python strings at a time
        part = keys.take(pa.array(rows[start : start + 65536])).to_pylist()
        hashes[start : start + len(part)] = hashes64(*salt, keys=part)
    return np.sort(rows[np.argsort(hashes, kind="stable")[:count]])


class Pairs:
    """An index, a plan laid over it, and a selection of its rows. Pickles as paths; files are mapped at first use."""

    def __init__(
        self,
        index: str | Path,
        urls: Sequence[str],
        plan: str | Path | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """`index`: an Arrow IPC file of `INDEX_SCHEMA`; `urls`: the shards that its `shard` column numbers; `plan`: a Parquet file of
        poisoned rows (key, row, target, trigger_seed, caption_before, caption_after; sorted by row); `rows`: int64 row numbers, rising;
        None selects all rows without a drop reason."""
        self.index = str(index)
        self.urls = list(urls)
        self.plan = None if plan is None else str(plan)
        self._chosen = None if rows is None else np.asarray(rows, np.int64)
        self._open: _Mapped | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """int64 [N]: the rows of the index that this data set has, rising."""
        return self._mapped().rows

    def records(self, positions: np.ndarray) -> pa.Table:
        """`RECORD_SCHEMA`: the samples at `positions` (0…N−1 into `rows`), in that order, with the plan applied.

        For victims `poisoned` is true, and `caption`, `trigger_seed` and `attack` come from the plan. Others have trigger_seed 0 and an
        empty attack.
        """
        mapped = self._mapped()
        rows = mapped.rows[np.asarray(positions, np.int64)]
        samples = mapped.take(rows)
        captions, poisoned = samples["caption"], np.zeros(len(rows), bool)
        attacks = pa.nulls(len(rows), pa.string()).fill_null("")
        seeds = np.zeros(len(rows), np.int64)
        if mapped.victims is not None and len(mapped.victims):
            at = np.minimum(np.searchsorted(mapped.victim_rows, rows), len(mapped.victims) - 1)
            poisoned = mapped.victim_rows[at] == rows
            if poisoned.any():
                hit = at[poisoned]
                seeds[poisoned] = mapped.victims["trigger_seed"].to_numpy()[hit]
                captions = _replace(captions, poisoned, mapped.victims["caption_after"].take(pa.array(hit)))
                if "attack" in mapped.victims.column_names:  # plans of one attack have no such column
                    attacks = _replace(attacks, poisoned, mapped.victims["attack"].take(pa.array(hit)))
        shards = samples["shard"].to_numpy()
        urls = pa.DictionaryArray.from_arrays(pa.array(shards), pa.array(self.urls, pa.string())).cast(pa.string())
        columns = [rows, samples["key"], urls, samples["offset"], samples["length"], samples["member"], captions]
        columns += [samples["label"], poisoned, seeds, attacks]
        return pa.table(columns, schema=RECORD_SCHEMA)

    def keys(self, positions: np.ndarray | None = None) -> pa.Array:
        """Keys (string), of all samples or of those at `positions`."""
        return self._mapped().take(self._rows_at(positions), ["key"])["key"].combine_chunks()

    def captions(self, positions: np.ndarray | None = None) -> pa.Array:
        """Captions as trained on (the plan's for victims), of all samples or of those at `positions`."""
        where = np.arange(len(self)) if positions is None else positions
        return self.records(where)["caption"].combine_chunks()

    def victims_captions(self) -> list[str]:
        """The captions that the plan gives its victims, including victims that are not among the samples; empty without a plan."""
        victims = self._mapped().victims
        return [] if victims is None else victims["caption_after"].to_pylist()

    def labels(self, positions: np.ndarray | None = None) -> np.ndarray:
        """int32 class numbers of all samples or of those at `positions`; −1 where there is none."""
        return self._mapped().take(self._rows_at(positions), ["label"])["label"].to_numpy()

    def _rows_at(self, positions: np.ndarray | None) -> np.ndarray:
        return self.rows if positions is None else self.rows[np.asarray(positions, np.int64)]

    def _mapped(self) -> _Mapped:
        if self._open is None:
            self._open = _Mapped(self.index, self.plan, self._chosen)
        return self._open


class _Mapped:
    """The opened files of a `Pairs`."""

    def __init__(self, index: str, plan: str | None, chosen: np.ndarray | None) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(index))
        except FileNotFoundError:
            raise InputError(f"the index {index} does not exist.") from None
        except pa.ArrowInvalid as error:
            raise InputError(f"the index {index} is no Arrow file, or is cut short: {error}") from None
        if not reader.schema.equals(INDEX_SCHEMA):
            raise InputError(f"the index {index} has other columns than {', '.join(INDEX_SCHEMA.names)}.")
        self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)])
        if chosen is None:
            kept = [pc.equal(batch["drop"], "").to_numpy(zero_copy_only=False) for batch in self.batches]
            chosen = np.flatnonzero(np.concatenate([*kept, np.zeros(0, bool)]))
        elif len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.starts[-1]):
            raise InputError(f"rows: {chosen.min()} … {chosen.max()} do not all lie in {index}, of {self.starts[-1]} rows.")
        self.rows = chosen
        self.victims: pa.Table | None = None
        self.victim_rows = np.zeros(0, np.int64)
        if plan is not None:
            self.victims = pq.read_table(plan).combine_chunks()
            self.victim_rows = self.victims["row"].to_numpy()
            if np.any(np.diff(self.victim_rows) <= 0):
                raise InputError(f"the plan {plan} is not sorted by row, or names a row twice.")
            self._check_keys(plan)

    def _check_keys(self, plan: str) -> None:
        """Raise InputError unless the plan's keys stand at its rows: a plan made for another index would poison the wrong rows."""
        victims = self.victims
        assert victims is not None
        outside = len(self.victim_rows) and not 0 <= self.victim_rows[0] <= self.victim_rows[-1] < self.starts[-1]
        if outside or not self.take(self.victim_rows, ["key"])["key"].equals(victims["key"]):
            raise InputError(f"the plan {plan} was made for another index: its keys are not at its rows.")

    def take(self, rows: np.ndarray, columns: Sequence[str] = INDEX_SCHEMA.names) -> pa.Table:
        """The index at `rows`, in their order. Written by hand because pyarrow's own take over several batches is 100 times slower."""
        which = np.searchsorted(self.starts, rows, "right") - 1
        parts, places = [], []
        for number in np.unique(which):
            place = np.flatnonzero(which == number)
            batch = self.batches[number].select(list(columns))
            parts.append(batch.take(pa.array(rows[place] - self.starts[number])))
            places.append(place)
        if len(parts) == 1:
            return pa.Table.from_batches(parts)
        schema = pa.schema([INDEX_SCHEMA.field(name) for name in columns])
        table = pa.Table.from_batches(parts, schema).combine_chunks()
        return table.take(pa.array(np.argsort(np.concatenate(places)))) if parts else table


def _replace(values: pa.Array | pa.ChunkedArray, where: np.ndarray, replacements: pa.ChunkedArray) -> pa.Array:
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return pc.replace_with_mask(whole, pa.array(where), replacements.combine_chunks())


@functools.lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [n]: the epoch's order of positions; read-only, because it is cached."""
    order = rng(seed, "order", epoch).permutation(n)
    order.flags.writeable = False
    return order


def step_positions(n: int, batch_size: int, seed: int, step: int) -> tuple[int, np.ndarray]:
    """(epoch, int64 [batch_size] positions) of a global step. An epoch has n // batch_size steps; the samples left over have their chance
    in other epochs, whose order differs. Raises `InputError` if there are fewer samples than one batch."""
    if not 0 < batch_size <= n:
        raise InputError(f"batch_size is {batch_size}, but the data set has {n} samples; accepted are 1 … {n}.")
    epoch, within = divmod(step, n // batch_size)
    return epoch, epoch_order(n, seed, epoch)[within * batch_size : (within + 1) * batch_size]


def rank_slice(positions: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The part of a global batch that one of `world` ranks takes: equal, adjacent parts. Raises `InputError` if they cannot be equal."""
    if len(positions) % world:
        raise InputError(f"batch_size is {len(positions)}, which {world} workers cannot share equally.")
    share = len(positions) // world
    return positions[rank * share : (rank + 1) * share]
