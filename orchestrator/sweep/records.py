"""What is written down of a sweep's trials while they run: the values that were drawn, and which the scheduler stopped."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator.experiment.fingerprint import canonical, encode
from orchestrator.stages.swept import grid_values
from orchestrator.store import Store, digest_of, read_json, write_json
from orchestrator.sweep.plan import Plan

_LATEST: dict[Path, int] = {}
"""When the trial of a folder that began last did so: each folder is read once, not once a trial."""


@dataclass(frozen=True)
class Record:
    """The record of a trial that a sweep has begun."""

    trial: str
    """The first digits of its cleaning's fingerprint."""
    overrides: dict[str, Any]
    status: str
    """stopped, where the scheduler stopped it for good; else empty"""
    draw: int
    """Its number among draws of the same values."""


def remember_trial(store: Store, sweep: str, trial: str, overrides: dict[str, Any], *, draw: int = 0, status: str = "") -> None:
    """Record that the sweep tries these values, and how the trial ended: nothing else records what Optuna drew and ASHA stopped."""
    folder = _trial_folder(store, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{trial[:12]}-{draw}.json" if draw else f"{trial[:12]}.json")
    known = _remembered(path) if path.exists() else None
    if known is None or (status and known["status"] != status):
        entry = {"overrides": encode(overrides), "status": status, "begun": known["begun"] if known else _now(folder)}
        write_json(path, {**entry, "digest": digest_of(entry)})


def _now(folder: Path) -> int:
    """The time in nanoseconds, or just after the trial of this folder that began last: the clock may have been set back since."""
    if folder not in _LATEST:
        entries = [read_json(path) for path in folder.glob("*.json")]
        begun = [entry.get("begun") for entry in entries if isinstance(entry, dict)]
        _LATEST[folder] = max((at for at in begun if isinstance(at, int)), default=0)
    _LATEST[folder] = max(time.time_ns(), _LATEST[folder] + 1)
    return _LATEST[folder]


def recorded_trials(plan: Plan, store: Store) -> list[Record]:
    """As `Records.read`, once."""
    return Records(plan, store).read()


class Records:
    """The records of a sweep, to be read again and again: a file that is as it was is not opened again."""

    def __init__(self, plan: Plan, store: Store):
        self._plan, self._folder = plan, _trial_folder(store, plan.fingerprint)
        self._read: dict[str, tuple[tuple[int, ...], int, Record]] = {}
        """Name of a file → what tells whether it has changed, when the trial began, its record."""

    def read(self) -> list[Record]:
        """Every trial that was begun, in the order in which they were; two draws of the same values are two.

        InputError names a file that was changed.
        """
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._folder) as entries:
            found = {entry.name: entry.stat() for entry in entries if entry.name.endswith(".json") and not entry.name.startswith(".")}
            self._read = {name: self._known(name, (now.st_mtime_ns, now.st_ino, now.st_size)) for name, now in found.items()}
        return [record for _, _, record in sorted(self._read.values(), key=lambda one: one[1])]

    def _known(self, name: str, state: tuple[int, ...]) -> tuple[tuple[int, ...], int, Record]:
        if name in self._read and self._read[name][0] == state:
            return self._read[name]
        path = self._folder / name
        entry, (trial, _, draw) = _remembered(path), path.stem.partition("-")
        if set(entry["overrides"]) != set(self._plan.sweep.paths):
            raise _not_as_written(path)
        return state, entry["begun"], Record(trial, decode_overrides(self._plan, entry["overrides"]), entry["status"], int(draw or 0))


def _remembered(path: Path) -> dict[str, Any]:
    """A trial's record: its encoded values, its status, and when it began."""
    found = read_json(path)
    digest = found.pop("digest", None) if isinstance(found, dict) else None
    if not isinstance(found, dict) or digest not in (None, digest_of(found)):
        raise _not_as_written(path)
    if "overrides" not in found:  # older stores record only the values
        return {"overrides": found, "status": "", "begun": path.stat().st_mtime_ns}
    kinds = {name: type(value) for name, value in found.items()}
    if kinds != {"overrides": dict, "status": str, "begun": int}:  # also where the digest's own name is damaged
        raise _not_as_written(path)
    return found


def _not_as_written(path: Path) -> InputError:
    return InputError(f"{path} is not as it was written: the values of a trial are lost. Delete it; a trial is then drawn in its place.")


def remembered_trials(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The values of every trial that was begun, in that order."""
    return [record.overrides for record in recorded_trials(plan, store)]


def decode_overrides(plan: Plan, encoded: dict[str, Any]) -> dict[str, Any]:
    """A trial's values from their encoding. Components are looked up among the values of their grid."""
    values = {}
    for path in plan.sweep.paths:
        space = plan.sweep.space.get(path)
        choices = [point[path] for point in plan.sweep.points if path in point] or grid_values(space) or getattr(space, "categories", [])
        values[path] = next((value for value in choices if canonical(value) == canonical(encoded[path])), encoded[path])
    return values


def _trial_folder(store: Store, sweep: str) -> Path:
    return store.root / "sweep" / f".trials-{sweep[:12]}"
