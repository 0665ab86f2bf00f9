"""The page's sections with figures: each with what a reader must know beside it."""

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from orchestrator.report import analysis
from orchestrator.report.drawing import same_scale
from orchestrator.report.figures import Gallery
from orchestrator.report.scatter import best, few_trials
from orchestrator.report.series import shows_published
from orchestrator.report.tables import plain_table
from orchestrator.study.cautions import Caution, beside
from orchestrator.study.names import percent, value_at
from orchestrator.study.outcome import StageResult, Study
from orchestrator.study.points import GIVEN, mean_interval, panels, points_of, published_starts

BEFORE = (
    ("before/mmcl", "MMCL loss"),
    ("before/mmcl_grad_norm", "its gradient norm"),
    ("before/inmodal", "SSL loss"),
    ("before/inmodal_grad_norm", "its gradient norm"),
)
"""Metrics of a cleaning's epoch 0, taken on the cleaning set before the first step."""


def image(content: bytes, alt: str) -> str:
    """A picture that is part of the page."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def figure(picture: bytes, alt: str, said: Sequence[str] = (), full: bool = False) -> str:
    """A figure with its cautions beside it."""
    notes = "".join(f"<p>{escape(text)}</p>" for text in said)
    beside_it = f'<figcaption class="beside">{notes}</figcaption>' if notes else ""
    opening = '<figure class="full">' if full else "<figure>"
    return f"{opening}{image(picture, alt)}{beside_it}</figure>"


def scatters(study: Study, drawn: Gallery, found: list[Caution]) -> str:
    """Accuracy against ASR, a panel for each pre-training, its crowded corner, and the published points."""
    parts = []
    for number, panel in enumerate(panels(study), 1):
        if f"scatter_{number}" in drawn:
            alt = f"Accuracy against ASR: {panel.label}"
            parts.append(figure(drawn.png(f"scatter_{number}"), alt, beside(panel.label, found)))
        if f"enlarged_{number}" in drawn:
            parts.append(figure(drawn.png(f"enlarged_{number}"), f"Enlarged: {panel.label}"))
    if not parts:
        return "<p>No cleaning was measured.</p>"
    said = (
        "A mark is one trial after one epoch of cleaning"
        + ("; thin lines join its epochs" if any(few_trials(study, panel) for panel in panels(study)) else "")
        + ". Steps are Pareto fronts, one for each seed: "
        "no point beats those on it (pareto.csv). Good is top left. The accuracy axis covers the range in use, the same in all panels; "
        "a grey box is shown enlarged. Numbers: points.csv."
    )
    body = f'<div class="panels">{"".join(parts)}</div><p class="soft">{said}</p>'
    if study.published:
        if "published" in drawn:
            others = figure(drawn.png("published"), "Published points", full=True)
            body += f"<h3>Published points, on their own scale</h3>{others}"
        if "published" in drawn or same_scale(study):
            source = escape(f"{study.published.source}. {_kept_epochs(study)}")
            body += (
                f'<p class="soft">Hollow marks are published results of another experiment, never this study\'s own: {source}'
                "Of each published series those points are drawn that no other of it beats.</p>"
            )
    return body


def _kept_epochs(study: Study) -> str:
    """Which epoch of their pre-training the published models are of, where that is known; ends with a space."""
    found = {(start.name, start.objective): start.kept for panel in panels(study) for start in published_starts(study, panel)}
    told = "; ".join(f"{name} with {objective}: {kept}" for (name, objective), kept in found.items() if kept)
    return f"They start from a chosen epoch of a pre-training ({told}); here a cleaning always starts from the last one. " if told else ""


def best_ways(study: Study, drawn: Gallery, found: list[Caution]) -> str:
    """The three best trials of each panel."""
    parts = [
        figure(drawn.png(f"best_three_{number}"), f"Best trials: {panel.label}", beside(panel.label, found))
        for number, panel in enumerate(panels(study), 1)
    ]
    chosen = (
        "The three trials whose most accurate model with ASR ≤ 5 % (circled) is the most accurate: an oracle's choice."
        if most_shown(study) == 3 else "Every trial, with its most accurate model at ASR ≤ 5 % circled, where it has one."
    )  # fmt: skip
    return (
        f'<div class="panels">{"".join(parts)}</div><p class="soft">{chosen} Numbers are epochs of cleaning; lines join the epochs, the '
        "darkest is the best trial's.</p>"
    )


def most_shown(study: Study) -> int:
    """Trials in the fullest panel of `best_ways`: three, or fewer where fewer were measured."""
    return max((len(best(study, panel)) for panel in panels(study)), default=0)


def along(study: Study, drawn: Gallery, found: list[Caution]) -> str:
    """The series: the best models over the values of one hyper-parameter."""
    if "series" not in drawn:
        return ""
    told: dict[str, list[str]] = {}
    for panel in panels(study):
        for text in beside(panel.label, found):
            told.setdefault(text, []).append(panel.label)
    everywhere = len(panels(study))
    said = [text if len(labels) == everywhere else f"{', '.join(labels)}: {text}" for text, labels in told.items()]
    note = (
        f'<p class="soft">Each point is an oracle\'s choice among the trials with this value of {escape(study.series)}; bars are 95 % '
        "intervals over seeds (Student). <i>none</i>: no repetition has such a model, and the line has a gap; 2/3: two of three "
        "repetitions have one, and the mean is over those. Numbers: series.csv.</p>"
    )
    if study.published and shows_published(study):
        note += f'<p class="soft">Hollow marks: {escape(study.published.source)}, where it has one for a value.</p>'
    return figure(drawn.png("series"), f"Series over {study.series}", said, full=True) + note


def curves(study: Study, drawn: Gallery, found: list[Caution]) -> str:
    """Accuracy and ASR over the epochs."""
    said = "" if study.trials else _dynamics(study)
    body = f"<h3>Pre-training</h3>{figure(drawn.png('pretrain_curves'), 'Pre-training curves', full=True)}{said}"
    if study.trials:
        parts = [
            figure(drawn.png(f"curves_{number}"), f"Cleaning: {panel.label}", _broken(panel.label, found))
            for number, panel in enumerate(panels(study), 1)
        ]
        body += f'<h3>Cleaning</h3><div class="panels">{"".join(parts)}</div>'
    return body


def _broken(panel: str, found: list[Caution]) -> list[str]:
    """Beside the curves: what broke, not what was chosen."""
    return beside(panel, [caution for caution in found if not caution.where])


def _dynamics(study: Study) -> str:
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
        lines.append(tuple(cells))
    heads = ("pre-training", "seeds", *(f"epoch {epoch}" for epoch in epochs))
    return plain_table(heads, lines) + '<p class="soft">Accuracy / ASR, means over seeds.</p>'


def before_first_step(study: Study) -> str:
    """Loss and gradient norm of the cleaning losses on the cleaning set before any step; empty where none was logged."""
    labels = {stage.fingerprint: panel.label for panel in panels(study) for stage in panel.pretrains}
    stages: dict[str, StageResult] = {stage.fingerprint: stage for stage in study.pretrains}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for trial in study.trials:
        for line in trial.metrics:
            metrics = line.get("metrics", {})
            if line.get("epoch") == 0 and any(name in metrics for name, _ in BEFORE):
                given = tuple(str(value_at(trial, path)) for path in GIVEN)
                kept = found.setdefault((trial.pretrain, *given), {})
                for name, _ in BEFORE:
                    kept.setdefault(name, metrics.get(name))
    sets = {key[1:] for key in found}
    lines = []
    order = list(dict.fromkeys(labels.values()))
    for key, metrics in sorted(found.items(), key=lambda item: order.index(labels[item[0][0]]) if item[0][0] in labels else len(order)):
        pretrain, given = key[0], key[1:]
        seed = value_at(stages[pretrain], "pretrain.seed") if pretrain in stages else None
        numbers = [_short(metrics.get(name)) for name, _ in BEFORE]
        extra = [f"{given[0]}, {given[2]} poisons"] if len(sets) > 1 else []
        lines.append((labels.get(pretrain, pretrain[:8]), "–" if seed is None else str(seed), *extra, *numbers))
    if not lines:
        return ""
    heads = ("pre-training", "seed", *(["cleaning set"] if len(sets) > 1 else []), *(text for _, text in BEFORE))
    return plain_table(heads, lines) + (
        '<p class="soft">Of the uncleaned model on the cleaning set. Where the SSL loss is already small, its gradient is too, and the '
        "same learning rate moves the model less: compare pre-trainings over the whole grid, not at one rate.</p>"
    )


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{value:#.3g}".rstrip(".")


def similarities(study: Study, drawn: Gallery) -> str:
    """What the models make of their training pairs; nothing where that was not analysed."""
    parts = [
        f"<h3>{escape(title)}</h3>{figure(drawn.png(name), title, full=True)}" for name, title in analysis.TITLES.items() if name in drawn
    ]
    if not parts:
        return ""
    said = (
        "Mean cosines, on a sample of the training pairs. AUROC: the chance that a poisoned pair is more similar than a clean one; far "
        "from 0.5, leaving out the most (or the least) similar pairs finds the poisons. Triggered pictures that lie with those of the "
        "target, away from their originals, are the backdoor. t-SNE keeps neighbours together; its distances and sizes mean little."
    )
    tables = "<br>".join(plain_table(heads, rows) for heads, rows in analysis.tables(study))
    return f'{"".join(parts)}<h3>In numbers</h3>{tables}<p class="soft">{said}</p>'
