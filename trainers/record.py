"""The train loop's records: sums of the steps' values, and the ledger of keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from datasets.errors import InputError


class Sums:
    """Values of steps, added up as Python floats; read from the device every few steps, so that it need not wait each time."""

    def __init__(self, start: Mapping[str, float], every: int) -> None:
        self._sums = dict(start)
        self._waiting: list[tuple[int, Mapping[str, Tensor | float]]] = []
        self._every = every

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Add one step's scalars. FloatingPointError names the step and what is not finite, within `every` steps."""
        self._waiting.append((step, values))
        if len(self._waiting) >= self._every:
            self._read()

    def take(self) -> dict[str, float]:
        """The sums so far; starts again from nothing."""
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
                self._sums[name] = self._sums.get(name, 0.0) + number
        self._waiting.clear()


class Ledger:
    """A JSON line a step: which keys were trained on. Lines of steps past the checkpoint are cut off at the start."""

    def __init__(self, path: Path | None, step: int) -> None:
        self._file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        try:
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{path} is not as it was written: remove it, and the training goes on with a new one.") from None
        path.write_text("".join(kept))
        self._file = path.open("a")

    def write(self, step: int, keys: list[str]) -> None:
        """Write one step's keys, of all ranks in rank order."""
        if self._file:
            self._file.write(json.dumps({"step": step, "keys": keys}) + "\n")

    def flush(self) -> None:
        """Hand the written lines to the operating system; called before a checkpoint, so that the ledger is never behind one."""
        if self._file:
            self._file.flush()
