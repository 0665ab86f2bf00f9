"""The look of every figure: colours, legends, limits, and files that are the same for the same study.

Uses Matplotlib without a display.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from orchestrator.results.kinds import study_method
from orchestrator.results.outcome import StageResult, Study
from orchestrator.results.points import (
    arms,
    cleaned_points,
    methods_of,
    panels,
    points_of,
    published_cleanings,
    published_starts,
    start_of,
)
from orchestrator.results.published import METHODS, Cleaned

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C564B", "#7F7F7F", "#B8A900"]
"""Okabe and Ito's colours, which colour-blind readers can tell apart; red is reserved for the uncleaned model."""
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
ACCURACY_AXIS, ASR_AXIS = "zero-shot accuracy, %", "attack success rate (ASR), %"


def look(study: Study, ignoring: str = "") -> dict[str, tuple[str, str]]:
    """Arm → (colour, marker), the same in every figure of a study. The methods of the study of CleanCLIP have the same look in every study.

    A method has one marker; its arms (cleaning sets, values of the series) have shades from dark to bright. `ignoring`: a dotted path that
    does not split a method into arms.
    """
    named, called = arms(study, ignoring), methods_of(study)
    method = {named[trial.fingerprint]: called[trial.fingerprint] for trial in study.trials}
    kinds = list(dict.fromkeys([*METHODS.values(), *method.values()]))  # no other class has the look of one of the study's methods
    if len(set(method.values())) == len(method):
        return {arm: _mark(kinds.index(kind)) for arm, kind in method.items()}
    shades = matplotlib.colormaps["viridis"]
    looks = {}
    for kind in dict.fromkeys(method.values()):
        mine = [arm for arm in method if method[arm] == kind]
        for number, arm in enumerate(mine):
            colour = matplotlib.colors.to_hex(shades(0.9 * number / max(1, len(mine) - 1)))
            looks[arm] = (colour, _mark(kinds.index(kind))[1])
    return looks


def _mark(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def hollow(study: Study, cleaned: Cleaned) -> dict[str, Any]:
    """The style of a published cleaning's marks: hollow, with colour and shape of the study's arm with the same method, if there is one."""
    looks, named = look(study), arms(study)
    like = {named[trial.fingerprint] for trial in study.trials if study_method(trial) == cleaned.method and cleaned.fits(trial.config)}
    colour, marker = looks[like.pop()] if len(like) == 1 else _mark(list(METHODS.values()).index(cleaned.method))
    return {
        "linestyle": "", "marker": marker, "markersize": 6.5, "markerfacecolor": "none",
        "markeredgecolor": colour, "markeredgewidth": 1.1,
    }  # fmt: skip


HOLLOW_START: dict[str, Any] = {
    "marker": "*", "linestyle": "", "markersize": 15, "markerfacecolor": "none", "markeredgecolor": "#D00000", "markeredgewidth": 1.1,
}  # fmt: skip


LETTER = 0.085
"""Approximate width of a letter of 10 points, in inches."""


def wrapped(text: str, inches: float, points: float = 10) -> str:
    """The text in lines that fit this width, because the layout leaves no room beside an axis."""
    letters = max(12, int(inches / (LETTER * points / 10)))
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def columns_of(handles: Sequence[Artist], inches: float) -> tuple[int, int]:
    """How many columns of a legend fit this width, and the number of text lines in the tallest column; labels are wrapped."""
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), inches - 0.6))
    labels = [str(handle.get_label()).splitlines() or [""] for handle in handles]
    widths = [0.6 + LETTER * max(map(len, lines)) for lines in labels]
    for columns in range(len(labels), 0, -1):
        rows, larger = divmod(len(labels), columns)  # the first columns have one entry more
        bounds = [i * rows + min(i, larger) for i in range(columns + 1)]
        parts = list(zip(bounds, bounds[1:]))
        if sum(max(widths[a:b]) for a, b in parts) <= inches or columns == 1:
            return columns, max(sum(map(len, labels[a:b])) for a, b in parts)
    return 1, 0


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below the panels, in as many columns as fit the figure's width. The figure grows taller by the legend's height."""
    columns, lines = columns_of(handles, figure.get_figwidth())
    figure.set_figheight(figure.get_figheight() + 0.23 * max(0, lines - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def own_handles(study: Study, size: float = 7) -> list[Line2D]:
    """Legend entries of the study's arms and its uncleaned model."""
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=size, label=arm)
        for arm, (colour, marker) in look(study).items()
    ]
    return [*handles, Line2D([], [], markersize=2 * size + 1, label="before cleaning", **START)]


def epoch_axes(axes: Axes, stages: Sequence[StageResult]) -> None:
    """Set up the axes: percent upwards, whole epochs to the right."""
    last = max((p.epoch for stage in stages for p in points_of(stage)), default=1)
    axes.set_ylim(-2, 102)
    axes.set_xlim(-0.02 * last, last * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def accuracies(study: Study) -> list[float]:
    """The accuracies of the uncleaned models and of all cleaned ones."""
    values = [p.accuracy for trial in study.trials for p in cleaned_points(trial)]
    return values + [s.accuracy for stage in study.pretrains if (s := start_of(study, stage.fingerprint))]


def published_accuracies(study: Study) -> list[float]:
    """The accuracies of the published results that the report draws."""
    marks = [start.mark for panel in panels(study) for start in published_starts(study, panel)]
    marks += [mark for panel in panels(study) for cleaned in published_cleanings(study, panel) for mark in cleaned.front]
    return [mark.accuracy for mark in marks]


def published_name(what: str, names: Sequence[str]) -> str:
    """The legend's text for published results: "published: CleanCLIP (cc6m/clean_100k)"."""
    return f"published: {what} ({', '.join(names) if len(names) < 4 else f'{names[0]} … {names[-1]}'})"


def same_scale(study: Study) -> bool:
    """Whether the published accuracies can share an axis with the study's own. If not, they are drawn in a figure of their own."""
    ours, others = accuracies(study), published_accuracies(study)
    if not ours or not others:
        return False
    return max(*ours, *others) - min(*ours, *others) <= 2 * max(max(ours) - min(ours), 10)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of the accuracies with a margin, at least 10 points, so that noise does not fill the axis."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    margin = max(0.06 * (high - low), 0.6)
    high = min(high + margin, 100.6)
    return max(min(low - margin, high - 10.6), -2.0), high


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, without a date or a version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


LARGE = 400_000
"""Bytes above which a picture has 256 colours on the page."""


def lighter(content: bytes) -> bytes:
    """A large PNG with 256 colours: hundreds of half-transparent lines have thousands, and a page that holds them loads slowly."""
    if len(content) <= LARGE:
        return content
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, without a date or a version in it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # the font type is read when saving
        figure.savefig(
            buffer,
            format="pdf",
            metadata={"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None},
        )
    return buffer.getvalue()
