"""The effect of a hyper-parameter: the best models over the values of `Sweep.series`, with mean and interval over seeds."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report.drawing import ACCURACY_AXIS, START, STYLE, legend, limits, look, published_name, wrapped
from orchestrator.results.names import is_number, value_at, value_text
from orchestrator.results.outcome import Study
from orchestrator.results.points import Panel, Point, arms, mean_interval, panels, start_of
from orchestrator.results.published import Cleaned, Mark, Start
from orchestrator.results.selection import RULE, Choice, choices

SHOWN = {"acc_at_asr_le_5": "accuracy", "asr_at_1pt_loss": "asr"}
"""Rule → the metric of its choice that is drawn: the two rows of the figure."""
LOG_FROM = 20
"""An axis is logarithmic if its largest value is more than this many times its smallest."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method at one value of the series, on pre-trainings that differ only in their seeds."""

    panel: Panel
    method: str
    """Empty for the uncleaned model of that value."""
    value: Any
    rule: str
    choices: tuple[Choice, ...] = ()
    starts: tuple[Point, ...] = ()

    def over(self, what: str) -> tuple[float, float, float] | None:
        """Mean and 95 % interval over the repetitions that have a value."""
        if not self.method:
            return mean_interval([getattr(start, what) for start in self.starts])
        return mean_interval([getattr(choice, what) for choice in self.choices if choice.point])


def steps(study: Study) -> list[Step]:
    """All points of the figure, in the order of the values; empty without a series."""
    if not study.series:
        return []
    result = []
    named = arms(study, ignoring=study.series)
    upstream = not study.series.startswith("clean.")
    for panel in panels(study, ignoring=study.series):
        trials = [trial for trial in study.trials if panel.holds(trial)]
        for method in dict.fromkeys(named[trial.fingerprint] for trial in trials):
            mine = [trial for trial in trials if named[trial.fingerprint] == method]
            for value in _ordered(value_at(trial, study.series) for trial in mine):
                there = [trial for trial in mine if value_at(trial, study.series) == value]
                for rule in SHOWN:
                    picked = choices(study, there, RULE[rule])
                    if picked:
                        result.append(Step(panel=panel, method=method, value=value, rule=rule, choices=picked))
        for value in _ordered(value_at(stage, study.series) for stage in panel.pretrains) if upstream else ():
            stages = [stage for stage in panel.pretrains if value_at(stage, study.series) == value]
            starts = tuple(s for stage in stages if (s := start_of(study, stage.fingerprint)))
            if starts:
                result += [Step(panel=panel, method="", value=value, rule=rule, starts=starts) for rule in SHOWN]
    return result


