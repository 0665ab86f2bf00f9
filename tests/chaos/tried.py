"""What a kind of fault is, what one try of it gave, and the table of all tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Tried:
    """One try."""

    what: str
    """what was done to the run, in words"""
    met: bool
    """whether the fault met it; a kill that comes after the end meets nothing"""
    wrong: Sequence[str] = ()
    """what was lost or came out otherwise; empty where the run survived"""
    commands: int = 1
    """how often the command was given until it ended well"""
    refused: bool = False
    """whether the command named what is damaged and stopped"""


class Kind(Protocol):
    """One kind of fault. `prepare` makes what all tries need in a folder of its own; `again` does one try."""

    name: str
    about: str

    def prepare(self, folder: Path) -> str:
        """Why the kind cannot be tried here; empty where it can."""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        """Do the try of this number; all chance comes from `draw`."""


@dataclass
class Count:
    """The tries of one kind so far."""

    skipped: str = ""
    tries: list[Tried] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, name: str) -> list[str]:
        met = [one for one in self.tries if one.met]
        lost = [one for one in self.tries if one.wrong]
        survived = [one for one in met if not one.wrong]
        refused = sum(one.refused for one in survived)
        commands = f"{sum(one.commands for one in met) / len(met):.1f}" if met else "-"
        return [name, *map(str, (len(self.tries), len(met), len(survived), refused, len(lost), commands, f"{self.seconds:.0f}"))]


HEAD = ["kind", "tries", "met by it", "survived", "of these refused by name", "wrong or lost", "commands", "seconds"]


def table(counts: dict[str, Count]) -> str:
    """The counts as a table of Markdown."""
    rows = [HEAD, *(count.row(name) for name, count in counts.items() if not count.skipped)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines + [f"{name} was not tried: {count.skipped}." for name, count in counts.items() if count.skipped])


def log_uniform(draw: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of two others."""
    return float(np.exp(draw.uniform(np.log(low), np.log(max(low, high)))))
