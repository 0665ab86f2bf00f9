"""The train loop's records: sums of the steps' values, and the ledger of keys."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from datasets.errors import InputError

COUNT = "#"
"""Prefix for the name of a counter: in how many steps the value existed."""


class Sums:
    """Sums of the steps' values as Python floats. They are read from the device only every few steps, so that the loop need not wait each
    time.

    For each value, `COUNT` + its name holds the number of steps that had it, because some objectives have a part only in some steps. Sums
    saved by earlier versions lack these counters; there every step had every value.
    """

    def __init__(self, start: Mapping[str, float], every: int) -> None:
        self._sums = dict(start)
        self._waiting: list[tuple[int, Mapping[str, Tensor | float]]] = []
        self._every = every

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Add one step's scalars. Within `every` steps of it, raises FloatingPointError with the step and the value that is not finite."""
        self._waiting.append((step, values))
        if len(self._waiting) >= self._every:
            self._read()

    def take(self) -> dict[str, float]:
        """Return the sums so far and start from nothing."""
        self._read()
        sums, self._sums = self._sums, {}
        return sums

    def put_back(self, sums: Mapping[str, float]) -> None:
        """Continue from these sums."""
        self._sums = dict(sums)

    def _read(self) -> None:
        for step, values in self._waiting:
            numbers = {name: float(value) for name, value in values.items()}
            bad = [f"{name} is {number}" for name, number in numbers.items() if not math.isfinite(number)]
            if bad:
                raise FloatingPointError(f"training diverged at step {step}: {', '.join(bad)}")
            for name, number in numbers.items():
                if name not in self._sums or COUNT + name in self._sums:
                    self._sums[COUNT + name] = self._sums.get(COUNT + name, 0.0) + 1
                self._sums[name] = self._sums.get(name, 0.0) + number
        self._waiting.clear()


def means(sums: Mapping[str, float], steps: int) -> dict[str, float]:
    """Each value's mean over the steps that had it, or over all `steps` if these were not counted."""
    return {name: total / sums.get(COUNT + name, steps) for name, total in sums.items() if not name.startswith(COUNT)}


class Ledger:
    """A file with one JSON line per step: the keys trained on, and a checksum of both. Opening it removes the lines of steps past the
    checkpoint, and raises `InputError` if one before it is not as it was written."""

    def __init__(self, path: Path | None, step: int) -> None:
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(errors="replace") if path.exists() else ""
        steps: list[int] = []
        try:
            kept = [line + "\n" for line in text.split("\n")[:-1]] if step else []
            for line in kept:
                entry = json.loads(line)
                steps.append(entry["step"])
                if _line(steps[-1], entry["keys"]) != line:
                    raise ValueError
                if steps[-1] == step - 1:
                    break
            if steps != list(range(step - len(steps), step)) or (text and step and not steps):
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{path} is not as it was written: remove it, and the training goes on with a new one.") from None
        path.write_text("".join(kept[: len(steps)]))
        self._file = path.open("a")

    def write(self, step: int, keys: list[str]) -> None:
        """Write one step's keys, those of all ranks in rank order."""
        if self._file:
            self._file.write(_line(step, keys))

    def flush(self) -> None:
        """Write the lines to disk. Called before each checkpoint, so that the ledger never lags behind one, even after a power cut."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


def _line(step: int, keys: list[str]) -> str:
    entry = {"step": step, "keys": keys}
    return json.dumps(entry | {"crc32": f"{zlib.crc32(json.dumps(entry).encode()):08x}"}) + "\n"
