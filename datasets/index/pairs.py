"""The data set as training sees it: rows of a memory-mapped index, with a poison plan laid over them.

What grows with the number of rows stays in the mapped file, which all processes of a machine share; a process keeps the dropped rows alone.
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
from datasets.index.columns import take
from datasets.index.source import INDEX_SCHEMA
from datasets.seeding import hashes64

BATCH_ROWS = 1 << 20
"""Rows of a record batch in an index file. Few large batches make random access fast; a single one would have to fit in memory."""
HASHED = 1 << 16
"""Keys that are hashed at a time."""

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
    `count` includes a smaller one. Memory: 32 bytes for each of the `count`."""
    if not count:
        return rows[:0]
    best, hashes = [rows[:0]], [np.zeros(0, np.uint64)]
    held = 0
    for start in range(0, len(rows), HASHED):  # in parts, so that few keys are Python strings at a time
        best.append(rows[start : start + HASHED])
        hashes.append(hashes64(*salt, keys=take(keys, best[-1]).to_pylist()))
        held += len(best[-1])
        if held > 2 * count + HASHED:  # keep those that may be among the smallest, found in linear time
            together = np.concatenate(hashes)
            near = np.flatnonzero(together <= np.partition(together, count - 1)[count - 1])
            best, hashes, held = [np.concatenate(best)[near]], [together[near]], len(near)
    return np.sort(np.concatenate(best)[np.argsort(np.concatenate(hashes), kind="stable")[:count]])


class Pairs:
    """An index, a plan laid over it, and a selection of its rows. Pickles as paths; files are mapped at first use."""

    def __init__(
        self,
        index: str | Path,
        urls: Sequence[str],
        plan: str | Path | None = None,
        rows: np.ndarray | str | Path | None = None,
    ) -> None:
        """`index`: an Arrow IPC file of `INDEX_SCHEMA`; `urls`: the shards that its `shard` column numbers; `plan`: a Parquet file of
        poisoned rows (key, row, target, trigger_seed, caption_before, caption_after; sorted by row); `rows`: int64 row numbers, rising,
        or an .npy file of them, which is mapped; None selects all rows without a drop reason."""
        self.index = str(index)
        self.urls = list(urls)
        self.plan = None if plan is None else str(plan)
        self._chosen = rows if rows is None or isinstance(rows, np.ndarray) else str(rows)
        self._open: _Mapped | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def __len__(self) -> int:
        return len(self._mapped().rows)

    @property
    def rows(self) -> np.ndarray:
        """int64 [N]: the rows of the index that this data set has, rising. 8 bytes a row: `rows_at` gives those of a batch."""
        return self.rows_at(np.arange(len(self)))

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """int64: the rows of the index at `positions` (0 … N − 1)."""
        return self._mapped().rows[np.asarray(positions, np.int64)]

    def shard_starts(self) -> np.ndarray:
        """int64, rising: the position at which each shard that has rows begins, and at the end the number of positions."""
        return self._mapped().shard_starts

    def smallest(self, count: int, *salt: object, among: np.ndarray | None = None) -> np.ndarray:
        """int64, rising: the `count` positions, of all or of those `among`, whose keys have the smallest hashes under the salt."""
        mapped = self._mapped()
        keys = pa.chunked_array([batch["key"] for batch in mapped.batches], pa.string())
        return mapped.rows.index(smallest_hashes(keys, self.rows if among is None else self.rows_at(among), count, *salt))

    def records(self, positions: np.ndarray) -> pa.Table:
        """`RECORD_SCHEMA`: the samples at `positions` (0…N−1 into `rows`), in that order, with the plan applied.

        For victims `poisoned` is true, and `caption`, `trigger_seed` and `attack` come from the plan. Others have trigger_seed 0 and an
        empty attack.
        """
        mapped = self._mapped()
        rows = self.rows_at(positions)
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
        return self._mapped().take(self._all_or(positions), ["key"])["key"].combine_chunks()

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
        return self._mapped().take(self._all_or(positions), ["label"])["label"].to_numpy()

    def _all_or(self, positions: np.ndarray | None) -> np.ndarray:
        return self.rows if positions is None else self.rows_at(positions)

    def _mapped(self) -> _Mapped:
        if self._open is None:
            self._open = _Mapped(self.index, self.plan, self._chosen)
        return self._open


