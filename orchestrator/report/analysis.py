"""Figures of the training pairs as the models see them: similarities over the epochs, histograms, maps of embeddings.

Everything is drawn from `pairs/…` metrics and the arrays in a stage's folder `analysis/`; a study without them has no such section.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from orchestrator.report.drawing import COLOURS, STYLE, columns_of, legend, look, wrapped
from orchestrator.results.names import called, percent
from orchestrator.results.outcome import StageResult, Study
from orchestrator.results.points import Point, arms, cleaned_points, methods_of, panels, points_of, start_of
from orchestrator.results.selection import RULES
from orchestrator.store import read_arrays

KINDS = {"clean": "#0072B2", "poisoned": "#D55E00"}
"""Kinds of pairs and their colours."""
LINES: dict[str, Any] = {"clean": "-", "poisoned": (0, (4, 1.6))}
"""Kinds of pairs and their dashes, for figures in which colours stand for models."""
GROUPS = {"other": ("#A9B4BD", "o"), "target": ("#009E73", "^"), "triggered": ("#882255", "s")}
"""Groups of pictures with their colours and marks, in the order of their numbers in the arrays."""
WIDE, ROW = 10.8, 3.35
"""Inches: the width of the page, and the height of a row of small figures without its legend."""
MAX_PANELS = 4
"""At most this many pre-trainings have histograms and maps, because t-SNE takes seconds for each."""
Arrays = dict[str, np.ndarray]


def lines_of(stage: StageResult) -> list[tuple[int, dict[str, float]]]:
    """(epoch, metrics) of the epochs in which the pairs were analysed, in order."""
    by_epoch = {line["epoch"]: line["metrics"] for line in stage.metrics if "pairs/clean_cosine" in line.get("metrics", {})}
    return sorted(by_epoch.items())


def arrays_of(stage: StageResult, epoch: int) -> Arrays:
    """The arrays that were stored for an epoch; empty if there are none."""
    places = (folder / "analysis" / f"epoch_{epoch:04d}.npz" for folder in stage.arrays or (stage.folder,))
    return next((arrays for place in places if (arrays := read_arrays(place))), {})


def before_after(study: Study) -> Iterator[tuple[str, list[tuple[str, StageResult, int]]]]:
    """For each objective the (name, stage, epoch) of its first analysed pre-training, and of one cleaning of it that did well."""
    for panel in panels(study)[:MAX_PANELS]:
        stage = next((s for s in panel.pretrains if lines_of(s)), None)
        if stage is None:
            continue
        start = start_of(study, stage.fingerprint)
        shown = [("before cleaning" + _result(start), stage, lines_of(stage)[-1][0])]
        trials = {t.fingerprint: t for t in study.trials if t.pretrain == stage.fingerprint and lines_of(t)}
        points = [point for trial in trials.values() for point in cleaned_points(trial)]
        choices = (rule.choose(points, start) for rule in RULES) if points and start else iter(())
        if point := next(filter(None, choices), None):
            trial = trials[point.stage.fingerprint]
            shown.append((f"after {methods_of(study)[trial.fingerprint]}{_result(point)}", trial, point.epoch))
        yield panel.label, shown


def kept(study: Study, what: str) -> list[tuple[str, list[tuple[str, Arrays]]]]:
    """Like `before_after`, with the arrays of each stage; objectives of which no stage kept `what` are left out."""
    groups = [(label, [(name, arrays_of(stage, epoch)) for name, stage, epoch in shown]) for label, shown in before_after(study)]
    return [(label, shown) for label, shown in groups if any(what in arrays for _, arrays in shown)]


def _result(point: Point | None) -> str:
    return f",\naccuracy {point.accuracy:.1f} %, ASR {point.asr:.1f} %" if point else ""


# ---- figures --------------------------------------------------------------------------------------------------------------


def dynamics(study: Study) -> Figure:
    """Over the epochs, one line per stage: cosines, poisons among the most similar pairs, how well the cosine detects them, modality
    gap."""
    labels = {stage.fingerprint: (i, panel.label) for i, panel in enumerate(panels(study)) for stage in panel.pretrains}
    drawn = [(s, COLOURS[labels[s.fingerprint][0] % 8], labels[s.fingerprint][1]) for s in study.pretrains if lines_of(s)]
    rows: list[tuple[str, list[tuple[StageResult, str, str]]]] = [("Pre-training", drawn)] if drawn else []
    named, colours = arms(study), look(study)
    for panel in panels(study)[:MAX_PANELS]:
        trials: list[StageResult] = [t for t in study.trials if panel.holds(t) and lines_of(t)]
        if trials:
            shades = [(t, colours[named[t.fingerprint]][0], named[t.fingerprint]) for t in trials]
            rows.append((wrapped(f"Cleaning, pre-trained with {panel.label}", WIDE - 0.5, 11), shades))
    legends = [_legend_of(stages) for _, stages in rows]
    heights = [ROW + 0.24 * lines for _, _, lines in legends]
    with matplotlib.rc_context(STYLE):  # placed by hand: matplotlib's own layouts ignore legends inside of a figure
        top = tall = sum(heights)
        figure = Figure(figsize=(WIDE, tall))
        for (title, stages), (handles, columns, _), height in zip(rows, legends, heights):
            figure.text(0.06 / WIDE, (top - 0.12) / tall, title, va="top", fontsize=11)
            sides = {"left": 0.6 / WIDE, "right": 1 - 0.15 / WIDE, "top": (top - 0.85) / tall, "bottom": (top - ROW + 0.6) / tall}
            grid = figure.add_gridspec(1, 4, wspace=0.27, **sides)
            _dynamics_row([figure.add_subplot(grid[0, column]) for column in range(4)], stages)
            place = (0.5, (top - ROW + 0.15) / tall)
            figure.legend(handles=handles, loc="upper center", bbox_to_anchor=place, borderaxespad=0, ncols=columns)
            top -= height
    return figure


def _legend_of(stages: list[tuple[StageResult, str, str]]) -> tuple[list[Line2D], int, int]:
    """The legend's entries, its number of columns, and its number of lines of text."""
    named = {label: colour for _, colour, label in stages}
    handles = [Line2D([], [], color=colour, linewidth=1.8, label=label) for label, colour in named.items()]
    handles += [Line2D([], [], color="#444444", linestyle=dash, label=f"{kind} pairs") for kind, dash in LINES.items()]
    return handles, *columns_of(handles, WIDE)


