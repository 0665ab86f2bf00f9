"""Accuracy against ASR: every point, the crowded corner, published points, and the paths of the best trials."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from orchestrator.report.drawing import (
    ACCURACY_AXIS,
    ASR_AXIS,
    DASHES,
    HOLLOW_START,
    START,
    STYLE,
    accuracies,
    hollow,
    legend,
    limits,
    look,
    own_handles,
    published_accuracies,
    published_name,
    same_scale,
    wrapped,
)
from orchestrator.report.inline import say
from orchestrator.results.names import percent, settings, settings_among, value_at
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import (
    Panel,
    Point,
    arms,
    attacks_of,
    cleaned_points,
    front,
    panels,
    published_cleanings,
    published_starts,
    start_of,
    starts_of,
)
from orchestrator.results.published import Mark
from orchestrator.results.selection import most_accurate

CORNER = 12.0
"""The corner that is enlarged reaches up to this ASR, in percent."""
MANY = 24
"""With more trials than this, no lines join the epochs, because they would hide the dots."""
HOVER_LINES = 12
"""At most this many points at one place are listed in the tooltip."""
GREYS = ["#111111", "#555555", "#888888"]
"""Colours of the best trials by rank; no method has these colours."""


def scatter(study: Study, only: Panel | None = None) -> Figure:
    """A dot per trial and epoch, a red star for the uncleaned model, one panel per pre-training objective.

    Thin lines are Pareto fronts. Published points are hollow and lie underneath, if one axis can show both.
    """
    shown, shared = [only] if only else panels(study), same_scale(study)

    def draw(axes: Axes, panel: Panel) -> None:
        if shared:
            draw_published(axes, study, panel)
        draw_points(axes, study, panel)
        if box := corner(study, panel):
            (x0, x1), (y0, y1) = box
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="#888888", linewidth=0.8, zorder=1.5))

    handles = own_handles(study) + (published_handles(study, shown) if shared else [])
    values = accuracies(study) + (published_accuracies(study) if shared else [])
    return _panels(shown, draw, handles, (-3, 103), limits(values))


def zoom(study: Study, panel: Panel) -> Figure:
    """The corner of low ASR, enlarged."""
    box = corner(study, panel)
    assert box

    def draw(axes: Axes, panel: Panel) -> None:
        if same_scale(study):
            draw_published(axes, study, panel, inside=box)
        draw_points(axes, study, panel, inside=box)

    handles = own_handles(study) + (published_handles(study, [panel]) if same_scale(study) else [])
    figure = _panels([panel], draw, handles, *box)
    figure.axes[0].set_title(wrapped(f"enlarged: ASR ≤ {CORNER:.0f} %, {panel.label}", 4.3, 11), fontsize=11, loc="left", pad=9)
    return figure


def published_apart(study: Study) -> list[Panel]:
    """One panel for each set of published points that is too far from the study's own points to share an axis."""
    if same_scale(study):
        return []
    by_name: dict[tuple[str, ...], Panel] = {}
    for panel in panels(study):
        if names := _names(study, panel):
            by_name.setdefault((panel.objective, *names), panel)
    return sorted(by_name.values(), key=lambda panel: panel.objective)


def published(study: Study) -> Figure:
    """The published points alone, on a scale of their own."""
    shown = published_apart(study)
    figure = _panels(
        shown, lambda axes, panel: draw_published(axes, study, panel), published_handles(study, shown),
        (-3, 103), limits(published_accuracies(study)),
    )  # fmt: skip
    for axes, panel in zip(figure.axes, shown):
        title = published_name(f"pre-trained with {panel.objective}", _names(study, panel))
        axes.set_title(wrapped(title, 4.3, 11), fontsize=11, loc="left", pad=9)
    return figure


