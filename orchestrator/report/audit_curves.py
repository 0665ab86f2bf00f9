"""The curves on the page of an audit: accuracy under attack over ε, and pictures turned over queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from orchestrator.report.drawing import COLOURS, DASHES, MARKERS, STYLE, legend
from orchestrator.results.audits import AuditResult, asks, eps_of, without_eps
from trainers.audit.robustness import Robustness
from trainers.evaluate.zeroshot import wilson


def robust_curves(results: Sequence[AuditResult]) -> Figure | None:
    """Robust accuracy over ε with Wilson's intervals, a panel for each norm: a colour for each model, a dash for each attack; None if no
    attack was tried at two ε."""
    panels: dict[str, list[tuple[str, str, list[tuple[float, float, float, float]]]]] = {}
    for model in dict.fromkeys(one.model for one in results):
        own = [(one, one.audit) for one in results if one.model == model and isinstance(one.audit, Robustness) and one.metrics]
        for key in dict.fromkeys(without_eps(audit) for _, audit in own if not audit.attack.minimal):
            line = [(one, audit) for one, audit in own if not audit.attack.minimal and without_eps(audit) == key]
            _enter(panels, line[0][0], model, [(eps_of(audit), *_interval(one, "robust/accuracy")) for one, audit in line])
        for one, audit in own:
            if audit.attack.minimal:
                _enter(panels, one, model, [(size, *_interval(one, f"robust/at_{size:g}")) for size in audit.radii])
    panels = {norm: lines for norm, lines in panels.items() if any(len(points) > 2 for *_, points in lines)}
    if not panels:
        return None
    models = list(dict.fromkeys(model for lines in panels.values() for model, *_ in lines))
    attacks = list(dict.fromkeys(label for lines in panels.values() for _, label, _ in lines))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1 + 4.6 * len(panels), 4.4), layout="constrained")
        for axes, (norm, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            for model, label, points in lines:
                eps, middle, low, high = (np.array(column) for column in zip(*sorted(points)))
                scale = 255 if norm == "linf" else 1
                colour = COLOURS[models.index(model) % len(COLOURS)]
                number = attacks.index(label)
                look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "linestyle": DASHES[number % len(DASHES)]}
                axes.plot(eps * scale, middle, color=colour, markersize=4.5, label=f"{label}: {model}", **look)
                axes.fill_between(eps * scale, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xlabel("ε, /255 (L∞)" if norm == "linf" else "ε (L2, pixels of 0 … 1)")
            axes.set(ylabel="accuracy under attack, %", ylim=(-2, 102))
        handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        legend(figure, list(handles.values()))
    return figure


def _enter(panels: dict[str, Any], one: AuditResult, model: str, points: list[tuple[float, float, float, float]]) -> None:
    clean = _interval(one, "robust/clean")
    if points:
        panels.setdefault(one.audit.attack.norm, []).append((model, one.label, [(0.0, *clean), *points]))  # type: ignore[attr-defined]


def _interval(one: AuditResult, name: str) -> tuple[float, float, float]:
    values = [one.metrics.get(f"{name}{end}") for end in ("", "_low", "_high")]
    return tuple(math.nan if value is None else value for value in values)  # type: ignore[return-value]


def query_curves(results: Sequence[AuditResult]) -> Figure | None:
    """Share of the attacked pictures that attacks which only ask had turned after so many queries, with Wilson's intervals: a colour for
    each model, a dash for each attack; None if no such attack turned a picture."""
    asking = [one for one in results if one.attacked and asks(one.audit)]
    if not any(one.asked for one in asking):
        return None
    models, titles = (list(dict.fromkeys(getattr(one, name) for one in asking)) for name in ("model", "title"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.subplots()
        for one in asking:
            queries, share, low, high = (np.array(column) for column in zip(*query_steps(one)))
            colour, dash = COLOURS[models.index(one.model) % len(COLOURS)], DASHES[titles.index(one.title) % len(DASHES)]
            axes.step(queries, share, where="post", color=colour, linestyle=dash, label=f"{one.title}: {one.model}")
            axes.fill_between(queries, low, high, step="post", color=colour, alpha=0.12, linewidth=0)
        axes.set(xscale="log", xlabel="queries for a picture", ylabel="pictures turned, % of those attacked", ylim=(-2, 102))
        legend(figure, axes.get_lines())
    return figure


def query_steps(one: AuditResult) -> list[tuple[int, float, float, float]]:
    """(queries, percent of the attacked pictures that were turned by then, and its interval) wherever that changes, from 1 to the number
    of queries that the attack may ask."""
    found, most = [], getattr(getattr(one.audit, "attack", None), "queries", 1)
    for queries in sorted({1, *one.asked, most}):
        turned = sum(count <= queries for count in one.asked)
        found.append((queries, 100 * turned / one.attacked, *wilson(turned, one.attacked)))
    return found
