"""Accuracy against ASR, and both over the epochs.

Matplotlib without a display; the same study gives the same bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from orchestrator.report.names import method_of
from orchestrator.report.selection import Panel, cleaned_points, methods, panels, points_of, start_of
from orchestrator.study import StageResult, Study

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C564B", "#7F7F7F", "#B8A900"]
"""Okabe and Ito's, which colour-blind readers can tell apart; red is kept for the uncleaned model."""
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "h"]
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1))]
START: dict[str, Any] = {
    "marker": "*",
    "color": "#D00000",
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
    "linestyle": "",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "cleansweep",
}


def look(study: Study) -> dict[str, tuple[str, str]]:
    """Cleaning method → (colour, marker), the same in every figure of a study."""
    return {m: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, m in enumerate(methods(study))}


def scatter(study: Study, only: Panel | None = None) -> Figure:
    """A dot per trial and epoch, a red star for the uncleaned model, one panel per pre-training objective."""
    shown = [only] if only else panels(study)
    columns = max(1, min(len(shown), 3))
    rows = max(1, -(-len(shown) // columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.6 * columns, 4.1 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, panel in zip(grid.flat, shown):
            _scatter_panel(axes, study, panel)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        low, high = _accuracy_limits(study)
        grid[0][0].set_xlim(-3, 103)
        grid[0][0].set_ylim(low, high)
        for axes in grid[:, 0]:
            axes.set_ylabel("zero-shot accuracy, %")
        for column in range(columns):  # the lowest panel of each column, which is not always in the last row
            axes = grid[max(i for i in range(rows) if i * columns + column < max(1, len(shown)))][column]
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("attack success rate (ASR), %")
        handles = [
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=7, label=method)
            for method, (colour, marker) in look(study).items()
        ]
        handles.append(Line2D([], [], markersize=15, label="before cleaning", **START))
        _legend(figure, handles)
    return figure


def _scatter_panel(axes: Axes, study: Study, panel: Panel) -> None:
    trials = [trial for trial in study.trials if panel.holds(trial)]
    axes.axvspan(-3, 5, color="#DDEBDD", linewidth=0, zorder=0)
    axes.text(
        5.5,
        0.015,
        "ASR ≤ 5 %",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        color="#4A774A",
        va="bottom",
    )
    few = len(trials) <= 24  # with more, the lines from epoch to epoch hide the dots
    for trial in trials:
        colour, marker = look(study)[method_of(trial)]
        points = cleaned_points(trial)
        if not points:
            continue
        x, y = [p.asr for p in points], [p.accuracy for p in points]
        if few:
            start = start_of(study, trial.pretrain)
            line = [*([(start.asr, start.accuracy)] if start else []), *zip(x, y)]
            if line:
                axes.plot(*zip(*line), color=colour, linewidth=0.8, alpha=0.35, zorder=2)
        axes.plot(
            x,
            y,
            linestyle="",
            marker=marker,
            color=colour,
            markersize=6 if few else 4.5,
            alpha=0.85 if few else 0.6,
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=3,
            clip_on=False,
        )
    for stage in panel.pretrains:
        if start := start_of(study, stage.fingerprint):
            axes.plot([start.asr], [start.accuracy], markersize=17, zorder=4, clip_on=False, **START)
    axes.set_title(f"pre-trained with {panel.label}", fontsize=11, loc="left")
    if not any(cleaned_points(trial) for trial in trials):
        axes.text(0.5, 0.5, "no cleaning was measured", transform=axes.transAxes, ha="center", color="#777777")


def pretrain_curves(study: Study) -> Figure:
    """Zero-shot accuracy and ASR after each epoch of pre-training, a line per pre-training."""
    labels = {s.fingerprint: (i, p.label) for i, p in enumerate(panels(study)) for s in p.pretrains}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        handles: dict[str, Line2D] = {}
        for stage in study.pretrains:
            number, label = labels[stage.fingerprint]
            style: dict[str, Any] = {"color": COLOURS[number % 8], "linestyle": DASHES[number % 4], "linewidth": 1.8}
            marker: dict[str, Any] = {"marker": MARKERS[number % 8], "markersize": 4.5}
            points = points_of(stage)
            if not points:
                continue
            for axes, values in ((left, [p.accuracy for p in points]), (right, [p.asr for p in points])):
                (line,) = axes.plot([p.epoch for p in points], values, **style, **marker, clip_on=False)
            handles.setdefault(label, line)
        for axes, title in ((left, "zero-shot accuracy, %"), (right, "attack success rate (ASR), %")):
            _epoch_axes(axes, study.pretrains)
            axes.set_title(title, fontsize=11, loc="left")
            axes.set_xlabel("epoch of pre-training")
        if handles:
            for label, drawn in handles.items():
                drawn.set_label(label)
            _legend(figure, list(handles.values()))
    return figure


def trial_curves(study: Study, only: Panel | None = None) -> Figure:
    """Zero-shot accuracy (top) and ASR (bottom) after each epoch of cleaning, a line per trial."""
    shown = [only] if only else panels(study)
    columns = max(1, len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.2 * columns, 6.2), layout="constrained")
        grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
        for column, panel in enumerate(shown):
            trials = [trial for trial in study.trials if panel.holds(trial)]
            for row, value in enumerate(("accuracy", "asr")):
                axes = grid[row][column]
                for trial in trials:
                    colour, marker = look(study)[method_of(trial)]
                    start = start_of(study, trial.pretrain)
                    points = cleaned_points(trial)
                    if not points:
                        continue
                    x = ([0] if start else []) + [p.epoch for p in points]
                    y = ([getattr(start, value)] if start else []) + [getattr(p, value) for p in points]
                    alpha = 0.8 if len(trials) <= 24 else 0.35
                    axes.plot(
                        x,
                        y,
                        color=colour,
                        marker=marker,
                        markersize=3.5,
                        linewidth=1.2,
                        alpha=alpha,
                        clip_on=False,
                    )
                for stage in panel.pretrains:
                    if start := start_of(study, stage.fingerprint):
                        y0 = getattr(start, value)
                        axes.plot([0], [y0], markersize=15, zorder=4, clip_on=False, **START)
                _epoch_axes(axes, trials)
                if value == "accuracy":
                    axes.set_ylim(*_accuracy_limits(study))
            grid[0][column].set_title(f"pre-trained with {panel.label}", fontsize=11, loc="left")
            grid[1][column].set_xlabel("epoch of cleaning")
        grid[0][0].set_ylabel("zero-shot accuracy, %")
        grid[1][0].set_ylabel("attack success rate (ASR), %")
        handles = [
            Line2D([], [], marker=marker, color=colour, markersize=5, label=method)
            for method, (colour, marker) in look(study).items()
        ]
        handles.append(Line2D([], [], markersize=14, label="before cleaning", **START))
        _legend(figure, handles)
    return figure


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    """Below the panels, in as many columns as fit the figure's width."""
    inches = [0.6 + 0.085 * len(str(handle.get_label())) for handle in handles]  # at 10 points a letter is about .085
    for columns in range(len(handles), 0, -1):
        rows = -(-len(handles) // columns)
        used = sum(max(inches[i : i + rows]) for i in range(0, len(inches), rows))
        if used <= figure.get_figwidth() or columns == 1:
            figure.legend(handles=handles, loc="outside lower center", ncols=columns)
            return


def _epoch_axes(axes: Axes, stages: Sequence[StageResult]) -> None:
    last = max((p.epoch for stage in stages for p in points_of(stage)), default=1)
    axes.set_ylim(-2, 102)
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def _accuracy_limits(study: Study) -> tuple[float, float]:
    """The accuracies in use with a margin, at least 10 points tall so that noise looks like noise."""
    values = [p.accuracy for trial in study.trials for p in cleaned_points(trial)]
    values += [s.accuracy for stage in study.pretrains if (s := start_of(study, stage.fingerprint))]
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    margin = max(0.06 * (high - low), 0.6)
    high = min(high + margin, 100.6)
    return max(min(low - margin, high - 10.6), -2.0), high


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, without a date or a version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, without a date or a version in it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # the font type is looked up when saving
        figure.savefig(
            buffer,
            format="pdf",
            metadata={"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
        )
    return buffer.getvalue()


def figures(study: Study) -> dict[str, Figure]:
    """File name without ending → figure, those that the report keeps as files."""
    return {
        "accuracy_vs_asr": scatter(study),
        "pretrain_curves": pretrain_curves(study),
        "clean_curves": trial_curves(study),
    }


def write_figures(study: Study, out: Path) -> list[Path]:
    """PNG and PDF of every figure in folder `out`, each written aside and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures(study).items():
        for ending, content in (("png", png(figure)), ("pdf", pdf(figure))):
            aside = out / f".{name}.{ending}.tmp"
            aside.write_bytes(content)
            written.append(aside.replace(out / f"{name}.{ending}"))
    return written