def corner(study: Study, panel: Panel) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The box of low ASR to enlarge: it holds many points in a small part of the panel."""
    points = [p for trial in study.trials if panel.holds(trial) for p in cleaned_points(trial)]
    low = [p.accuracy for p in points if p.asr <= CORNER]
    bottom, top = limits(accuracies(study))
    if len(low) < 12:
        return None
    best = max(low)
    used = [a for a in low if a >= best - 0.35 * (top - bottom)]
    if len(used) < 12:
        return None
    return (-0.4, CORNER), limits(used)


def _panels(
    shown: Sequence[Panel], draw: Any, handles: list[Line2D], x: tuple[float, float], y: tuple[float, float]
) -> Figure:
    """A grid of panels that share their axes, with one legend."""
    columns = max(1, min(len(shown), 3))
    rows = max(1, -(-len(shown) // columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.6 * columns, 4.1 * rows + 0.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, panel in zip(grid.flat, shown):
            axes.set_title(wrapped(f"pre-trained with {panel.label}", 4.3, 11), fontsize=11, loc="left", pad=9)
            draw(axes, panel)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        grid[0][0].set_xlim(*x)
        grid[0][0].set_ylim(*y)
        for axes in grid[:, 0]:
            axes.set_ylabel(ACCURACY_AXIS)
        for column in range(columns):  # the lowest panel of each column, which is not always in the last row
            axes = grid[max(i for i in range(rows) if i * columns + column < max(1, len(shown)))][column]
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(ASR_AXIS)
        legend(figure, handles)
    return figure


def few_trials(study: Study, panel: Panel) -> bool:
    """Whether lines can join the epochs of each trial without hiding the others."""
    return sum(panel.holds(trial) for trial in study.trials) <= MANY


def draw_points(axes: Axes, study: Study, panel: Panel, inside: Any = None) -> None:
    """Draw every trial and epoch of a panel, its fronts and its uncleaned models; with `inside`, only the part in that box."""
    _low_asr(axes)
    named, styles = arms(study), look(study)
    trials = [trial for trial in study.trials if panel.holds(trial)]
    few, clip, texts = few_trials(study, panel), inside is not None, told_at(study, panel)
    for arm, mine in _in_turn(trials, named, 1 if few else len(trials)):
        colour, marker = styles[arm]
        points = [point for trial in mine for point in cleaned_points(trial)]
        if not points:
            continue
        if few:
            start = start_of(study, mine[0].pretrain, mine[0])
            way = [*([(start.asr, start.accuracy)] if start else []), *((p.asr, p.accuracy) for p in points)]
            axes.plot(*zip(*way), color=colour, linewidth=0.8, alpha=0.35, zorder=2)
        shown = [p for p in points if inside is None or _within(p, inside)]
        (dots,) = axes.plot(
            [p.asr for p in shown], [p.accuracy for p in shown], linestyle="", marker=marker, color=colour,
            markersize=6 if few else 4.5, alpha=0.85 if few else 0.6, markeredgecolor="white", markeredgewidth=0.4,
            zorder=3, clip_on=clip,
        )  # fmt: skip
        say(dots, [texts[p.asr, p.accuracy] for p in shown])
    for stage in panel.pretrains:
        mine = [trial for trial in trials if trial.pretrain == stage.fingerprint]
        for arm in dict.fromkeys(named[trial.fingerprint] for trial in mine):
            edge = front([p for trial in mine if named[trial.fingerprint] == arm for p in cleaned_points(trial)])
            if len(edge) > 1:
                x, y = [p.asr for p in edge], [p.accuracy for p in edge]
                axes.step(x, y, where="post", color=styles[arm][0], linewidth=1.3, alpha=0.75, zorder=2.5)
    for start in starts_of(study, panel):
        if inside is None or _within(start, inside):
            (star,) = axes.plot([start.asr], [start.accuracy], markersize=17, zorder=4, clip_on=clip, **START)
            say(star, [texts[start.asr, start.accuracy]])
    if not any(cleaned_points(trial) for trial in trials):
        axes.text(0.5, 0.5, "no cleaning was measured", transform=axes.transAxes, ha="center", color="#777777")


def _in_turn(trials: Sequence[TrialResult], named: dict[str, str], most: int) -> Iterator[tuple[str, list[TrialResult]]]:
    """(arm, trials): at most so many trials that follow one another and are of the same arm."""
    for arm, alike in itertools.groupby(trials, key=lambda trial: named[trial.fingerprint]):
        while mine := list(itertools.islice(alike, most)):
            yield arm, mine


def told_at(study: Study, panel: Panel) -> dict[tuple[float, float], str]:
    """(ASR, accuracy) → all that lies there, one per line, because the mark on top hides the others."""
    named, attacks = arms(study), list(attacks_of(study))
    texts_at: dict[tuple[float, float], list[str]] = {}
    for start in starts_of(study, panel):
        text = f"before cleaning{_seed(panel, start.stage)}, epoch {start.epoch}, {_numbers(start, attacks)}"
        texts_at.setdefault((start.asr, start.accuracy), []).append(text)
    groups: dict[str, list[TrialResult]] = {}
    for trial in study.trials:
        if panel.holds(trial):
            groups.setdefault(named[trial.fingerprint], []).append(trial)
    told = {arm: settings_among(trials) for arm, trials in groups.items()}
    for trial in study.trials:
        arm = named[trial.fingerprint]
        name = _name(panel, trial, arm, told[arm](trial)) if panel.holds(trial) else ""
        for p in cleaned_points(trial) if name else ():
            texts_at.setdefault((p.asr, p.accuracy), []).append(f"{name}, epoch {p.epoch}, {_numbers(p, attacks)}")
    for texts in texts_at.values():
        if len(texts) > HOVER_LINES:
            texts[HOVER_LINES - 1 :] = [f"and {len(texts) - HOVER_LINES + 1} more here"]
    return {place: "\n".join(texts) for place, texts in texts_at.items()}


def draw_published(axes: Axes, study: Study, panel: Panel, inside: Any = None) -> None:
    """The published starts and fronts that belong to the panel, hollow and under the study's own points; `inside`: a part."""
    _low_asr(axes)
    for cleaned in published_cleanings(study, panel):
        (marks,) = axes.plot([m.asr for m in cleaned.front], [m.accuracy for m in cleaned.front], zorder=1.6, **hollow(study, cleaned))
        say(marks, [f"{published_name(cleaned.method, [cleaned.name])}, {_numbers(m)}" for m in cleaned.front])
    for start in published_starts(study, panel):
        if inside is None or _within(start.mark, inside):
            (star,) = axes.plot([start.mark.asr], [start.mark.accuracy], zorder=1.7, clip_on=False, **HOLLOW_START)
            say(star, [f"{published_name('before cleaning', [start.name])}, {_numbers(start.mark)}"])


