"""One HTML page that needs no network, points.csv and the figures, each written aside and renamed."""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from datasets.storage import write_whole
from orchestrator.report.claims_table import claims_html
from orchestrator.report.figures import Gallery
from orchestrator.report.series import series_csv
from orchestrator.report.shown import along, before_first_step, best_ways, curves, image, most_shown, scatters, similarities
from orchestrator.report.style import document
from orchestrator.report.tables import (
    headline,
    pareto_csv,
    plain_table,
    points_csv,
    pretrain_names,
    stages_csv,
    stages_html,
    summary_html,
    trials_html,
)
from orchestrator.study.cautions import cautions
from orchestrator.study.claims import judged
from orchestrator.study.names import called, duration, flatten, number_of, percent
from orchestrator.study.outcome import Study
from orchestrator.study.points import panels, plans_cleaning, points_of

MAX_CONFIGS = 40
MAX_SAMPLES = 24
"""Pairs of pictures on the sample sheet."""

DROP_REASONS = {
    "empty_caption": "caption is empty",
    "no_letters": "caption has no letters",
    "short_caption": "caption is too short",
    "no_caption": "no caption file",
    "caption_not_text": "caption is no text",
    "no_image": "no picture",
    "unknown_extension": "no file with a picture's extension",
    "undecodable": "picture does not decode",
    "too_large": "picture is too large when decoded",
    "duplicate_key": "key occurs twice",
}


def write_report(study: Study, out: Path) -> Path:
    """Write report.html, its tables as CSV and the figures into folder `out`; returns the page's path.

    Files are written aside and renamed, the page last, so that a reader never sees half of one.
    """
    out = Path(out)
    drawn = Gallery(study)
    drawn.write(out)
    files = {"points.csv": points_csv(study)}
    if study.trials:
        files["pareto.csv"] = pareto_csv(study)
    if study.stages:
        files["stages.csv"] = stages_csv(study)
    if study.series:
        files["series.csv"] = series_csv(study)
    for name, text in {**files, "report.html": html(study, drawn)}.items():
        write_whole(out / name, text.encode())
    return out / "report.html"


def html(study: Study, drawn: Gallery | None = None) -> str:
    """The whole page as text. Every word that comes from outside is escaped, every picture embedded."""
    found, drawn = cautions(study), drawn or Gallery(study)
    said = [caution.told() for caution in found if not caution.gate]
    cleaning = plans_cleaning(study)
    sections = [_head(study), _gates(study), _warnings(said)]
    if cleaning:
        sections += [
            _section("Accuracy against attack success", scatters(study, drawn, found)),
            _section("What one would keep", _selection(study)),
            _section("The claims of the study", _claims(study)),
            _section(_best_title(study), best_ways(study, drawn, found) if study.trials else ""),
        ]
    sections += [
        _section(f"Along {study.series}", along(study, drawn, found)),
        _section("Over the epochs", curves(study, drawn, found)),
        _section("Before the first step of cleaning", before_first_step(study)),
        _section("Similarities and embeddings", similarities(study, drawn)),
        _section("Clean and triggered pictures", _samples(study)),
        _section("The poison", _poison(study)),
        _section("All cleanings", (trials_html(study) if study.trials else "<p>None.</p>") if cleaning else ""),
        _section("How it was run", _run(study)),
        _section("What this page does not show", _caveats(cleaning)),
    ]
    return document(study.name, "".join(sections))


def _best_title(study: Study) -> str:
    return {1: "The one trial", 2: "The two trials"}.get(most_shown(study), "The best three")


def _claims(study: Study) -> str:
    """The table of the claims that its sweep asks for, where it can judge one of them."""
    found = judged(study.claims, [study])
    return claims_html(found) if any(verdict.verdict != "not tried" for verdict in found) else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _head(study: Study) -> str:
    doc = f'<p class="soft">{escape(study.doc.strip())}</p>' if study.doc.strip() else ""
    lead = "".join(f'<p class="lead">{escape(sentence)}</p>' for sentence in headline(study))
    return f"<header><h1>{escape(study.name)}</h1>{doc}{lead}</header>"


def _gates(study: Study) -> str:
    """The verdicts of the attack gate: what passed in one line a panel, what did not in a box of its own."""
    blocks = []
    for panel in panels(study):
        passed = [gate for stage in panel.pretrains if (gate := study.gates.get(stage.fingerprint)) and gate.get("passed")]
        if passed:
            numbers = [", ".join(percent(_number(gate.get(key))) for gate in passed) for key in ("asr", "accuracy")]
            wanted = percent(_number(passed[0].get("threshold")), 0)
            seeds = f" with {len(passed)} of {len(panel.pretrains)} seeds" if len(panel.pretrains) > 1 else ""
            text = f"{panel.label}: the attack took{seeds}. ASR {numbers[0]} (at least {wanted} wanted), accuracy {numbers[1]}."
            blocks.append(f'<div class="gate">{escape(text)}</div>')
        for stage in panel.pretrains:
            gate = study.gates.get(stage.fingerprint)
            name = escape(f"{panel.label} ({stage.fingerprint[:6]})")
            if gate is None:
                blocks.append(f'<div class="gate failed"><b>{name}: the attack gate was not evaluated.</b></div>')
            elif not gate.get("passed"):
                accuracy, asr, threshold = (_number(gate.get(key)) for key in ("accuracy", "asr", "threshold"))
                numbers_of = f"ASR {percent(asr)} (at least {percent(threshold, 0)} wanted), accuracy {percent(accuracy)}"
                reasons = "".join(f"<li>{escape(str(reason))}</li>" for reason in gate.get("reasons", []))
                blocks.append(
                    f'<div class="gate failed"><b>{name}: the attack did not take.</b><br>{escape(numbers_of)}. '
                    f"Cleaning this model says nothing about a defence.<ul>{reasons}</ul></div>"
                )
    return "".join(blocks)


