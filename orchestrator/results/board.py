"""A leaderboard: cells of one model and data set combined into a table, and the defences ranked over the attacks.

The rating of a defence against an attack, for one seed, with percentages as shares:

    rating = ½ · (1 + max(0, ASR₀ − ASR) − max(0, accuracy₀ − accuracy) / accuracy₀)

where 0 marks the undefended model. This is the defence effectiveness rating (DER) of BackdoorBench, except that the loss of accuracy is
relative, because a zero-shot accuracy of 20 % has only 20 points to lose. 1: the backdoor is gone at no cost; ½: nothing changed; 0: no
accuracy is left, or the rule found no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.results.cells import Cell

KINDS = ("oracle", "blind")
DRAWS = 1000
"""Draws of the bootstrap."""
MEASURED, NO_MODEL, NOT_TAKEN, REPORTED, MISSING = "measured", "no model", "not taken", "reported", "missing"
"""States of a cell."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Cells of one model on one data set."""

    model: str
    data: str
    attacks: tuple[str, ...]
    """Rows, clean models last."""
    defences: tuple[str, ...]
    """Columns, the undefended one first."""
    cells: Mapping[tuple[str, str], Cell]
    """(attack, defence) → its cell: measurements, or that the attack did not take."""
    reported: Mapping[tuple[str, str], list[dict[str, Any]]]
    """(attack, defence) → figures of papers."""
    clean: frozenset[str]
    """Rows of clean models; they do not count in the ranking."""

    def choice(self, attack: str, defence: str, kind: str) -> dict[str, Any] | None:
        """`measured.oracle` or `measured.blind` of a cell; None if nothing was measured."""
        return ((self.cells.get((attack, defence)) or {}).get("measured") or {}).get(kind)

    def state(self, attack: str, defence: str, kind: str) -> str:
        """MEASURED | NO_MODEL (the rule found none) | NOT_TAKEN (the attack did not take, so it was not defended) | REPORTED (only by a
        paper) | MISSING."""
        if choice := self.choice(attack, defence, kind):
            return MEASURED if choice["accuracy"] else NO_MODEL
        if (attack, defence) in self.cells:
            return NOT_TAKEN
        return REPORTED if self.reported.get((attack, defence)) else MISSING

    def took(self, attack: str, defence: str) -> bool:
        """Whether the attack took in some seed; true if there is no gate."""
        gate = (self.cells.get((attack, defence)) or {}).get("gate")
        return gate is None or any(gate["took"])

    def trials(self) -> dict[str, int]:
        """Number of settings that each defence was tried with; defences with unknown numbers are left out."""
        counts = {defence: cell["defence"]["trials"] for (_, defence), cell in self.cells.items() if cell["defence"]["trials"]}
        return {defence: counts[defence] for defence in self.defences if defence in counts}

    def missing(self) -> list[tuple[str, str]]:
        every = [(attack, defence) for attack in self.attacks for defence in self.defences]
        return [place for place in every if self.state(*place, KINDS[0]) == MISSING]


