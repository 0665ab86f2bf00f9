"""Wall time, CPU time and memory of this process and all it started; comparisons in alternating rounds; the table."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MB = 1e6


class Meter:
    """Measures what runs inside `with Meter() as used:`.

    `used.wall` in seconds; `used.cpu` in CPU-seconds (user + system) of this process and every descendant, Ray's own services
    included. The tree is looked at every `interval` seconds and each process's last reading kept, so a process that ends loses
    at most that much; the meter's own thread is taken out. With `memory` also the highest sums of `used.rss` and `used.pss`
    in bytes (shared pages counted for each process, and divided between them) over driver and workers, without Ray's services.
    """

    def __init__(self, interval: float = 0.2, memory: bool = False) -> None:
        self.interval, self.memory = interval, memory
        self.wall = self.cpu = 0.0
        self.rss = self.pss = 0
        self._first: dict[tuple[int, float], float] = {}
        self._last: dict[tuple[int, float], float] = {}
        self._own = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Meter:
        self._look(first=True)
        self._thread.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()
        self._look()
        self.cpu = sum(last - self._first.get(process, 0.0) for process, last in self._last.items()) - self._own

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._look()
        self._own = time.thread_time()

    def _look(self, first: bool = False) -> None:
        import psutil  # here, so that the step can be timed where it is not installed

        me = psutil.Process()
        rss = pss = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                with process.oneshot():
                    times, identity = process.cpu_times(), (process.pid, process.create_time())
                    (self._first if first else self._last)[identity] = times.user + times.system
                    if self.memory and (process == me or _works(process)):
                        rss += process.memory_info().rss
                        pss += _pss(process.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
                continue  # it ended between the listing and the look
        self.rss, self.pss = max(self.rss, rss), max(self.pss, pss)


def _works(process: Any) -> bool:
    """Whether it does the user's work: a Ray worker ("ray::…") or a plain child, not Ray's services."""
    command = " ".join(process.cmdline())
    return not any(name in command for name in ("raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env", "monitor.py"))


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))


@dataclass
class Row:
    """One line of the table: a figure of both sides, round by round."""

    what: str
    unit: str
    ours: list[float]
    theirs: list[float]
    mark: float | None = None
    """of the median ratio ours / theirs"""
    at_least: bool = True
    """whether the mark is a lower limit"""
    note: str = ""
    detail: dict = field(default_factory=dict)
    """whatever else was measured; goes to the JSON alone"""

    @property
    def ratio(self) -> float:
        """The median over rounds of ours / theirs; nan where there is no other side."""
        pairs = [a / b for a, b in zip(self.ours, self.theirs) if b]
        return statistics.median(pairs) if pairs else float("nan")

    @property
    def verdict(self) -> str:
        """met, missed, or nothing without a mark"""
        if self.mark is None:
            return ""
        met = self.ratio >= self.mark if self.at_least else self.ratio <= self.mark
        return f"{'≥' if self.at_least else '≤'} {self.mark:g} {'met' if met else 'MISSED'}"


def alternate(
    ours: Callable[[], dict[str, float]], theirs: Callable[[], dict[str, float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Both sides in turn, the order changing each round: their figures by name."""
    sides: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            found = (ours, theirs)[side]()
            for name, value in found.items():
                sides[side].setdefault(name, []).append(value)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"  round {number + 1} of {rounds}, {('ours', 'theirs')[side]}: {figures}", flush=True)
    return sides


def spread(values: list[float]) -> str:
    """median [smallest, largest]"""
    if not values:
        return "–"
    short = lambda value: f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} [{short(min(values))}, {short(max(values))}]"


def table(rows: list[Row]) -> str:
    """The rows as text in columns."""
    head = ("what", "unit", "ours", "theirs", "ratio", "mark")
    lines = [head] + [
        (r.what, r.unit, spread(r.ours), spread(r.theirs), "–" if r.ratio != r.ratio else f"{r.ratio:.3g}", r.verdict)
        for r in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    notes = [f"  {r.what}: {r.note}" for r in rows if r.note]
    return "\n".join(text + notes)


def save(rows: list[Row], out: Path, name: str, seconds: float) -> None:
    """The rows with the machine as `out/<name>.json`."""
    out.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "seconds": round(seconds, 1), **machine(), "rows": [
        {**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows]}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def machine() -> dict[str, object]:
    """Processor, cores, memory, load, commit, versions, date."""
    from importlib import metadata

    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    names = ("torch", "ray", "open_clip_torch", "webdataset", "numpy", "simplejpeg")
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load": round(os.getloadavg()[0], 2), "python": platform.python_version(), "versions": versions,
        "commit": git.stdout.strip() or "unknown", "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv),
    }


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cleansweep-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ray_session(num_cpus: int = 2) -> Iterator[None]:
    """A Ray of its own, as the command line starts it."""
    from orchestrator.cluster import session

    os.environ.pop("RAY_ADDRESS", None)  # a measurement must not land on somebody's cluster
    session.connect(num_cpus)
    try:
        yield
    finally:
        session.shutdown()
