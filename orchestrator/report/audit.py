"""The page of an audit: robustness over ε, tables with intervals, galleries, before and after."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.storage import write_whole
from orchestrator.report.audit_curves import query_curves, robust_curves
from orchestrator.report.drawing import pdf, png
from orchestrator.report.inline import svg
from orchestrator.report.rendering import render
from orchestrator.report.shown import image
from orchestrator.results.audit_names import names, radius, radius_of
from orchestrator.results.audits import AuditResult, eps_of, not_believable
from orchestrator.stages.audited import ROWS
from trainers.audit.meanings import ENDS, MEANINGS, meaning
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
CELLS = ("Each cell: accuracy under attack in percent with its interval, and after it the accuracy under random noise of the same size. "
         "Higher is more robust; an attack that leaves more right than noise does has failed. An adaptive attack takes, for each picture, "
         "the worse of its own result and the oblivious attack's; “alone” is the accuracy under its own results.")  # fmt: skip
UNKNOWN = "its audit does not say"
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
        "numbers": glossary(results),
        "notes": list(dict.fromkeys(one.telling(note) for one in results for note in one.notes)),
    }  # fmt: skip
    write_whole(out / "audit.csv", _csv(results).encode())
    write_whole(out / "index.html", render("audit", **values).encode())
    return out / "index.html"


def _section(group: str, results: Sequence[AuditResult], models: Sequence[str], out: Path) -> dict[str, Any]:
    slug, figures = group.replace(" ", "-"), []
    kinds = (("", robust_curves, "accuracy under attack over ε"), ("-queries", query_curves, "turned pictures over queries"))
    for end, drawn, what in kinds:
        if (curves := drawn(results)) is not None:
            for ending, content in (("png", png(curves)), ("pdf", pdf(curves))):
                write_whole(out / f"{slug}{end}.{ending}", content)
            figures.append(svg(curves, f"curves-{slug}{end}", f"{GROUPS.get(group, group)}: {what}"))
    robust = [one for one in results if isinstance(one.audit, Robustness)]
    tables = [("", robust_table(robust, models), CELLS)] if robust else []
    others = [one for one in results if not isinstance(one.audit, Robustness)]
    for title in dict.fromkeys(one.title for one in others):
        tables.append((title, metric_table([one for one in others if one.title == title], models), ""))
    galleries = [
        {"title": f"{one.title}: {one.model}", "rows": list(found), "image": image(sheet(found), one.label)}
        for one in results if (found := one.gallery)
    ]  # fmt: skip
    return {"title": GROUPS.get(group, group), "figures": figures, "tables": tables, "galleries": galleries}


def robust_table(results: Sequence[AuditResult], models: Sequence[str]) -> Table:
    """A row for each attack, defence and ε; accuracy under attack of each model with its interval, and under noise of the same size."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    defences = names(one.audit.defence for one in results if isinstance(one.audit, Robustness) and one.audit.defence)
    for one in results:
        audit = one.audit
        assert isinstance(audit, Robustness)
        lines.setdefault((one.label, ""), {})[one.model] = ""
        radii = [(size, f"robust/at_{size:g}", f"robust/noise_at_{size:g}") for size in audit.radii]
        for size, under, noise in radii if audit.attack.minimal else [(eps_of(audit), "robust/accuracy", "robust/noise")]:
            alone = f"; alone {_plain(one, 'robust/alone')}" if audit.worst and not audit.attack.minimal else ""
            lines.setdefault((one.label, radius(size)), {})[one.model] = f"{_text(one, under)}{alone}; noise {_plain(one, noise)}"
        unattacked = "not attacked" + (f", {defences[audit.defence]}" if audit.defence else "")
        lines.setdefault((unattacked, ""), {})[one.model] = _text(one, "robust/clean")
    lines = {key: cells for key, cells in lines.items() if any(cells.values())}
    first = sorted(lines, key=lambda key: not key[0].startswith("not attacked"))
    return ("attack", "ε", *models), [[*key, *(lines[key].get(model, "–") for model in models)] for key in first]


def metric_table(results: Sequence[AuditResult], models: Sequence[str]) -> Table:
    """A row for each metric with its interval where it has one, its unit, and which value speaks for the model."""
    found = {one.model: one for one in results}
    audit, rows = results[0].audit, []
    names = list(dict.fromkeys(name for one in results for name in one.metrics if not name.endswith(ENDS)))
    common = names[0][: names[0].rfind("/") + 1] if names else ""
    while common and not all(name.startswith(common) for name in names):
        common = common[: common.rstrip("/").rfind("/") + 1]
    for name in names:
        known = meaning(name, audit.meanings)
        heading, unit, better = known[1][:3] if known else (name.removeprefix(common), "", "")
        rows.append([heading, *(_text(found[model], name) if model in found else "–" for model in models), unit, better])
    return ("", *models, "unit", "better"), rows


def glossary(results: Sequence[AuditResult]) -> Table | None:
    """A row for each kind of number in audit.csv and MLflow: its name, what it is called here, its unit, which value speaks for the model,
    and a sentence; None without numbers. The ends of intervals have no rows of their own."""
    rows: dict[str, list[str]] = {}
    for one in results:
        for name in one.metrics:
            known = meaning(name, one.audit.meanings)
            if known is not None:
                row = one.audit.meanings.get(known[0]) or MEANINGS[known[0]]
                rows[known[0]] = [known[0], row.heading, row.unit, row.better, row.text]
            elif not name.endswith(ENDS):
                rows[name] = [name, "", "", "", UNKNOWN]
    return (("name", "on this page", "unit", "better", "what it is"), list(rows.values())) if rows else None


def _plain(one: AuditResult, name: str) -> str:
    value = one.metrics.get(name)
    if value is None:
        return "–"
    whole = float(value).is_integer() and f"{name}_low" not in one.metrics  # a count
    return f"{value:.0f}" if whole else f"{value:.1f}" if 10 <= abs(value) < 1000 else short(value)


def _text(one: AuditResult, name: str) -> str:
    low, high = one.metrics.get(f"{name}_low"), one.metrics.get(f"{name}_high")
    if low is None or high is None:
        return _plain(one, name)
    return f"{_plain(one, name)}\N{NO-BREAK SPACE}[{short(low, high)},\N{NO-BREAK SPACE}{short(high, low)}]"


def short(value: float, beside: float | None = None) -> str:
    """Three digits of a number, all of a large one, and 0 for what rounding left of it beside another number."""
    if beside is not None and abs(value) <= 1e-12 * max(1.0, abs(beside)):
        return "0"
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


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
        eps = "" if (found := radius_of(one.audit)) is None else found
        for name, value in one.metrics.items():
            place = str(one.folder / ROWS) if one.folder and (one.folder / ROWS).exists() else ""
            writer.writerow((one.model, one.audit.group, one.label, eps, name, "" if value is None else value, place))
    return out.getvalue()
