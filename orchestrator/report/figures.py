"""The figures of a report, by name, each drawn once. To add one, write a function of the study in a module of its own, and a line here."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from datasets.storage import write_whole
from orchestrator.report import analysis
from orchestrator.report.curves import pretrain_curves, trial_curves
from orchestrator.report.drawing import pdf, png
from orchestrator.report.inline import svg
from orchestrator.report.scatter import best_three, corner, published, published_apart, scatter, zoom
from orchestrator.report.series import series, steps
from orchestrator.results.outcome import Study
from orchestrator.results.points import panels

ONLY_ON_THE_PAGE = ("scatter_", "curves_")
"""Prefixes of figures that are on the page only; in files, all panels are one figure."""


def figures(study: Study) -> dict[str, Callable[[], Figure]]:
    """Name → function that draws the figure, for figures that have something to show. A name that contains a number belongs to one
    panel."""
    functions: dict[str, Callable[[], Figure]] = {"pretrain_curves": partial(pretrain_curves, study)}
    if study.trials:
        functions |= {"accuracy_vs_asr": partial(scatter, study), "clean_curves": partial(trial_curves, study)}
        for number, panel in enumerate(panels(study), 1):
            functions[f"scatter_{number}"] = partial(scatter, study, panel)
            if corner(study, panel):
                functions[f"enlarged_{number}"] = partial(zoom, study, panel)
            functions[f"best_three_{number}"] = partial(best_three, study, panel)
            functions[f"curves_{number}"] = partial(trial_curves, study, panel)
        if published_apart(study):
            functions["published"] = partial(published, study)
    if steps(study):
        functions["series"] = partial(series, study)
    return functions | analysis.figures(study)


class Gallery:
    """The study's figures, drawn when first asked for."""

    def __init__(self, study: Study):
        self._draw = figures(study)
        self._png: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._draw

    def png(self, name: str) -> bytes:
        if name not in self._png:
            self._png[name] = png(self._draw[name]())
        return self._png[name]

    def svg(self, name: str, alt: str) -> str:
        """The figure as part of a page; `alt` says what it shows."""
        return svg(self._draw[name](), name, alt)

    def write(self, out: Path) -> list[Path]:
        """Write PNG and PDF of each figure into the folder `out`, each under another name first."""
        out.mkdir(parents=True, exist_ok=True)
        written = []
        for name, draw in self._draw.items():
            if name.startswith(ONLY_ON_THE_PAGE):
                continue
            figure = draw()
            self._png.setdefault(name, png(figure))
            figure.set_layout_engine("none")  # the layout is done; repeating it would take most of the time
            for ending, content in (("png", self._png[name]), ("pdf", pdf(figure))):
                written.append(write_whole(out / f"{name}.{ending}", content))
        return written