def boards(cells: Sequence[Cell]) -> list[Board]:
    """One board for each model and data set, in the order of the cells. InputError if two files measure the same cell."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["model"], cell["data"]), []).append(cell)
    return [_board(model, data, group) for (model, data), group in groups.items()]


def _board(model: str, data: str, cells: list[Cell]) -> Board:
    measured: dict[tuple[str, str], Cell] = {}
    reported: dict[tuple[str, str], list[dict[str, Any]]] = {}
    clean = frozenset(cell["attack"]["name"] for cell in cells if not cell["attack"]["trigger"] and cell["measured"])
    for cell in cells:
        place = (cell["attack"]["name"], cell["defence"]["name"])
        reported.setdefault(place, []).extend(cell["reported"])
        if cell["measured"] or cell["gate"]:
            if place in measured:
                both = " and ".join(one["matrix"] or "no name" for one in (measured[place], cell))
                raise InputError(
                    f"two result files measure {place[1]} against {place[0]} with {model} on {data} (matrices: {both}); accepted: "
                    "one. Give one of them another model or data, or leave it out."
                )
            measured[place] = cell
    attacks = dict.fromkeys(attack for attack, _ in reported)
    defences = dict.fromkeys(defence for _, defence in reported)
    order = tuple(sorted(attacks, key=lambda name: name in clean))
    first = list(dict.fromkeys(cell["defence"]["name"] for cell in cells if cell["defence"]["trials"] == 0))
    return Board(
        model=model, data=data, cells=measured, reported={place: entries for place, entries in reported.items() if entries}, clean=clean,
        attacks=order, defences=(*first, *(name for name in defences if name not in first)),
    )  # fmt: skip


def ratings(board: Board, attack: str, defence: str, kind: str) -> list[float]:
    """The rating for each seed whose undefended model was measured; empty if the cell is not ranked."""
    choice = board.choice(attack, defence, kind)
    if choice is None or attack in board.clean or not board.took(attack, defence):
        return []
    columns = [(choice[key] or {}).get("values") for key in ("start_accuracy", "start_asr", "accuracy", "asr")]
    gate, seeds = board.cells[attack, defence]["gate"], range(len(choice["settings"]))
    rows = [[values[seed] if values else None for values in columns] for seed in seeds if not gate or gate["took"][seed]]
    return [rating(*row) for row in rows if row[0] is not None and row[1] is not None]


def rating(start_accuracy: Any, start_asr: Any, accuracy: Any, asr: Any) -> float:
    """The rating of the module's text, 0 … 1, from values in percent. None as accuracy or ASR: the rule found no model."""
    if accuracy is None or asr is None:
        return 0.0
    lost = max(0.0, start_accuracy - accuracy) / start_accuracy if start_accuracy > 0 else 0.0
    return (1 + max(0.0, start_asr - asr) / 100 - lost) / 2


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One line of the ranking."""

    defence: str
    rank: float
    """Mean over the attacks; equal ratings share the mean of their ranks."""
    low: float
    high: float
    """95 % bootstrap interval over attacks and, within a cell, over seeds; nan if there is only one of each."""
    rating: float
    attacks: int
    """Number of attacks that it was tried against, of `of`."""
    of: int


def ranking(board: Board, kind: str) -> list[Ranked]:
    """The defences from the best mean rank on. Those with missing cells come last, because means over different attacks cannot be
    compared."""
    rated = {(a, d): values for a in board.attacks for d in board.defences if (values := ratings(board, a, d, kind))}
    attacks = [attack for attack in board.attacks if any((attack, defence) in rated for defence in board.defences)]
    if not attacks:
        return []
    means = _means(np.array([[fmean(rated.get((a, d), [math.nan])) for d in board.defences] for a in attacks]))
    draw, drawn = rng("leaderboard", kind), []
    for _ in range(DRAWS if len(attacks) > 1 or any(len(values) > 1 for values in rated.values()) else 0):
        taken = [attacks[i] for i in draw.integers(len(attacks), size=len(attacks))]
        drawn.append(_means(np.array([[_again(rated.get((a, d), []), draw) for d in board.defences] for a in taken])))
    lines = []
    for number, defence in enumerate(board.defences):
        mine = [fmean(rated[a, defence]) for a in attacks if (a, defence) in rated]
        if mine:
            ranks = np.array([mean[number] for mean in drawn if not math.isnan(mean[number])])
            low, high = np.percentile(ranks, [2.5, 97.5]) if len(ranks) else (math.nan, math.nan)
            lines.append(Ranked(defence=defence, rank=float(means[number]), low=float(low), high=float(high), rating=fmean(mine),
                                attacks=len(mine), of=len(attacks)))  # fmt: skip
    return sorted(lines, key=lambda line: (line.attacks < line.of, line.rank))


def _means(rating_AD: np.ndarray) -> np.ndarray:
    """float [D]: mean rank over the rows of a table of ratings, 1 for the highest; nan entries are not ranked."""
    rank_AD = np.full(rating_AD.shape, np.nan)
    for row, values in enumerate(rating_AD.round(9)):
        there = ~np.isnan(values)
        rank_AD[row, there] = rankdata(-values[there])
    count_D = (~np.isnan(rank_AD)).sum(0)
    return np.where(count_D > 0, np.nansum(rank_AD, 0) / np.maximum(count_D, 1), np.nan)


def _again(values: list[float], draw: np.random.Generator) -> float:
    return fmean(values[i] for i in draw.integers(len(values), size=len(values))) if values else math.nan


def unequal_trials(trials: Mapping[str, int]) -> str:
    """A sentence if the defences were tuned with different effort; empty if all have the same number of trials."""
    if len(set(trials.values())) <= 1:
        return ""
    listed = ", ".join(f"{name} {count}" for name, count in trials.items())
    return f"Defences have different numbers of trials, so some are tuned harder than others: {listed}."
