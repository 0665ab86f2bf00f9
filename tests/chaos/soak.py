"""A long sweep of many small trials under the product's own Ray: what of memory, open files, threads and disk grows with the trials?

Nothing is broken. Every few seconds it is written down how much the command and its processes hold. What a finished trial leaves in the
database, the log and the page may grow, in proportion to the trials. Nothing else may.
"""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil

from tests.chaos.kill import ROOT, Command
from tests.chaos.state import leftovers, tracked

SWEEP = str(ROOT / "tests" / "chaos" / "soak_sweep.py")
TRIALS = "CLEANSWEEP_SOAK_TRIALS"
"""The environment variable that tells the sweep how many trials it has."""
EVERY_S = 5.0
TRIAL, SERVICES = "ray::ImplicitFunc", ("raylet", "gcs_server")
FLAT_OF_FIRST = 0.02
"""A value is flat if 100 more trials add less than this part of what it was after the first quarter, or than `Value.least`."""
LINEAR = 1.5
"""A value grows in proportion if 100 trials of its last half add at most so many times what 100 trials of the half before do."""


@dataclass(frozen=True)
class Value:
    """One of the values that are written down."""

    name: str
    unit: str
    may_grow: bool = False
    """whether it may grow in proportion to the trials"""
    least: float = 0.0
    """growth in 100 trials that is within the noise of the measurement"""


VALUES = (
    Value("driver memory", "MB", least=2.0),
    Value("driver open files", "", least=1.0),
    Value("driver threads", "", least=1.0),
    Value("worker memory, the largest", "MB", least=2.0),
    Value("worker open files, the most", "", least=1.0),
    Value("workers", "", least=0.5),
    Value("Ray's raylet and GCS, memory", "MB", may_grow=True),
    Value("MLflow database", "kB", may_grow=True),
    Value("store, kB a trial", "kB", least=1.0),
    Value("log and records", "kB", may_grow=True),
    Value("Tune's folder", "kB", may_grow=True),
    Value("Ray's session folder", "kB", may_grow=True),
    Value("page", "kB", may_grow=True),
)
Sample = dict[str, float]
"""Seconds, trials finished, and the values by name; a value that could not be read is left out."""