def series_csv(study: Study) -> str:
    """One line for each pre-training, method, value and rule: how many seeds reached it, mean and 95 % interval."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["pretraining", "method", study.series, "rule", "measured", "seeds", "reached", "mean", "low", "high"])
    for step in steps(study):
        what = SHOWN[step.rule]
        mean, low, high = step.over(what) or (math.nan, math.nan, math.nan)
        seeds = len(step.choices) or len(step.starts)
        reached = sum(choice.point is not None for choice in step.choices) or len(step.starts)
        numbers = ["" if math.isnan(number) else f"{number:.4f}" for number in (mean, low, high)]
        rule = step.rule if step.method else "before cleaning"
        writer.writerow([step.panel.label, step.method or "none", step.value, rule, what, seeds, reached, *numbers])
    return buffer.getvalue()


def series(study: Study) -> Figure:
    """Best accuracy at ASR ≤ 5 % (top) and lowest ASR at ≤ 1 point lost (bottom) over the values of the series.

    Bars are 95 % intervals over seeds. If only some repetitions have such a model, their number is written beside the mean; if none has,
    the line has a gap.
    """
    all_steps = steps(study)
    shown = list({step.panel.label: step.panel for step in all_steps}.values())
    methods = list(dict.fromkeys(step.method for step in all_steps if step.method))
    axis, styles = _Axis([step.value for step in all_steps]), look(study, study.series)
    columns = max(1, len(shown))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 4.4 * columns, 6.4), layout="constrained")
        grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row")
        tall: list[float] = []
        handles: dict[str, Line2D] = {}
        for column, panel in enumerate(shown):
            for axes, (rule, what) in zip(grid[:, column], SHOWN.items()):
                for number, method in enumerate([*methods, ""]):
                    mine = [s for s in all_steps if s.panel == panel and s.method == method and s.rule == rule]
                    if mine:
                        drawn = _line(axes, axis, mine, what, number, len(methods), styles.get(method))
                        handles.setdefault(method or "before cleaning", drawn)
                        tall += [number for step in mine if what == "accuracy" for number in _extent(step.over(what))]
                if line := _published(axes, axis, study, panel, what, all_steps):
                    handles.setdefault(str(line.get_label()), line)
                    if what == "accuracy" and line.axes is axes:
                        heights = np.asarray(line.get_ydata(), dtype=float)
                        tall += heights[np.isfinite(heights)].tolist()
                axis.dress(axes)
            grid[0][column].set_title(wrapped(f"pre-trained with {panel.label}", 4.0, 11), fontsize=11, loc="left", pad=16)
            grid[1][column].set_xlabel(study.series)
        grid[0][0].set_ylim(*limits(tall))
        grid[1][0].set_ylim(-3, 103)
        grid[0][0].set_ylabel(f"best {ACCURACY_AXIS.removesuffix(', %')}\nwith ASR ≤ 5 %, %")
        grid[1][0].set_ylabel("lowest ASR at ≤ 1 point\nof accuracy lost, %")
        for label, drawn in handles.items():
            drawn.set_label(label)
        if handles:
            legend(figure, list(handles.values()))
    return figure


def shows_published(study: Study) -> bool:
    """Whether the figure has a published mark: of one of this study's objectives, at a value within the study's range."""
    axis = _Axis([step.value for step in steps(study)])
    return any(_along(study, panel, axis) for panel in panels(study))


def _along(study: Study, panel: Panel, axis: "_Axis") -> list[tuple[Any, Cleaned | Start]]:
    """(value, published entry) of the panel's objective within the range of the axis."""
    entries = study.published.along(study.series) if study.published else ()
    return [(value, e) for e in entries if e.objective == panel.study_objective for value in e.values or () if axis.reaches(value)]


def _extent(found: tuple[float, float, float] | None) -> list[float]:
    """What the axis must show: a mean and the ends of its interval, cut off 5 points from the mean and at 0 and 100."""
    if found is None:
        return []
    mean, low, high = found
    return [mean, max(low, mean - 5, 0), min(high, mean + 5, 100)] if math.isfinite(low) else [mean]


def _line(
    axes: Axes, axis: "_Axis", mine: Sequence[Step], what: str, number: int, methods: int, worn: tuple[str, str] | None
) -> Line2D:
    """One method's means, with a bar for each interval and a gap where no repetition has a model; without a method the uncleaned model."""
    style: dict[str, Any] = {**START, "markersize": 13}
    if worn:
        style = {"color": worn[0], "marker": worn[1], "markersize": 5.5, "linewidth": 1.4}
    shift = 0 if methods < 2 or not mine[0].method else axis.gap * 0.12 * (number - (methods - 1) / 2)
    x, y, down, up = [], [], [], []
    for step in mine:
        mean, low, high = step.over(what) or (math.nan, math.nan, math.nan)
        place = axis.at(step.value) + shift
        x.append(place)
        y.append(mean)
        down.append(mean - max(low, 0) if math.isfinite(low) else 0.0)
        up.append(min(high, 100) - mean if math.isfinite(high) else 0.0)
        reached = sum(choice.point is not None for choice in step.choices)
        if 0 < reached < len(step.choices):
            axes.annotate(
                f"{reached}/{len(step.choices)}", (place, mean), color=style["color"], fontsize=7.5,
                xytext=(6, 4), textcoords="offset points",
            )  # fmt: skip
        if step.method and not reached:
            axes.annotate(
                "none", (place, 0.02), xycoords=axes.get_xaxis_transform(), fontsize=7.5, color=style["color"], ha="center",
                xytext=(0, 10 * number), textcoords="offset points",
            )  # fmt: skip
    axes.errorbar(x, y, yerr=[down, up], fmt="none", ecolor=style["color"], elinewidth=1, capsize=2.5, zorder=2)
    (line,) = axes.plot(x, y, **style, zorder=3, clip_on=False)
    return line


