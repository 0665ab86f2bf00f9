"""The values of the page's sections with figures: each figure with its cautions beside it."""

import base64
import math
from collections.abc import Sequence
from typing import Any

from orchestrator.report import analysis
from orchestrator.report.drawing import lighter, same_scale
from orchestrator.report.figures import Gallery
from orchestrator.report.scatter import best, few_trials
from orchestrator.report.series import shows_published
from orchestrator.report.tables import Table
from orchestrator.results.cautions import Caution, beside
from orchestrator.results.names import percent, value_at
from orchestrator.results.outcome import StageResult, Study
from orchestrator.results.points import GIVEN, mean_interval, panels, points_of, published_starts

BEFORE = (
    ("before/mmcl", "MMCL loss"),
    ("before/mmcl_grad_norm", "its gradient norm"),
    ("before/inmodal", "SSL loss"),
    ("before/inmodal_grad_norm", "its gradient norm"),
)
"""Metrics of a cleaning's epoch 0, measured on the cleaning set before the first step."""
ELSEWHERE = ("zeroshot", "asr", "train", "before", "pairs")
"""First parts of the names of metrics that other sections show."""
PARTS = ("_count", "_low", "_high")
"""Endings of metrics that belong to another one."""
HOVER = ("scatter_", "enlarged_")
"""Prefixes of figures whose marks have tooltips."""
Values = dict[str, Any]


def image(content: bytes, alt: str) -> Values:
    """A picture that is part of the page."""
    return {"alt": alt, "png": base64.b64encode(content).decode()}


def figure(drawn: Gallery, name: str, alt: str, said: Sequence[str] = (), full: bool = False) -> Values:
    """A figure with its cautions beside it."""
    picture = {"svg": drawn.svg(name, alt)} if name.startswith(HOVER) else {"svg": "", **image(lighter(drawn.png(name)), alt)}
    return {**picture, "said": said, "full": full}


def scatters(study: Study, drawn: Gallery, found: list[Caution]) -> Values:
    """Accuracy against ASR, a panel for each pre-training, its crowded corner, and the published points."""
    parts = []
    for number, panel in enumerate(panels(study), 1):
        if f"scatter_{number}" in drawn:
            parts.append(figure(drawn, f"scatter_{number}", f"Accuracy against ASR: {panel.label}", beside(panel.label, found)))
        if f"enlarged_{number}" in drawn:
            parts.append(figure(drawn, f"enlarged_{number}", f"Enlarged: {panel.label}"))
    apart = "published" in drawn
    return {
        "figures": parts,
        "lines": any(few_trials(study, panel) for panel in panels(study)),
        "apart": figure(drawn, "published", "Published points", full=True) if apart else None,
        "source": study.published.source if study.published and (apart or same_scale(study)) else "",
        "kept": _kept_epochs(study),
    }


def _kept_epochs(study: Study) -> str:
    """A sentence on the epochs of pre-training whose models were published, if they are known."""
    epochs = {(start.name, start.objective): start.kept for panel in panels(study) for start in published_starts(study, panel)}
    return "; ".join(f"{name} with {objective}: {kept}" for (name, objective), kept in epochs.items() if kept)


def best_ways(study: Study, drawn: Gallery, found: list[Caution]) -> Values:
    """The three best trials of each panel; `most` is the largest number in a panel: three, or fewer if fewer were measured."""
    shown = [
        figure(drawn, f"best_three_{number}", f"Best trials: {panel.label}", beside(panel.label, found))
        for number, panel in enumerate(panels(study), 1)
    ]
    return {"figures": shown, "most": max((len(best(study, panel)) for panel in panels(study)), default=0)}


def along(study: Study, drawn: Gallery, found: list[Caution]) -> Values | None:
    """The series: the best models over the values of one hyper-parameter."""
    if "series" not in drawn:
        return None
    panels_of: dict[str, list[str]] = {}
    for panel in panels(study):
        for text in beside(panel.label, found):
            panels_of.setdefault(text, []).append(panel.label)
    everywhere = len(panels(study))
    sentences = [text if len(labels) == everywhere else f"{', '.join(labels)}: {text}" for text, labels in panels_of.items()]
    source = study.published.source if study.published and shows_published(study) else ""
    return {"figure": figure(drawn, "series", f"Series over {study.series}", sentences, full=True), "source": source}