def soak(folder: Path, trials: int, minutes: float, out: Path) -> int:
    """Run the sweep, at most so many minutes, and tell what grew; returns 1 if something grew that may not, or the command failed."""
    store = folder / "store"
    samples: list[Sample] = []
    with patch.dict(os.environ, {TRIALS: str(trials)}):
        command = Command(folder, store, (SWEEP, "--keep", "last"))
        try:
            samples += _watched(command, folder, store, trials, 60 * minutes)
            stopped = command.process.poll() is None
            if stopped:
                command.process.send_signal(signal.SIGINT)
            code, said = command.wait()
            _, left = command.clear()
        finally:
            command.process.kill()
            command.clear()
        done = len(_cleanings(store))
        with suppress(OSError, StopIteration):
            samples.append({"seconds": command.ran(), "trials": done, "page": _kb(next(store.glob("reports/*/report.html")))})
    write_series(samples, out)
    print(f"\n{done} of {trials} trials in {samples[-1]['seconds'] / 60:.1f} minutes; series: {out}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    wrong = [f"still alive after the command: {name}" for name in left]
    if stopped:
        print(f"stopped after {minutes:g} minutes")
    elif code:
        wrong.append(f"the command ended with code {code}: {said.strip()[-500:]}")
    else:
        wrong += [f"{name} is left over" for name in leftovers(store)]
        if (runs := len(tracked(store))) != trials + 2:
            wrong.append(f"MLflow holds {runs} runs for a sweep, a pre-training and {trials} trials")
    text, grew = table(samples)
    print(text, *wrong, sep="\n")
    return int(bool(wrong) or grew)


def _watched(command: Command, folder: Path, store: Path, trials: int, seconds: float) -> Iterator[Sample]:
    """A sample every few seconds until the command ends or time is up; at every eighth of the trials the page is written too."""
    paged = 0
    while command.process.poll() is None and command.ran() < seconds:
        began = time.monotonic()
        now = sample(command, folder, store)
        if now["trials"] and 8 * now["trials"] // trials > paged:
            paged = int(8 * now["trials"] // trials)
            with suppress(OSError):
                now["page"] = _page_kb(folder, store)
        yield now
        with suppress(Exception):
            command.process.wait(max(0.1, EVERY_S - (time.monotonic() - began)))


def sample(command: Command, folder: Path, store: Path) -> Sample:
    """What the command and its processes hold now, and what lies on the disk."""
    found: Sample = {"seconds": command.ran(), "trials": len(_cleanings(store))}
    workers, services = [], 0.0
    for process in command.own():
        with suppress(psutil.Error, OSError):
            name = Path((process.cmdline() or [""])[0]).name
            if process.pid == command.process.pid:
                found["driver memory"], found["driver open files"] = own_mb(process.pid), process.num_fds()
                found["driver threads"] = process.num_threads()
            elif name.startswith(TRIAL):
                workers.append((own_mb(process.pid), process.num_fds()))
            elif name in SERVICES:
                services += own_mb(process.pid)
    if workers:
        found["worker memory, the largest"] = max(memory for memory, _ in workers)
        found["worker open files, the most"] = max(files for _, files in workers)
        found["workers"] = len(workers)
    if services:
        found["Ray's raylet and GCS, memory"] = services
    if found["trials"]:
        found["store, kB a trial"] = sum(_kb(path) for path in _cleanings(store)) / len(_cleanings(store))
    found["MLflow database"] = sum(_kb(path) for path in store.glob("mlflow.db*"))
    found["log and records"] = _kb(store / "logs") + _kb(store / "sweep")
    found["Tune's folder"] = _kb(store / "ray")
    found["Ray's session folder"] = _kb(folder / "t" / "ray")
    return found


def own_mb(pid: int) -> float:
    """Memory that a process shares with no other, in MB: what it would free by ending. Ray's shared object store is no part of it."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1000


def _cleanings(store: Path) -> list[Path]:
    """The folders of the finished trials."""
    return [path for path in store.glob("clean/*-*") if not path.name.startswith(".")]


def _kb(path: Path) -> float:
    """The size of a file, or of all files in a folder, in kB. What goes meanwhile is left out."""
    total = 0
    for name in (path, *(Path(above) / name for above, _, names in os.walk(path) for name in names)):
        with suppress(OSError):
            total += name.lstat().st_size if name.is_file() else 0
    return total / 1000


def _page_kb(folder: Path, store: Path) -> float:
    """The size of the report's page of what is finished now. It is written elsewhere, by this process."""
    from orchestrator.report.page import write_report
    from orchestrator.store import Store
    from orchestrator.sweep.plan import make_plan
    from orchestrator.sweep.stored import load_study
    from tests.chaos.soak_sweep import SWEEP as sweep

    return _kb(write_report(load_study(make_plan(sweep), Store(store)), folder / "page"))


def write_series(samples: Sequence[Sample], out: Path) -> None:
    """The samples as CSV, a row each; an empty cell where a value could not be read."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["seconds", "trials", *(value.name for value in VALUES)])
        rows.writeheader()
        rows.writerows({name: round(one, 3) for name, one in row.items()} for row in samples)


def table(samples: Sequence[Sample]) -> tuple[str, bool]:
    """The table of what grew, as Markdown, and whether something grew that may not.

    What comes before the first quarter of the trials is the start: caches fill, modules are imported. What comes after the last trial is
    the end: the page is drawn, MLflow gets its files, Ray stops. Only the page counts there.
    """
    last = max((row["trials"] for row in samples), default=0)
    lines = ["| | first quarter | end | slope per 100 trials | verdict |", "|---|---|---|---|---|"]
    bad = False
    for value in VALUES:
        rows = [
            (row["trials"], row[value.name]) for row in samples
            if value.name in row and last / 4 <= row["trials"] and (row["trials"] < last or value.name == "page")
        ]  # fmt: skip
        if len({trials for trials, _ in rows}) < 3:
            lines.append(f"| {value.name} | | | | too few values |")
            continue
        verdict, slope, wrong = judge(value, np.array(rows))
        bad |= wrong
        shown = " ".join(filter(None, (f"{slope:+.3g}", value.unit)))
        lines.append(f"| {value.name} | {rows[0][1]:.4g} {value.unit} | {rows[-1][1]:.4g} {value.unit} | {shown} | {verdict} |")
    return "\n".join(lines), bad


def judge(value: Value, rows: np.ndarray) -> tuple[str, float, bool]:
    """(verdict, slope per 100 trials, whether it is wrong) of rows (trials, value) from the first quarter on."""
    slope, middle = 100 * theil_sen(rows), rows[:, 0].mean()
    if slope <= max(FLAT_OF_FIRST * rows[0, 1], value.least):
        return "flat", slope, False
    if not value.may_grow:
        return "GROWS", slope, True
    first, second = (100 * theil_sen(half) for half in (rows[rows[:, 0] <= middle], rows[rows[:, 0] >= middle]))
    faster = second > LINEAR * max(first, slope / 2)
    return ("GROWS faster than the trials" if faster else "in proportion"), slope, faster


def theil_sen(rows: np.ndarray) -> float:
    """The median of the slopes of all pairs of rows (Theil 1950, Sen 1968): single outliers do not move it."""
    earlier, later = np.triu_indices(len(rows), 1)
    run, rise = (rows[later] - rows[earlier]).T
    return float(np.median(rise[run > 0] / run[run > 0])) if (run > 0).any() else 0.0