def _dynamics_row(grid: Iterable[Axes], stages: list[tuple[StageResult, str, str]]) -> None:
    metrics = lines_of(stages[0][0])[-1][1]
    tops = [name for name in metrics if name.startswith("pairs/top") and name.endswith("_poisons")]
    share = tops[-1].removeprefix("pairs/top").removesuffix("_poisons") if tops else ""
    columns: dict[str, tuple[dict[str, Any], float | None]] = {  # title → names of metrics and their dashes, and the value at chance
        "cosine of\npicture and caption": ({f"pairs/{kind}_cosine": dash for kind, dash in LINES.items()}, None),
        f"poisons among the\n{share} % most similar, %": (dict.fromkeys(tops[-1:], "-"), metrics.get("pairs/sample_poisons")),
        "cosine as detector\nof poisons, AUROC": ({"pairs/auroc": "-"}, 0.5),
        "modality gap": ({"pairs/modality_gap": "-"}, None),
    }
    few = len(stages) <= 12
    for axes, (title, (names, chance)) in zip(grid, columns.items()):
        highest = chance or 0.0
        for stage, colour, _ in stages:
            for name, dash in names.items():
                known = [(epoch, values[name]) for epoch, values in lines_of(stage) if name in values]
                if known:
                    highest = max(highest, *(value for _, value in known))
                    style: dict[str, Any] = {"color": colour, "alpha": 0.9 if few else 0.4, "linewidth": 1.6 if few else 1.0}
                    axes.plot(*zip(*known), linestyle=dash, marker="o", markersize=3 if few else 2, **style, clip_on=False)
        axes.set_title(title, fontsize=9.5, loc="left")
        axes.set_xlabel("epoch")
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.margins(x=0.03)
        if "AUROC" in title:
            axes.set_ylim(0, 1)
        elif "cosine" not in title:
            axes.set_ylim(0, 1.08 * highest or 1)
        if chance is not None:
            axes.axhline(chance, color="#777777", linestyle=":", linewidth=1.2)
            axes.text(1, chance, "chance ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8, color="#666666")


def histograms(study: Study) -> Figure:
    """Cosines of clean and poisoned pairs before and after a cleaning, one row for each objective."""
    rows = kept(study, "histogram/clean")
    columns = max(len(shown) for _, shown in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 4.6 * columns, 2.9 * len(rows) + 0.4), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_of, (label, shown) in zip(grid, rows):
            _fill(axes_of, shown, label, histogram, 4.0)
            low, high = zip(*(axes.get_xlim() for axes in axes_of[: len(shown)]))
            for axes in axes_of:
                axes.set_xlim(min(low), max(high))
        legend(figure, _pairs())
    return figure


def maps(study: Study) -> Figure:
    """Embeddings of pictures before and after a cleaning, by principal components and by t-SNE, one row for each objective."""
    rows = kept(study, "map/components")
    columns = max(len(shown) for _, shown in rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.4 + 2.7 * 2 * columns, 3.8 * len(rows) + 0.7), layout="constrained")
        grid = figure.subplots(len(rows), 2 * columns, squeeze=False)
        for axes_of, (label, shown) in zip(grid, rows):
            _fill(axes_of[:columns], shown, f"{label}, PCA", scatter_pca, 2.5)
            _fill(axes_of[columns:], shown, f"{label}, t-SNE", scatter_tsne, 2.5)
        legend(figure, _pictures())
    return figure


