"""The page of an audit: robustness over ε, tables with intervals, galleries, before and after."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from datasets.storage import write_whole
from orchestrator.report.drawing import COLOURS, DASHES, MARKERS, STYLE, legend, pdf, png
from orchestrator.report.inline import svg
from orchestrator.report.rendering import render
from orchestrator.report.shown import image
from orchestrator.results.audits import AuditResult, eps_of, not_believable, radius, radius_of, without_eps
from orchestrator.stages.audited import ROWS
from trainers.audit.base import Audit
from trainers.audit.robustness import Robustness

GROUPS = {
    "attacks": "Attacks that see the gradients",
    "black box": "Attacks that only ask",
    "defences": "Defences",
    "explanations": "What it looks at",
    "backdoor": "The trigger, without knowing it",
    "bias": "Biases",
}
"""Groups of audits in the page's order, and their titles. Others follow under their own name."""
TILE = 96
"""Pixels of a picture of a gallery, at least."""
Table = tuple[Sequence[str], list[list[str]]]


def write_audit(results: Sequence[AuditResult], out: Path, title: str, facts: Sequence[tuple[str, str]], said: Sequence[str] = ()) -> Path:
    """Write index.html, audit.csv and the figures into the folder `out`; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    models = list(dict.fromkeys(one.model for one in results))
    groups = [*GROUPS, *(one.audit.group for one in results if one.audit.group not in GROUPS)]
    sections = []
    for group in dict.fromkeys(groups):
        own = [one for one in results if one.audit.group == group and one.folder is not None]
        if own:
            sections.append(_section(group, own, models, out))
    values = {
        "title": title, "facts": list(facts), "said": list(said), "wrong": not_believable(results), "sections": sections,
        "notes": list(dict.fromkeys(note for one in results for note in one.notes)),
    }  # fmt: skip
    write_whole(out / "audit.csv", _csv(results).encode())
    write_whole(out / "index.html", render("audit", **values).encode())
    return out / "index.html"


def _section(group: str, results: Sequence[AuditResult], models: Sequence[str], out: Path) -> dict[str, Any]:
    slug = group.replace(" ", "-")
    curves, figures = robust_curves(results), []
    if curves is not None:
        for ending, content in (("png", png(curves)), ("pdf", pdf(curves))):
            write_whole(out / f"{slug}.{ending}", content)
        figures.append(svg(curves, f"curves-{slug}", f"{GROUPS.get(group, group)}: accuracy under attack over ε"))
    robust = [one for one in results if isinstance(one.audit, Robustness)]
    tables = [("", robust_table(robust, models))] if robust else []
    others = [one for one in results if not isinstance(one.audit, Robustness)]
    for label in dict.fromkeys(one.audit.label + at_eps(one.audit) for one in others):
        tables.append((label, metric_table([one for one in others if one.audit.label + at_eps(one.audit) == label], models)))
    galleries = [
        {"title": f"{one.audit.label}{at_eps(one.audit)}: {one.model}", "rows": list(found), "image": image(sheet(found), one.audit.label)}
        for one in results if (found := one.gallery)
    ]  # fmt: skip
    return {"title": GROUPS.get(group, group), "figures": figures, "tables": tables, "galleries": galleries}


def at_eps(audit: Audit) -> str:
    """`, ε = 4/255` of an attack within ε; else nothing."""
    eps = radius_of(audit)
    return "" if eps is None else f", ε = {radius(eps)}"


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
        panels.setdefault(one.audit.attack.norm, []).append((model, one.audit.label, [(0.0, *clean), *points]))  # type: ignore[attr-defined]


def _interval(one: AuditResult, name: str) -> tuple[float, float, float]:
    values = [one.metrics.get(f"{name}{end}") for end in ("", "_low", "_high")]
    return tuple(math.nan if value is None else value for value in values)  # type: ignore[return-value]


def robust_table(results: Sequence[AuditResult], models: Sequence[str]) -> Table:
    """A row for each attack, defence and ε; accuracy under attack of each model with its interval, and what it is to be compared with."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for one in results:
        audit = one.audit
        assert isinstance(audit, Robustness)
        lines.setdefault((audit.label, ""), {})[one.model] = ""
        if audit.attack.minimal:
            for size in audit.radii:
                lines.setdefault((audit.label, radius(size)), {})[one.model] = _text(one, f"robust/at_{size:g}")
        else:
            noise = _plain(one, "robust/noise")
            lines.setdefault((audit.label, radius(eps_of(audit))), {})[one.model] = f"{_text(one, 'robust/accuracy')}; noise {noise}"
        unattacked = "not attacked" + (f", {audit.defence.label}" if audit.defence else "")
        lines.setdefault((unattacked, ""), {})[one.model] = _text(one, "robust/clean")
    lines = {key: cells for key, cells in lines.items() if any(cells.values())}
    first = sorted(lines, key=lambda key: not key[0].startswith("not attacked"))
    return ("attack", "ε", *models), [[*key, *(lines[key].get(model, "–") for model in models)] for key in first]


def metric_table(results: Sequence[AuditResult], models: Sequence[str]) -> Table:
    """A row for each metric with its interval where it has one."""
    found = {one.model: one for one in results}
    names = list(dict.fromkeys(name for one in results for name in one.metrics if not name.endswith(("_low", "_high"))))
    common = names[0][: names[0].rfind("/") + 1] if names else ""
    while common and not all(name.startswith(common) for name in names):
        common = common[: common.rstrip("/").rfind("/") + 1]
    rows = [[name.removeprefix(common), *(_text(found[model], name) if model in found else "–" for model in models)] for name in names]
    return ("", *models), rows


def _plain(one: AuditResult, name: str) -> str:
    value = one.metrics.get(name)
    if value is None:
        return "–"
    whole = float(value).is_integer() and f"{name}_low" not in one.metrics  # a count
    return f"{value:.0f}" if whole else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _text(one: AuditResult, name: str) -> str:
    low, high = one.metrics.get(f"{name}_low"), one.metrics.get(f"{name}_high")
    bounds = "" if low is None or high is None else f"\N{NO-BREAK SPACE}[{low:.3g},\N{NO-BREAK SPACE}{high:.3g}]".replace("-", "−")
    return _plain(one, name) + bounds


def sheet(gallery: dict[str, np.ndarray]) -> bytes:
    """A PNG with a row for each title and a column for each picture; small pictures are enlarged without smoothing."""
    rows = []
    for pictures in gallery.values():
        if pictures.ndim == 3:
            pictures = np.repeat(pictures[..., None], 3, axis=-1)
        side = max(1, math.ceil(TILE / pictures.shape[1]))
        large = pictures.repeat(side, axis=1).repeat(side, axis=2)
        rows.append(np.concatenate([np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=255) for one in large], axis=1))
    width = max(row.shape[1] for row in rows)
    joined = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])
    buffer = io.BytesIO()
    Image.fromarray(joined.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _csv(results: Sequence[AuditResult]) -> str:
    """Every number: model, audit, ε, metric, value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "group", "audit", "eps", "metric", "value", "rows"))
    for one in results:
        found = radius_of(one.audit)
        eps = "" if found is None else found
        for name, value in one.metrics.items():
            place = str(one.folder / ROWS) if one.folder and (one.folder / ROWS).exists() else ""
            writer.writerow((one.model, one.audit.group, one.audit.label, eps, name, "" if value is None else value, place))
    return out.getvalue()
