"""Heat maps of a leaderboard: attacks × defences, the number and its interval in every cell.

The colours are those of cividis, whose lightness rises steadily: colour-blind readers and a grey print see the same order. A cell without a
measurement is white and says why in words.
"""

import math
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from orchestrator.report.drawing import STYLE
from orchestrator.results.board import MISSING, NO_MODEL, NOT_TAKEN, REPORTED, Board
from orchestrator.results.names import duration

WHAT = {"asr": "ASR, % (dark is better)", "accuracy": "zero-shot accuracy, % (bright is better)", "cost": "time of a setting"}
WIDE, TALL = 1.02, 0.56
"""Inches of a cell."""
WORDS = {NO_MODEL: "no model\nqualifies", NOT_TAKEN: "attack did\nnot take", MISSING: "–"}


def heat_map(board: Board, kind: str, what: str) -> Figure:
    """`what`: asr | accuracy | cost; `kind`: oracle | blind, which makes no difference for the cost."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        attacks, defences = board.attacks, board.defences
        margin = 0.3 + 0.085 * max(len(line) for name in attacks for line in _lines(name, 24))
        heads = [_lines(name, 13) for name in defences]
        top = 0.2 + 0.17 * max(map(len, heads))
        size = (margin + WIDE * len(defences) + 0.1, top + TALL * len(attacks) + 0.1)
        figure = Figure(figsize=size)
        axes = figure.add_axes((margin / size[0], 0.05 / size[1], WIDE * len(defences) / size[0], TALL * len(attacks) / size[1]))
        axes.set(xlim=(0, len(defences)), ylim=(len(attacks), 0))
        axes.xaxis.tick_top()
        axes.set_xticks([i + 0.5 for i in range(len(defences))], ["\n".join(lines) for lines in heads], fontsize=9, parse_math=False)
        rows = ["\n".join(_lines(name, 24)) for name in attacks]
        axes.set_yticks([i + 0.5 for i in range(len(attacks))], rows, fontsize=9, parse_math=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        scale = _scale([value for a in attacks for d in defences if (value := _value(board, a, d, kind, what)) is not None], what)
        for row, attack in enumerate(attacks):
            for column, defence in enumerate(defences):
                _cell(axes, board, (attack, defence), (row, column), kind, what, scale)
        if len(defences) > 1:
            axes.axvline(1, color="black", linewidth=1.6)
        if clean := sum(attack in board.clean for attack in attacks):
            axes.axhline(len(attacks) - clean, color="black", linewidth=1.6)
        return figure


def _lines(name: str, letters: int) -> list[str]:
    return textwrap.wrap(name, letters)[:3] or [""]


def _value(board: Board, attack: str, defence: str, kind: str, what: str) -> float | None:
    if what == "cost":
        return ((board.cells.get((attack, defence)) or {}).get("cost") or {}).get("seconds")
    quantity = (board.choice(attack, defence, kind) or {}).get(what)
    return quantity["mean"] if quantity else None


def _scale(values: list[float], what: str) -> tuple[float, float]:
    """The numbers at the dark and at the bright end; for seconds, their logarithms."""
    if what == "asr" or not values:
        return 0.0, 100.0
    if what == "cost":
        values = [math.log(max(value, 1.0)) for value in values]
    low, high = min(values), max(values)
    return (min(low, high - (10.0 if what == "accuracy" else 1.0)), high)  # a small difference shall look small


def _cell(axes: Axes, board: Board, place: tuple[str, str], at: tuple[int, int], kind: str, what: str, scale: tuple[float, float]) -> None:
    value, state = _value(board, *place, kind, what), board.state(*place, kind)
    (row, column), hatch = at, ""
    face: Any = "white"
    frame: dict[str, Any] = {"edgecolor": "#B8BEC3", "linewidth": 0.8}
    if value is None:
        text, small, face = _said(board, place, state, what), "", "white"
        frame |= {REPORTED: {"edgecolor": "black", "linestyle": (0, (3, 2)), "linewidth": 1.0}}.get(state, {})
        hatch = "////" if state == NOT_TAKEN else ""
    else:
        number = math.log(max(value, 1.0)) if what == "cost" else value
        face = matplotlib.colormaps["cividis"]((number - scale[0]) / (scale[1] - scale[0]))
        text, small = (duration(value), "") if what == "cost" else (f"{value:.1f}", _small(board.choice(*place, kind), what))
        if not board.took(*place):
            small = "did not take"
    if state == NOT_TAKEN:
        frame["edgecolor"] = "#B8BEC3"
    inset = 0.03
    axes.add_patch(Rectangle((column + inset, row + inset), 1 - 2 * inset, 1 - 2 * inset, facecolor=face, hatch=hatch, **frame))
    ink = "black" if value is None or _bright(face) else "white"
    size, style = (11, "normal") if value is not None else (7.5, "italic")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2} if hatch else None
    middle = row + (0.4 if small else 0.5)
    axes.text(column + 0.5, middle, text, ha="center", va="center", fontsize=size, style=style, color=ink, bbox=box, parse_math=False)
    if small:
        axes.text(column + 0.5, row + 0.76, small, ha="center", va="center", fontsize=7.5, color=ink, parse_math=False)


def _said(board: Board, place: tuple[str, str], state: str, what: str) -> str:
    """The words of a cell without a measurement."""
    figures = [one[what] for one in board.reported.get(place, []) if what in ("asr", "accuracy") and one[what] is not None]
    if state == REPORTED and figures:
        return f"{figures[0]:.1f}\nreported"
    return WORDS.get(state, "–") if what != "cost" or state == NOT_TAKEN else "–"


def _small(choice: dict[str, Any] | None, what: str) -> str:
    quantity = (choice or {}).get(what) or {}
    low, high = quantity.get("low"), quantity.get("high")
    some = [value for value in quantity.get("values", []) if value is not None]
    bounds = f"{max(low, 0):.0f}–{min(high, 100):.0f}" if low is not None and high is not None else ""
    fewer = f" ({len(some)}/{len(quantity['values'])})" if quantity and len(some) < len(quantity["values"]) else ""
    return f"{bounds}{fewer}".strip()


def _bright(colour: Any) -> bool:
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