def portrait(stage: StageResult, near: bool = True) -> Figure | None:
    """One stage by itself: cosines over its epochs, and the histogram and the maps of the last one; without t-SNE unless `near`."""
    lines = lines_of(stage)
    if not lines:
        return None
    arrays = arrays_of(stage, lines[-1][0])
    parts = [(histogram, "cosines"), (scatter_pca, "PCA"), (scatter_tsne, "t-SNE")][: 3 if near else 2]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14.5 if near else 11, 3.9), layout="constrained")
        curves, *others = figure.subplots(1, 1 + len(parts))
        for kind, colour in KINDS.items():
            known = [(e, v[f"pairs/{kind}_cosine"], v[f"pairs/{kind}_cosine_sd"]) for e, v in lines if f"pairs/{kind}_cosine" in v]
            if known:
                x, mean, sd = (np.array(column) for column in zip(*known))
                curves.plot(x, mean, color=colour, marker="o", markersize=3.5)
                curves.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
        curves.set_title("mean cosine ± sd", fontsize=10, loc="left")
        curves.set_xlabel("epoch")
        curves.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        for axes, (draw, title) in zip(others, parts):
            draw(axes, arrays)
            axes.set_title(f"{title} after epoch {lines[-1][0]}", fontsize=10, loc="left")
        legend(figure, [*_pairs(), *_pictures()])
    return figure


def _fill(
    axes_of: Sequence[Axes], shown: list[tuple[str, Arrays]], label: str, draw: Callable[[Axes, Arrays], None], inches: float
) -> None:
    for axes in axes_of[len(shown) :]:
        axes.set_visible(False)
    for axes, (name, arrays) in zip(axes_of, shown):
        draw(axes, arrays)
        axes.set_title(wrapped(f"{label}\n{name}", inches, 9.5), fontsize=9.5, loc="left")