def published_handles(study: Study, shown: Sequence[Panel]) -> list[Line2D]:
    """Legend entries of the published points in these panels."""
    drawn = [(c.method, hollow(study, c), c.name) for panel in shown for c in published_cleanings(study, panel)]
    drawn += [("before cleaning", HOLLOW_START, start.name) for panel in shown for start in published_starts(study, panel)]
    alike: dict[str, tuple[str, dict[str, Any], dict[str, None]]] = {}  # marks of one look have one entry, with all their names
    for what, style, name in drawn:
        alike.setdefault(f"{what} {style}", (what, style, {}))[2][name] = None
    return [Line2D([], [], label=published_name(what, list(names)), **style) for what, style, names in alike.values()]


def _names(study: Study, panel: Panel) -> list[str]:
    """The names of the published results that belong to the panel, each once."""
    return list(dict.fromkeys(entry.name for entry in [*published_starts(study, panel), *published_cleanings(study, panel)]))


def best_three(study: Study, panel: Panel) -> Figure:
    """The paths of the three trials with the most accurate models at ASR ≤ 5 %, with numbered epochs.

    Marks have the method's colour and shape, as in all figures; greys and dashes of the lines show the ranks. If fewer than three trials
    have such a model, those with the lowest ASR follow, and the legend says so.
    """
    named, styles, chosen = arms(study), look(study), best(study, panel)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        axes = figure.subplots()
        _low_asr(axes)
        handles, seen = [], []
        for number, (trial, point) in enumerate(chosen):
            points = cleaned_points(trial)
            start = start_of(study, trial.pretrain, trial)
            way = ([start] if start else []) + points
            x, y = [p.asr for p in way], [p.accuracy for p in way]
            seen += y
            grey, (colour, marker) = GREYS[number], styles[named[trial.fingerprint]]
            style: dict[str, Any] = {"color": grey, "linestyle": DASHES[number], "linewidth": 1.4}
            style |= {"marker": marker, "markersize": 6, "markerfacecolor": colour, "markeredgecolor": grey, "markeredgewidth": 0.7}
            axes.plot(x, y, **style, clip_on=False, zorder=3)
            if point:
                axes.plot([point.asr], [point.accuracy], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=grey, zorder=3)
            _number_epochs(axes, points, grey, above=number % 2 == 0)
            if start:
                axes.plot([start.asr], [start.accuracy], markersize=16, zorder=4, clip_on=False, **START)
            arm = named[trial.fingerprint]
            alike = [t for t in study.trials if panel.holds(t) and named[t.fingerprint] == arm]
            label = f"{number + 1}. {_name(panel, trial, arm, settings(trial, alike))}" + ("" if point else " (never at ASR ≤ 5 %)")
            handles.append(Line2D([], [], label=label, **style))
        axes.set_xlim(-3, 103)
        axes.set_ylim(*limits(seen))
        axes.set_xlabel(ASR_AXIS)
        axes.set_ylabel(ACCURACY_AXIS)
        title = wrapped(f"pre-trained with {panel.label}", 4.3, 11)
        axes.set_title(title, fontsize=11, loc="left", pad=16)  # numbers of epochs stand above the axes
        if not chosen:
            axes.text(0.5, 0.5, "no cleaning was measured", transform=axes.transAxes, ha="center", color="#777777")
        legend(figure, [*handles, Line2D([], [], markersize=15, label="before cleaning", **START)])
    return figure