def curves(study: Study, drawn: Gallery, found: list[Caution]) -> Values:
    """Accuracy and ASR over the epochs. Beside the curves of the cleanings stand cautions about broken trials, not about choices."""
    broken = [caution for caution in found if not caution.where]
    return {
        "pretraining": figure(drawn, "pretrain_curves", "Pre-training curves", full=True),
        "dynamics": None if study.trials else _dynamics(study),
        "cleaning": [
            figure(drawn, f"curves_{number}", f"Cleaning: {panel.label}", beside(panel.label, broken))
            for number, panel in enumerate(panels(study), 1) if study.trials
        ],
    }  # fmt: skip


def _dynamics(study: Study) -> Table:
    """Accuracy / ASR after the first and some later epochs, the mean over seeds."""
    last = max((p.epoch for stage in study.pretrains for p in points_of(stage)), default=0)
    epochs = sorted({1, round(last / 4), round(last / 2), round(3 * last / 4), last} - {0})
    lines = []
    for panel in panels(study):
        cells = [panel.label, str(len(panel.pretrains))]
        for epoch in epochs:
            points = [p for stage in panel.pretrains for p in points_of(stage) if p.epoch == epoch]
            accuracy, asr = mean_interval([p.accuracy for p in points]), mean_interval([p.asr for p in points])
            cells.append(f"{accuracy[0]:.1f} / {percent(asr[0])}" if accuracy and asr else "–")
        lines.append(cells)
    return ("pre-training", "seeds", *(f"epoch {epoch}" for epoch in epochs)), lines


def before_first_step(study: Study) -> Table | None:
    """Loss and gradient norm of the cleaning losses on the cleaning set before any step; None if they were not logged."""
    labels = {stage.fingerprint: panel.label for panel in panels(study) for stage in panel.pretrains}
    stages: dict[str, StageResult] = {stage.fingerprint: stage for stage in study.pretrains}
    by_set: dict[tuple[str, ...], dict[str, Any]] = {}
    for trial in study.trials:
        for line in trial.metrics:
            metrics = line.get("metrics", {})
            if line.get("epoch") == 0 and any(name in metrics for name, _ in BEFORE):
                cleaning_set = tuple(str(value_at(trial, path)) for path in GIVEN)
                kept = by_set.setdefault((trial.pretrain, *cleaning_set), {})
                for name, _ in BEFORE:
                    kept.setdefault(name, metrics.get(name))
    sets = {key[1:] for key in by_set}
    lines = []
    order = list(dict.fromkeys(labels.values()))
    for key, metrics in sorted(by_set.items(), key=lambda item: order.index(labels[item[0][0]]) if item[0][0] in labels else len(order)):
        pretrain, cleaning_set = key[0], key[1:]
        seed = value_at(stages[pretrain], "pretrain.seed") if pretrain in stages else None
        numbers = [_short(metrics.get(name)) for name, _ in BEFORE]
        extra = [f"{cleaning_set[0]}, {cleaning_set[2]} poisons"] if len(sets) > 1 else []
        lines.append((labels.get(pretrain, pretrain[:8]), "–" if seed is None else str(seed), *extra, *numbers))
    heads = ("pre-training", "seed", *(["cleaning set"] if len(sets) > 1 else []), *(text for _, text in BEFORE))
    return (heads, lines) if lines else None


def also_measured(study: Study) -> Table | None:
    """What methods and evaluators say of the pre-trained models beside accuracy and ASR, the newest value of each metric, as means over
    seeds; None if there is nothing."""
    columns: dict[str, list[Values]] = {}
    for panel in panels(study):
        newest = [{name: value for point in points_of(stage) for name, value in point.metrics.items()} for stage in panel.pretrains]
        columns[panel.label] = [values for values in newest if values]
    names = dict.fromkeys(name for models in columns.values() for values in models for name in values)
    wanted = [name for name in names if name.partition("/")[0] not in ELSEWHERE and not name.endswith(PARTS)]
    lines = []
    for name in wanted:
        means = [mean_interval([values[name] for values in models if name in values]) for models in columns.values()]
        lines.append((name, *(_short(mean[0]) if mean else "–" for mean in means)))
    return (("metric", *columns), lines) if lines else None


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:#.3g}".rstrip(".")


def similarities(study: Study, drawn: Gallery) -> Values | None:
    """The similarities of training pairs; None if they were not analysed."""
    shown = [(title, figure(drawn, name, title, full=True)) for name, title in analysis.TITLES.items() if name in drawn]
    return {"figures": shown, "tables": analysis.tables(study)} if shown else None