def _published(axes: Axes, axis: "_Axis", study: Study, panel: Panel, what: str, found: list[Step]) -> Line2D | None:
    """The published series, hollow; on an axis of its own at the right if its accuracies differ too much."""
    mine = sorted(_along(study, panel, axis), key=lambda entry: entry[0])
    marks = [(value, _mark(entry, what)) for value, entry in mine]
    if study.published is None or not any(mark for _, mark in marks):
        return None
    entries = study.published.along(study.series)
    means = [mean[0] for step in found if SHOWN[step.rule] == what and (mean := step.over(what))]
    heights = [getattr(mark, what) if mark else math.nan for _, mark in marks]
    known = [height for height in heights if math.isfinite(height)]
    if what == "accuracy" and means and max(*means, *known) - min(*means, *known) > 2 * max(max(means) - min(means), 10):
        axes = axes.twinx()
        axes.grid(False)
        axes.set_ylim(*limits(known))
        axes.tick_params(axis="y", labelcolor="#777777", labelsize=8)
        axes.set_ylabel("published accuracy, %", color="#777777", fontsize=8)
    before = isinstance(entries[0], Start)
    label = published_name("before cleaning" if before else "CleanCLIP", list(dict.fromkeys(entry.name for entry in entries)))
    style: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": "#D00000" if before else "#555555", "linestyle": ":"}
    (line,) = axes.plot(
        [axis.at(value) for value, _ in marks], heights, color="#999999", marker="*" if before else "o", markersize=11 if before else 7,
        linewidth=1, zorder=1.5, label=label, **style,
    )  # fmt: skip
    return line


def _mark(entry: Cleaned | Start, what: str) -> Mark | None:
    if isinstance(entry, Start):
        return entry.mark
    return entry.best[5] if what == "accuracy" else entry.lowest


def _ordered(values: Any) -> list[Any]:
    """Each value once: numbers by size, then words in their given order."""
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    numbers = sorted(value for value in distinct if is_number(value))
    return numbers + [value for value in distinct if not is_number(value)]


class _Axis:
    """Positions on the horizontal axis: numbers linearly or logarithmically, with 0 apart at the left; words side by side."""

    def __init__(self, values: Sequence[Any]):
        self.values = _ordered(values)
        self.words = not all(is_number(value) for value in self.values)
        positive = [value for value in self.values if is_number(value) and value > 0]
        self.log = not self.words and len(positive) > 1 and positive[-1] > LOG_FROM * positive[0] and self.values[0] >= 0
        self.low: float
        self.high: float
        self.low, self.high = (positive[0], positive[-1]) if positive else (1.0, 1.0)
        places = [self.at(value) for value in self.values] or [0.0]
        self.span = (max(places) - min(places)) or 1.0
        self.gap = min((b - a for a, b in zip(places, places[1:])), default=self.span) or self.span
        self.start = min(places)

    def at(self, value: Any) -> float:
        if self.words:
            return float(self.values.index(value))
        if not self.log:
            return float(value)
        return math.log10(value) if value > 0 else math.log10(self.low) - 0.15 * math.log10(self.high / self.low)

    def reaches(self, value: Any) -> bool:
        """Whether a published value lies within the range of the study's own."""
        return not self.words and is_number(value) and bool(self.values) and self.values[0] <= value <= self.high

    def dress(self, axes: Axes) -> None:
        """Set ticks at the values, as many as there is room for."""
        ticks: list[tuple[float, str]] = []
        for value in self.values:
            place = self.at(value)
            room = 0.022 * (len(value_text(value)) + 2) * self.span
            if not ticks or place - ticks[-1][0] >= room or self.words:
                ticks.append((place, value_text(value)))
        axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        if self.words and max(len(text) for _, text in ticks) * len(ticks) > 40:
            axes.tick_params(axis="x", rotation=25)
        axes.set_xlim(self.start - 0.08 * self.span, self.start + 1.08 * self.span)
