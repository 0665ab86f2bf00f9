"""Accuracy and ASR over the epochs of pre-training and of cleaning."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report.drawing import (
    ACCURACY_AXIS,
    ASR_AXIS,
    COLOURS,
    DASHES,
    HOLLOW_START,
    MARKERS,
    START,
    STYLE,
    accuracies,
    epoch_axes,
    legend,
    limits,
    look,
    published_name,
    wrapped,
)
from orchestrator.results.outcome import Study
from orchestrator.results.points import Panel, arms, cleaned_points, panels, points_of, published_starts, start_of, starts_of
from orchestrator.results.published import Start

MARKED = 100
"""With more trials than this the curves have no marks, which would cover them."""


def pretrain_curves(study: Study) -> Figure:
    """Zero-shot accuracy and ASR after each epoch of pre-training, one line per pre-training; published values are hollow."""
    labels = {s.fingerprint: (i, p) for i, p in enumerate(panels(study)) for s in p.pretrains}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        handles: dict[str, Line2D] = {}
        shown: dict[int, tuple[Panel, str]] = {}
        for stage in study.pretrains:
            number, panel = labels[stage.fingerprint]
            style: dict[str, Any] = {"color": COLOURS[number % 8], "linestyle": DASHES[number % 4], "linewidth": 1.8}
            marker: dict[str, Any] = {"marker": MARKERS[number % 8], "markersize": 4.5}
            points = points_of(stage)
            if not points:
                continue
            for axes, values in ((left, [p.accuracy for p in points]), (right, [p.asr for p in points])):
                (line,) = axes.plot([p.epoch for p in points], values, **style, **marker, clip_on=False)
            handles.setdefault(panel.label, line)
            shown.setdefault(number, (panel, style["color"]))
        for axes, title in ((left, ACCURACY_AXIS), (right, ASR_AXIS)):
            epoch_axes(axes, study.pretrains)
            axes.set_title(title, fontsize=11, loc="left")
            axes.set_xlabel("epoch of pre-training")
        for label, drawn in handles.items():
            drawn.set_label(label)
        entries = [*handles.values(), *_published(study, left, right, list(shown.values()))]
        if entries:
            legend(figure, entries)
    return figure


def _published(study: Study, left: Axes, right: Axes, shown: list[tuple[Panel, str]]) -> list[Line2D]:
    """Hollow marks after the first epoch and, if the axis reaches that far, at the epoch whose model was cleaned.

    `shown`: the panels with their colours. A mark that belongs to several panels has the first one's colour.
    """
    handles, last = [], left.get_xlim()[1]
    starts: dict[tuple[str, str], tuple[Start, str]] = {}
    for panel, colour in shown:
        for start in published_starts(study, panel):
            starts.setdefault((start.name, start.objective), (start, colour))
    for start, colour in starts.values():
        marks = [(1, start.first)] if start.first else []
        marks += [(start.kept, start.mark)] if start.kept and start.kept <= last else []
        if not marks:
            continue
        style = {**HOLLOW_START, "marker": "D", "markersize": 7, "markeredgecolor": colour}
        for axes, value in ((left, "accuracy"), (right, "asr")):
            axes.plot([epoch for epoch, _ in marks], [getattr(mark, value) for _, mark in marks], zorder=4, clip_on=False, **style)
        epochs = " and ".join(str(epoch) for epoch, _ in marks)
        handles.append(Line2D([], [], label=published_name(f"{start.objective}, epoch {epochs}", [start.name]), **style))
    return handles


def trial_curves(study: Study, only: Panel | None = None) -> Figure:
    """Zero-shot accuracy (top) and ASR (bottom) after each epoch of cleaning, a line per trial."""
    shown, named, styles = [only] if only else panels(study), arms(study), look(study)
    columns = max(1, len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.2 * columns, 6.2), layout="constrained")
        grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
        for column, panel in enumerate(shown):
            trials = [trial for trial in study.trials if panel.holds(trial)]
            for row, value in enumerate(("accuracy", "asr")):
                axes = grid[row][column]
                for trial in trials:
                    colour, marker = styles[named[trial.fingerprint]]
                    start = start_of(study, trial.pretrain, trial)
                    points = cleaned_points(trial)
                    if not points:
                        continue
                    x = ([0] if start else []) + [p.epoch for p in points]
                    y = ([getattr(start, value)] if start else []) + [getattr(p, value) for p in points]
                    alpha = 0.8 if len(trials) <= 24 else 0.35
                    mark: dict[str, Any] = {"marker": marker, "markersize": 3.5} if len(trials) <= MARKED else {}
                    axes.plot(x, y, color=colour, linewidth=1.2 if mark else 0.8, alpha=alpha, clip_on=False, **mark)
                for start in starts_of(study, panel):
                    axes.plot([0], [getattr(start, value)], markersize=15, zorder=4, clip_on=False, **START)
                epoch_axes(axes, study.trials)  # the panels share this axis
                if value == "accuracy":
                    axes.set_ylim(*limits(accuracies(study)))
            grid[0][column].set_title(wrapped(f"pre-trained with {panel.label}", 3.9, 11), fontsize=11, loc="left", pad=9)
            grid[1][column].set_xlabel("epoch of cleaning")
        grid[0][0].set_ylabel(ACCURACY_AXIS)
        grid[1][0].set_ylabel(ASR_AXIS)
        handles = [
            Line2D([], [], marker=marker, color=colour, markersize=5, label=arm) for arm, (colour, marker) in styles.items()
        ]
        handles.append(Line2D([], [], markersize=14, label="before cleaning", **START))
        legend(figure, handles)
    return figure