def best(study: Study, panel: Panel) -> list[tuple[TrialResult, Point | None]]:
    """Up to three trials: those with the best accuracy at ASR ≤ 5 % first, then those with the lowest ASR."""
    ranked = []
    for trial in study.trials:
        points = cleaned_points(trial)
        if panel.holds(trial) and points:
            point = most_accurate(5)(points, points[0])
            key = (0, -point.accuracy, point.asr) if point else (1, min(p.asr for p in points), 0.0)
            ranked.append((key, trial.fingerprint, trial, point))
    ranked.sort(key=lambda entry: entry[:2])
    return [(trial, point) for _, _, trial, point in ranked[:3]]


def _name(panel: Panel, trial: TrialResult, arm: str, settings: str) -> str:
    """A trial's name: its arm, and how it differs from the arm's other trials: "CleanCLIP: lr 0.001, seed 2"."""
    name = f"{arm}: {settings or 'as given'}"
    source = next((stage for stage in panel.pretrains if stage.fingerprint == trial.pretrain), None)
    return name if source is None or "seed" in name else name + _seed(panel, source)


def _seed(panel: Panel, stage: StageResult) -> str:
    """Tells a pre-training from the panel's others; empty if the panel has one."""
    if len(panel.pretrains) == 1:
        return ""
    seed = value_at(stage, "pretrain.seed")
    return f", seed {seed}" if seed is not None else f" ({stage.fingerprint[:6]})"


def _numbers(point: Point | Mark, attacks: Sequence[str] = ()) -> str:
    """Accuracy and ASR; with several attacks also each one's ASR."""
    metrics = point.metrics if isinstance(point, Point) else {}
    each = ", ".join(f"{name} {percent(metrics[f'asr/{name}/top1'])}" for name in attacks if f"asr/{name}/top1" in metrics)
    return f"accuracy {percent(point.accuracy)}, ASR {percent(point.asr)}" + (f" ({each})" if each else "")


def _number_epochs(axes: Axes, points: Sequence[Point], colour: str, above: bool) -> None:
    """Write the epoch beside each point: always at the first and the last, elsewhere if there is room."""
    last: tuple[float, float] | None = None
    span = max((p.accuracy for p in points), default=1) - min((p.accuracy for p in points), default=0) or 1
    for number, point in enumerate(points):
        place = (point.asr / 100, point.accuracy / span)
        near = last is not None and abs(place[0] - last[0]) < 0.05 and abs(place[1] - last[1]) < 0.07
        if near and number < len(points) - 1:
            continue
        last = place
        axes.annotate(
            str(point.epoch), (point.asr, point.accuracy), xytext=(0, 7 if above else -13), textcoords="offset points",
            fontsize=7.5, color=colour, ha="center", zorder=5, annotation_clip=False,
        )  # fmt: skip


def _low_asr(axes: Axes) -> None:
    """Shade the band of ASR ≤ 5 %, once for each axes."""
    if axes.patches:
        return
    axes.axvspan(-3, 5, color="#DDEBDD", linewidth=0, zorder=0)
    axes.text(5.5, 0.015, "ASR ≤ 5 %", transform=axes.get_xaxis_transform(), fontsize=8, color="#4A774A", va="bottom", clip_on=True)


def _within(point: Point | Mark, box: tuple[tuple[float, float], tuple[float, float]]) -> bool:
    (x0, x1), (y0, y1) = box
    return x0 <= point.asr <= x1 and y0 <= point.accuracy <= y1
