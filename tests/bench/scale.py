"""How the work before and between steps grows with the number of pairs: fabricated indexes of 1 and 10 million rows, no pictures.

Each piece of work runs in a fresh process: CPU-seconds, and the highest memory beyond what it had when it began (anonymous memory: pages of
mapped files are shared by all processes and given back when they are needed). The exponent is the slope of CPU-seconds over rows on log
axes: 1 is linear.

And what an order asks of storage: bytes read for each byte used, where storage is read in blocks of 4 MiB and 4 GiB of them are kept.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from datasets.attack.poison import Poison, make_plan
from datasets.index.keys import mark_duplicates
from datasets.index.order import Drawn, Formula, Order, Windows, step_positions
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import INDEX_SCHEMA
from datasets.triggers.patch import Patch
from tests.bench.measure import MB, ROOT, Row, scratch

SIZES = {"full": (1_000_000, 10_000_000), "quick": (10_000, 40_000)}
SHARD = 5_000
BATCH = 2048
PICTURE = 30_000
BLOCK, KEPT = 4 << 20, 4 << 30
ORDERS: dict[str, Order] = {"drawn": Drawn(), "formula": Formula(), "windows": Windows()}
WORK = ("merge", "plan", "clean", *(f"{when}-{order}" for order in ORDERS for when in ("first", "resume")))
TOLD = {
    "merge": "parts to one index, no key twice", "plan": "poison plan, 1 500 victims", "clean": "cleaning set of 100 000, by hash",
    **{f"first-{order}": f"opening and first batch, order {order}" for order in ORDERS},
    **{f"resume-{order}": f"opening and ten batches from the middle of epoch 10, order {order}" for order in ORDERS},
}  # fmt: skip


def part(first: int, count: int) -> pa.Table:
    """Rows of the index as tars of `SHARD` pairs give them; one row in 200 is dropped."""
    row = np.arange(first, first + count)
    caption = "a photo of some thing number {} that stands on a table in a room"
    columns = [
        [f"{i:09d}" for i in row], row // SHARD, [f"{i:09d}.jpg" for i in row], (row % SHARD) * PICTURE, np.full(count, PICTURE),
        [caption.format(i) for i in row], np.full(count, -1), ["undecodable" if i % 200 == 7 else "" for i in row],
    ]  # fmt: skip
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)


def fabricate(folder: Path, rows: int) -> None:
    """`part-….arrow`, and the index of them."""
    for first in range(0, rows, 500_000):
        write_index([part(first, min(500_000, rows - first))], folder / f"part-{first:09d}.arrow")
    write_index(map(_mapped, sorted(folder.glob("part-*.arrow"))), folder / "index.arrow")


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def work(name: str, folder: Path) -> None:
    """One piece of work."""
    if name == "merge":
        write_index([mark_duplicates(pa.concat_tables(map(_mapped, sorted(folder.glob("part-*.arrow")))))], folder / "merged.arrow")
        (folder / "merged.arrow").unlink()
    elif name == "plan":
        make_plan(Poison(trigger=Patch(), target="banana", count=1500), _mapped(folder / "index.arrow"), ["a photo of a {}."])
    elif name == "clean":
        pairs = Pairs(folder / "index.arrow", [])
        pairs.smallest(min(100_000, len(pairs) // 2), 0, "clean")
    else:
        when, order = name.split("-")
        pairs = Pairs(folder / "index.arrow", [f"{n:05d}.tar" for n in range(-(-10_000_000 // SHARD))])
        starts = pairs.shard_starts() if ORDERS[order].by_shard else np.array([0, len(pairs)])
        steps = int(starts[-1]) // BATCH
        for step in range(10 * steps + steps // 2, 10 * steps + steps // 2 + 10) if when == "resume" else [0]:
            pairs.records(step_positions(starts, BATCH, 0, step, ORDERS[order])[1])


def child(name: str, folder: Path) -> dict[str, float]:
    """CPU-seconds and MB that a piece of work takes in this process."""
    before, peak, done = _status("RssAnon"), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _status("RssAnon"))

    watching = threading.Thread(target=look)
    watching.start()
    began = time.process_time()
    work(name, folder)
    used = time.process_time() - began
    done.set()
    watching.join()
    return {"cpu": used, "mb": (max(peak[0], _status("RssAnon")) - before) / MB, "rss": _status("VmHWM") / 1e6}


def _status(name: str) -> float:
    """A size of this process alone, in bytes (`ru_maxrss` would take over that of the process that started it)."""
    with open("/proc/self/status") as file:
        return next(1024.0 * int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def amplified(order: Order, rows: int) -> float:
    """Bytes read for each byte used over an epoch, with blocks of `BLOCK` bytes of which the last `KEPT` bytes are kept."""
    starts = np.arange(0, rows + 1, SHARD)
    position_N = order.positions(starts, 0, 0, 0, rows)
    first_N = (position_N % SHARD) * PICTURE
    kept: OrderedDict[tuple[int, int], None] = OrderedDict()
    read = 0
    for shard, low, high in zip((position_N // SHARD).tolist(), (first_N // BLOCK).tolist(), ((first_N + PICTURE - 1) // BLOCK).tolist()):
        for block in range(low, high + 1):
            if (shard, block) in kept:
                kept.move_to_end((shard, block))
            else:
                kept[shard, block] = None
                read += BLOCK
                if len(kept) > KEPT // BLOCK:
                    kept.popitem(last=False)
    return read / (rows * PICTURE)


def run(size: str, rounds: int) -> list[Row]:
    small, large = SIZES[size]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for rows in (small, large):
        with scratch() as folder:
            fabricate(folder, rows)
            for name in WORK:
                found[name, rows] = [_call(name, folder) for _ in range(rounds)]
                print(f"  {rows:,} rows, {TOLD[name]}: {found[name, rows][0]}", flush=True)
    table = []
    for name in WORK:
        large_runs, small_runs = found[name, large], found[name, small]
        cpu = [[run["cpu"] for run in runs] for runs in (large_runs, small_runs)]
        slope = math.log(min(cpu[0]) / min(cpu[1])) / math.log(large / small)
        memory: Callable[[list[dict[str, float]]], str] = lambda runs: f"{max(run['mb'] for run in runs):,.0f} MB"
        note = f"exponent {slope:.2f}; memory {memory(large_runs)} against {memory(small_runs)}"
        table.append(Row(TOLD[name], "CPU-s", *cpu, mark=1.1 * large / small, at_least=False, note=note))
    table[0].note += f" (`ours` with {large:,} rows, `theirs` with {small:,})"
    shown = min(large, 2_000_000)
    for name in ("windows", "formula"):
        table.append(Row(f"bytes read for a byte used, order {name}", "", [amplified(ORDERS[name], shown)], [amplified(Drawn(), shown)]))
    table[-1].note = f"`theirs`: order drawn; {shown:,} pictures of {PICTURE:,} bytes"
    return table


def _call(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.scale", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], Path(sys.argv[2]))))