class _AllBut:
    """0 … n − 1 without the dropped numbers, as a sequence that keeps the dropped ones alone."""

    def __init__(self, dropped: np.ndarray, n: int) -> None:
        self.dropped, self.n = dropped, n
        self.before = dropped - np.arange(len(dropped))  # how many remain before each

    def __len__(self) -> int:
        return self.n - len(self.dropped)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions {positions.min()} … {positions.max()} of {len(self)}")
        return positions + np.searchsorted(self.before, positions, "right")

    def index(self, rows: np.ndarray) -> np.ndarray:
        """Positions of the rows; of a dropped row, that of the next one."""
        return rows - np.searchsorted(self.dropped, rows, "left")


class _Chosen:
    """Given rows as a sequence."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows[positions])

    def index(self, rows: np.ndarray) -> np.ndarray:
        """Positions of the rows; of a row that is not among them, that of the next one."""
        return np.searchsorted(self.rows, rows)

    def check(self, index: str, n: int) -> None:
        """InputError unless the rows are whole numbers that rise and lie in an index of n rows."""
        rising = isinstance(self.rows, np.memmap) or not np.any(np.diff(self.rows) <= 0)  # a file's rows are as they were written
        if not np.issubdtype(self.rows.dtype, np.integer) or self.rows.ndim != 1 or not rising:
            raise InputError(f"rows of {index}: accepted are whole numbers that rise, each once.")
        if len(self.rows) and not (self.rows[0] >= 0 and self.rows[-1] < n):
            raise InputError(f"rows: {self.rows[0]} … {self.rows[-1]} do not all lie in {index}, of {n} rows.")


class _Mapped:
    """The opened files of a `Pairs`."""

    def __init__(self, index: str, plan: str | None, chosen: np.ndarray | str | None) -> None:
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
        self.rows: _AllBut | _Chosen
        if chosen is None:
            dropped = [
                start + np.flatnonzero(pc.not_equal(batch["drop"], "").to_numpy(zero_copy_only=False))
                for start, batch in zip(self.starts, self.batches)
            ]
            self.rows = _AllBut(np.concatenate([*dropped, np.zeros(0, np.int64)]), int(self.starts[-1]))
        else:
            try:
                self.rows = _Chosen(np.load(chosen, mmap_mode="r") if isinstance(chosen, str) else chosen)
            except (OSError, ValueError) as error:
                raise InputError(f"the rows {chosen} cannot be read: {error}.") from error
            self.rows.check(index, int(self.starts[-1]))
        self.victims: pa.Table | None = None
        self.victim_rows = np.zeros(0, np.int64)
        if plan is not None:
            self.victims = pq.read_table(plan).combine_chunks()
            self.victim_rows = self.victims["row"].to_numpy()
            if np.any(np.diff(self.victim_rows) <= 0):
                raise InputError(f"the plan {plan} is not sorted by row, or names a row twice.")
            self._check_keys(plan)

    @functools.cached_property
    def shard_starts(self) -> np.ndarray:
        firsts, last = [np.zeros(0, np.int64)], None
        for start, batch in zip(self.starts, self.batches):
            shard_R = batch["shard"].to_numpy()
            if len(shard_R):
                changes = np.flatnonzero(np.diff(shard_R, prepend=shard_R[0] if last is None else last))
                firsts.append(start + changes if last is not None else np.concatenate([[start], start + changes]))
                last = shard_R[-1]
        return np.concatenate([self.rows.index(np.concatenate(firsts)), [len(self.rows)]]).astype(np.int64)

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