def histogram(axes: Axes, arrays: Arrays) -> None:
    """Share of the clean and of the poisoned pairs in each bin of cosine."""
    used: list[float] = []
    for kind, colour in KINDS.items():
        count_N = arrays.get(f"histogram/{kind}", np.zeros(0))
        if not count_N.sum():
            continue
        edges = np.linspace(-1, 1, len(count_N) + 1)
        axes.stairs(100 * count_N / count_N.sum(), edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(100 * count_N / count_N.sum(), edges, color=colour, linewidth=1.2)
        where = np.flatnonzero(count_N)
        used += [edges[where[0]], edges[where[-1] + 1]]
    if used:
        axes.set_xlim(max(-1, min(used) - 0.04), min(1, max(used) + 0.04))
    axes.set_xlabel("cosine of picture and caption")
    axes.set_ylabel("% of the pairs")


def scatter_pca(axes: Axes, arrays: Arrays) -> None:
    """The first two principal components."""
    component_NK = arrays.get("map/components", np.zeros((0, 2)))
    _dots(axes, component_NK[:, :2], arrays)
    if len(component_NK):
        shares = 100 * arrays["map/variance"][:2]
        axes.set_xlabel(f"{shares[0]:.0f} % of the variance", fontsize=8)
        axes.set_ylabel(f"{shares[1]:.0f} %", fontsize=8)


def scatter_tsne(axes: Axes, arrays: Arrays) -> None:
    """t-SNE of the principal components; distances between clusters and their sizes mean little there."""
    component_NK = arrays.get("map/components", np.zeros((0, 2))).astype(np.float32)
    placed = _tsne(component_NK.tobytes(), component_NK.shape) if len(component_NK) > 3 else np.zeros((0, 2))
    _dots(axes, placed, arrays)


@lru_cache(maxsize=64)
def _tsne(content: bytes, shape: tuple[int, int]) -> np.ndarray:
    from trainers.evaluate.analysis import tsne

    return tsne(np.frombuffer(content, np.float32).reshape(shape))


def _dots(axes: Axes, place_N2: np.ndarray, arrays: Arrays) -> None:
    for number, (colour, mark) in enumerate(GROUPS.values()):
        mine = place_N2[arrays["map/group"] == number] if len(place_N2) else place_N2
        axes.plot(mine[:, 0], mine[:, 1], linestyle="", marker=mark, markersize=3.4, color=colour, alpha=0.75, markeredgewidth=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(1)


def _pairs() -> list[Artist]:
    return [Patch(facecolor=colour, alpha=0.6, label=f"{name} pairs") for name, colour in KINDS.items()]


def _pictures() -> list[Artist]:
    return [Line2D([], [], linestyle="", marker=mark, color=colour, label=f"{name} pictures") for name, (colour, mark) in GROUPS.items()]


TITLES = {
    "pair_dynamics": "Similarity of pictures and captions over the epochs",
    "pair_histograms": "How similar pairs are: clean and poisoned ones, as trained on",
    "embedding_maps": "Embeddings of pictures: of the target class, others, and the same others with the trigger",
}


def figures(study: Study) -> dict[str, Callable[[], Figure]]:
    """Name (of `TITLES`) → the function that draws the figure; empty if nothing was analysed."""
    functions: dict[str, Callable[[], Figure]] = {}
    if any(lines_of(stage) for stage in [*study.pretrains, *study.trials]):
        functions["pair_dynamics"] = partial(dynamics, study)
    if kept(study, "histogram/clean"):
        functions["pair_histograms"] = partial(histograms, study)
    if kept(study, "map/components"):
        functions["embedding_maps"] = partial(maps, study)
    return functions


MEASURES = {
    "cosine, clean pairs": "pairs/clean_cosine",
    "cosine, poisoned pairs": "pairs/poisoned_cosine",
    "AUROC of the cosine": "pairs/auroc",
    "modality gap": "pairs/modality_gap",
    "cosine, picture and itself triggered": "pairs/original_triggered",
    "cosine, picture and itself triggered twice": "pairs/original_twice",
    "cosine, triggered and target pictures": "pairs/between_target_triggered",
    "cosine, picture and a crop of it": "pairs/crop",
    "cosine, triggered picture and a crop of it": "pairs/triggered_crop",
}
"""Rows of a table: their text → metric."""


def tables(study: Study) -> list[tuple[list[str], list[list[str]]]]:
    """The metrics `MEASURES` of the models in the figures: heads and rows for each objective, with a column for each model."""
    result = []
    for label, shown in before_after(study):
        metrics = [dict(lines_of(stage)).get(epoch, {}) for _, stage, epoch in shown]
        points = [next((p for p in points_of(stage) if p.epoch == epoch), None) for _, stage, epoch in shown]
        rows = [
            ["model, epoch", *(f"{called(stage)}, {epoch}" for _, stage, epoch in shown)],
            ["accuracy", *(percent(point.accuracy if point else None) for point in points)],
            ["ASR", *(percent(point.asr if point else None) for point in points)],
        ]
        rows += [[text, *(_number(values.get(metric)) for values in metrics)] for text, metric in MEASURES.items()]
        result.append(([f"pre-trained with {label}", *(name.split(",\n")[0] for name, _, _ in shown)], rows))
    return result


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")