def _warnings(said: list[str]) -> str:
    """All cautions under one line that opens, above the figures; beside each figure stand openly those that concern it."""
    if not said:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return f'<details class="warn"><summary>Before believing it: {number_of(len(said), "caution")}</summary><ul>{items}</ul></details>'


def _selection(study: Study) -> str:
    return summary_html(study) + (
        '<p class="soft">Brackets are 95 % intervals: over repetitions (Student) where there are several '
        "seeds, else over the evaluation's images (Wilson). <i>Oracle</i> choices look at the ASR, which a "
        "defender cannot measure; "
        "<i>blind</i> choices look at accuracy alone. Means are over the "
        "repetitions that have such a model, and their number is said. Changes of accuracy are against the model before "
        "cleaning, in points and relative to it.</p>"
    )


def _samples(study: Study) -> str:
    blocks = []
    for sample in study.samples[:MAX_SAMPLES]:
        key = str(sample.get("key", ""))
        pictures = "".join(image(sample[kind], f"{key}, {kind}") + " " for kind in ("clean", "triggered") if sample.get(kind))
        before, after = (escape(str(sample.get(k, ""))) for k in ("caption_before", "caption_after"))
        blocks.append(
            f'<div>{pictures}<p><span class="soft">before:</span> {before}</p><p><span class="soft">after:</span> {after}</p></div>'
        )
    return f'<div class="samples">{"".join(blocks)}</div>' if blocks else "<p>No victims to show.</p>"


def _poison(study: Study) -> str:
    poison = dict(study.poison)
    drops, seen = poison.pop("drops", None), poison.pop("visibility", None)
    parts = [_facts(poison)]
    if isinstance(drops, dict):
        rows = {DROP_REASONS.get(str(reason), str(reason)): count for reason, count in drops.items() if reason}
        parts.append("<h3>Samples left out, by reason</h3>" + (_facts(rows) if rows else "<p>None was left out.</p>"))
    if isinstance(seen, dict) and seen:
        shares = {str(k).replace("_", " "): percent(float(v)) if _number(v) is not None else v for k, v in flatten(seen)}
        parts.append(
            "<h3>Visibility of the trigger</h3>"
            '<p class="soft">Share of the pixels changed by the trigger that survive each real transform.</p>' + _facts(shares)
        )
    return "".join(parts)


def _facts(values: dict[str, Any]) -> str:
    items = []
    for key, value in flatten(values):
        text = "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
        if isinstance(value, int) and not isinstance(value, bool):
            text = f"{value:,}".replace(",", " ")
        items.append(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(text))}</dd>")
    return f"<dl>{''.join(items)}</dl>" if items else ""


def _run(study: Study) -> str:
    stages = [*study.priors, *study.pretrains, *study.trials]
    facts = {
        "study fingerprint": study.fingerprint,
        "data": study.data_hash or None,
        "commit": study.commit or None,
        "pre-training": duration(sum(stage.seconds for stage in study.pretrains)),
    }
    if study.priors:
        facts["training without the poison"] = duration(sum(stage.seconds for stage in study.priors))
    if study.trials:
        facts["cleaning, all trials added up"] = duration(sum(trial.seconds for trial in study.trials))
    names = pretrain_names(study)
    heads = ("pre-training", "epochs", "accuracy", "ASR", "time", "state", "fingerprint")
    lines = []
    for stage in [*study.priors, *study.pretrains]:
        points = points_of(stage)
        last = points[-1] if points else None
        lines.append(
            (
                names.get(stage.fingerprint) or f"{stage.role}: {stage.name}",
                str(last.epoch if last else 0),
                percent(last.accuracy if last else None),
                percent(last.asr if last else None) + (" (floor)" if stage in study.priors else ""),
                duration(stage.seconds),
                stage.status,
                stage.fingerprint[:12],
            )
        )
    said = "A prior or a labeller is trained on the same pairs without the poison: its ASR is the floor, what the trigger does by itself."
    first = f", the first {MAX_CONFIGS} of {len(stages)}" if len(stages) > MAX_CONFIGS else ""
    single = "".join(_json(called(stage), stage.config) for stage in stages[:MAX_CONFIGS])
    return (
        _facts(facts)
        + plain_table(heads, lines)
        + (f'<p class="soft">{said}</p>' if study.priors else "")
        + stages_html(study)
        + _json("Configuration of the study", study.config)
        + f"<details><summary>Configuration of each stage{first}</summary>{single}</details>"
    )


def _json(title: str, value: Any) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _caveats(cleaning: bool) -> str:
    said = [
        "The attack success rate is measured with the one trigger and the one target of this study; another trigger may survive.",
        "Accuracy and ASR are zero-shot, on this evaluation set; nothing here speaks for other data or for other uses of the model.",
    ]
    if cleaning:
        said += [
            "Oracle choices are made on the images that they are reported on, among many trials and epochs: they are "
            "optimistic, and their intervals do not account for the choice.",
            "A low ASR means that the trigger no longer works as given, not that the model holds no trace of it.",
        ]
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
