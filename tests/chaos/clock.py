"""A clock that is an hour off: the run is killed, and the same command continues with its clock, or that of the store's disk, set back or
forward. Every fourth try is under a real Ray, with MLflow and the page."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from tests.chaos import here
from tests.chaos.kill import DATA, POLL_S, Command, Kill
from tests.chaos.kill_here import Undisturbed, death
from tests.chaos.shifted.sitecustomize import SHIFT_S, shift
from tests.chaos.tried import Tried
from tests.experiments import furnish

HOUR_S = 3600.0
OFF_S = ((-HOUR_S, 0.0), (HOUR_S, 0.0), (0.0, HOUR_S), (-HOUR_S, HOUR_S), (HOUR_S, -HOUR_S))
"""(seconds that the continued run's clock differs, seconds by which the times of all files are moved)"""
TRAINS_S = 25.0
"""Seconds from the first checkpoint of a pre-training to the end of the trials, on a busy machine."""
RAY_EVERY = 4


class Clock:
    name = "clock"
    about = "a run that is killed and continued with its clock, or the times of all files, an hour back or ahead; every fourth under Ray"

    def prepare(self, folder: Path) -> str:
        self.folder, self.undisturbed = folder, Undisturbed.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        own, of_files = OFF_S[number % len(OFF_S)]
        what = f"its clock {own:+.0f} s, files {of_files:+.0f} s"
        store = self.folder / f"clock-{number}"
        try:
            if number % RAY_EVERY == RAY_EVERY - 1:
                return self.under_ray(store, own, of_files, what, draw)
            killed = here.command(store, death(draw, self.undisturbed))
            redate(store, of_files)
            ended = here.command(store, first=partial(shift, own) if own else None)
            wrong = self.undisturbed.ended_well(store, ended) or negative(store)
            return Tried(f"{what}, {'killed' if killed.killed else 'after the end'}", killed.killed, wrong, 2)
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def under_ray(self, store: Path, own: float, of_files: float, what: str, draw: np.random.Generator) -> Tried:
        """The driver is killed in pre-training, after the first checkpoint, or in the trials."""
        alone = Kill.of(self.folder)
        store.mkdir()
        furnish(store, alone.store, *DATA)
        first = Command(self.folder, store)
        try:
            while not list(store.glob("pretrain/.work-*/step_*")) and first.process.poll() is None:
                time.sleep(POLL_S)
            until = first.ran() + draw.uniform(0, TRAINS_S)
            while first.ran() < until and first.process.poll() is None:
                time.sleep(POLL_S)
            killed = first.process.poll() is None
            first.process.kill()
            first.wait()
        finally:
            first.process.kill()
            first.clear()
        redate(store, of_files)
        path = os.pathsep.join(filter(None, [str(Path(__file__).with_name("shifted")), os.environ.get("PYTHONPATH")]))
        again = Command(self.folder, store, PYTHONPATH=path, **{SHIFT_S: str(own)})
        try:
            code, said = again.wait()
            _, left = again.clear()
        finally:
            again.process.kill()
            again.clear()
            shutil.rmtree(self.folder / "t", ignore_errors=True)
        wrong = [f"still alive after the command: {'; '.join(left)}"] if left else []
        if code or "Traceback (most recent" in said:
            wrong.append(f"the same command ends with code {code}: {said.strip()[-1500:]}")
        else:
            wrong += alone.compare(store) + negative(store)
        return Tried(f"under Ray, {what}, {f'driver killed after {until:.0f} s' if killed else 'after the end'}", killed, wrong, 2)


def redate(store: Path, seconds: float) -> None:
    """Move the times of everything in the store."""
    for above, folders, names in os.walk(store):
        for name in (*folders, *names):
            path = Path(above) / name
            at = path.stat().st_mtime + seconds
            os.utime(path, (at, at))


def negative(store: Path) -> list[str]:
    """Where in the store a duration is below nothing: of stages, epochs, points, and of MLflow's runs."""
    found = []
    for path in store.glob("*/*/manifest.json"):
        found += [f"{path.relative_to(store)}: {seconds} s"] if (seconds := json.loads(path.read_bytes())["seconds"]) < 0 else []
    for path in store.glob("*/*/metrics.jsonl"):
        times = [0.0, *(json.loads(line)["seconds"] for line in path.read_bytes().splitlines())]
        found += [f"{path.relative_to(store)}: {times} s"] if times != sorted(times) else []
    for path in store.glob("reports/*/*.csv"):
        for row in csv.DictReader(path.open()):
            found += [f"{path.relative_to(store)}: {row['seconds']} s"] if float(row.get("seconds") or 0) < 0 else []
    if (store / "mlflow.db").exists():
        with closing(sqlite3.connect(store / "mlflow.db")) as database:
            runs = database.execute("SELECT name, start_time, COALESCE(end_time, 0) FROM runs").fetchall()
        found += [f"MLflow's {name} ends {start - end} ms before it begins" for name, start, end in runs if end < start]
    return found
