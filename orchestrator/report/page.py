"""One HTML page that needs no network, points.csv and the figures, each written aside and renamed."""

import base64
import json
import math
from html import escape
from pathlib import Path
from typing import Any

from orchestrator.report.figures import png, pretrain_curves, scatter, trial_curves, write_figures
from orchestrator.report.names import called, duration, flatten, objective_of, percent
from orchestrator.report.selection import panels, points_of, warnings
from orchestrator.report.tables import headline, plain_table, points_csv, summary_html, trials_html
from orchestrator.study import Study

MAX_SAMPLES = 24
"""Pairs of pictures on the sample sheet."""

DROP_REASONS = {
    "empty_caption": "caption is empty",
    "no_letters": "caption has no letters",
    "short_caption": "caption is too short",
    "no_caption": "no caption file",
    "no_image": "no picture",
    "undecodable": "picture does not decode",
    "duplicate_key": "key occurs twice",
}

STYLE = """
:root { --ink: #1d2327; --soft: #5b6670; --line: #dfe3e6; --red: #b00020; --green: #1b6e3c; }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 1160px }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem }
h3 { font-size: 1.02rem; margin: 1.3rem 0 .4rem }
p, li { max-width: 52rem }
.soft, figcaption, small { color: var(--soft) }
small { font-size: .82em; white-space: nowrap; font-weight: normal }
.lead { font-size: 1.08rem }
.gate { border-left: 5px solid var(--green); background: #eef6f0; padding: .5rem .9rem;
  margin: .5rem 0; max-width: 54rem }
.gate.failed { border-color: var(--red); background: #fdecee }
.gate.failed b { color: var(--red); font-size: 1.1rem }
.gate ul { margin: .3rem 0 .2rem; padding-left: 1.2rem }
.warn { border-left: 5px solid #d08700; background: #fff7e6; padding: .5rem .9rem; max-width: 54rem }
.warn ul { margin: .2rem 0; padding-left: 1.2rem }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: .6rem 1.2rem }
figure { margin: .4rem 0 } figure img { width: 100%; max-width: 620px; height: auto; display: block }
figure.full img { max-width: 100% }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
td b { font-weight: 600; white-space: nowrap } thead th { color: var(--soft); font-weight: 500;
  white-space: nowrap }
tr.rule th { padding-top: .9rem; font-weight: 600 } tr.start td { background: #fbeeee }
.change { white-space: nowrap }
.setting { min-width: 13rem } .none { color: var(--soft) }
.tag { font-size: .75rem; font-weight: 500; color: var(--soft); border: 1px solid var(--line);
  border-radius: 3px; padding: 0 .35rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem }
.samples div { font-size: .85rem } .samples img { width: 48%; max-width: 160px; image-rendering: pixelated }
.samples p { margin: .2rem 0; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1rem;
  font-size: .92rem; margin: .4rem 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
pre { background: #f5f6f7; padding: .8rem; overflow-x: auto; font-size: .8rem; line-height: 1.4 }
summary { cursor: pointer }
@media (max-width: 560px) { dl { grid-template-columns: 1fr } dd { margin-bottom: .35rem } }
"""


def write_report(study: Study, out: Path) -> Path:
    """Write report.html, points.csv and the figures into folder `out`; returns the page's path.

    Files are written aside and renamed, the page last, so that a reader never sees half of one.
    """
    out = Path(out)
    write_figures(study, out)
    for name, text in (("points.csv", points_csv(study)), ("report.html", html(study))):
        aside = out / f".{name}.tmp"
        aside.write_text(text, encoding="utf-8", newline="")
        aside.replace(out / name)
    return out / "report.html"


def html(study: Study) -> str:
    """The whole page as text. Every word that comes from outside is escaped, every picture embedded."""
    said = warnings(study, gates=False)
    sections = [
        _head(study),
        _gates(study),
        _warnings(said),
        _section("Accuracy against attack success", _scatter(study)),
        _section("What one would keep", _selection(study)),
        _section("Over the epochs", _curves(study)),
        _section("Clean and triggered pictures", _samples(study)),
        _section("The poison", _poison(study)),
        _section("All cleanings", trials_html(study) if study.trials else "<p>None.</p>"),
        _section("How it was run", _run(study)),
        _section("What this page does not show", _caveats()),
    ]
    title = escape(study.name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(sections).replace(' %', '&nbsp;%')}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _head(study: Study) -> str:
    doc = f'<p class="soft">{escape(study.doc.strip())}</p>' if study.doc.strip() else ""
    lead = "".join(f'<p class="lead">{escape(sentence)}</p>' for sentence in headline(study))
    return f"<header><h1>{escape(study.name)}</h1>{doc}{lead}</header>"


def _gates(study: Study) -> str:
    blocks = []
    for stage in study.pretrains:
        name = escape(called(stage))
        gate = study.gates.get(stage.fingerprint)
        if gate is None:
            blocks.append(f'<div class="gate failed"><b>{name}: the attack gate was not evaluated.</b></div>')
            continue
        accuracy, asr, threshold = (_number(gate.get(key)) for key in ("accuracy", "asr", "threshold"))
        numbers = f"ASR {percent(asr)} (at least {percent(threshold, 0)} wanted), accuracy {percent(accuracy)}"
        if gate.get("passed"):
            blocks.append(f'<div class="gate">{name}: the attack took. {escape(numbers)}.</div>')
        else:
            reasons = "".join(f"<li>{escape(str(reason))}</li>" for reason in gate.get("reasons", []))
            blocks.append(
                f'<div class="gate failed"><b>{name}: the attack did not take.</b><br>{escape(numbers)}. '
                f"Cleaning this model says nothing about a defence.<ul>{reasons}</ul></div>"
            )
    return "".join(blocks)


def _warnings(said: list[str]) -> str:
    if not said:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return f'<section><h2>Before believing it</h2><div class="warn"><ul>{items}</ul></div></section>'


def _image(content: bytes, alt: str) -> str:
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def _scatter(study: Study) -> str:
    parts = [
        f"<figure>{_image(png(scatter(study, panel)), f'Accuracy against ASR: {panel.label}')}</figure>"
        for panel in panels(study)
    ]
    return (
        f'<div class="panels">{"".join(parts)}</div>'
        '<p class="soft">A dot is one trial after one epoch of cleaning; thin lines join its epochs. '
        "Good is top left. The accuracy axis covers the range in use, the same in all panels. Numbers: points.csv.</p>"
    )


def _selection(study: Study) -> str:
    return summary_html(study) + (
        '<p class="soft">Brackets are 95 % intervals: over repetitions (Student) where there are several '
        "seeds, else over the evaluation's images (Wilson). <i>Oracle</i> choices look at the ASR, which a "
        "defender cannot measure; the "
        "<i>blind</i> choice looks at accuracy alone. Changes of accuracy are against the model before "
        "cleaning, in points and relative to it.</p>"
    )


def _curves(study: Study) -> str:
    parts = [f"<figure>{_image(png(trial_curves(study, p)), f'Cleaning: {p.label}')}</figure>" for p in panels(study)]
    pretraining = _image(png(pretrain_curves(study)), "Pre-training curves")
    return (
        f'<h3>Pre-training</h3><figure class="full">{pretraining}</figure>'
        f'<h3>Cleaning</h3><div class="panels">{"".join(parts)}</div>'
    )


def _samples(study: Study) -> str:
    blocks = []
    for sample in study.samples[:MAX_SAMPLES]:
        key = str(sample.get("key", ""))
        pictures = "".join(_image(sample[kind], f"{key}, {kind}") + " " for kind in ("clean", "triggered") if sample.get(kind))
        before, after = (escape(str(sample.get(k, ""))) for k in ("caption_before", "caption_after"))
        blocks.append(
            f'<div>{pictures}<p><span class="soft">before:</span> {before}</p>'
            f'<p><span class="soft">after:</span> {after}</p></div>'
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
    stages = [*study.pretrains, *study.trials]
    facts = {
        "study fingerprint": study.fingerprint,
        "data": study.data_hash or None,
        "commit": study.commit or None,
        "pre-training": duration(sum(stage.seconds for stage in study.pretrains)),
        "cleaning, all trials added up": duration(sum(trial.seconds for trial in study.trials)),
    }
    heads = ("name", "objective", "epochs", "time", "state", "fingerprint")
    lines = [
        (
            stage.name,
            objective_of(stage),
            str(max((p.epoch for p in points_of(stage)), default=0)),
            duration(stage.seconds),
            stage.status,
            stage.fingerprint[:12],
        )
        for stage in study.pretrains
    ]
    return (
        _facts(facts)
        + plain_table(heads, lines)
        + _json("Configuration of the study", study.config)
        + "".join(_json(f"Configuration of {called(s)}", s.config) for s in stages[:40])
    )


def _json(title: str, value: Any) -> str:
    text = json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _caveats() -> str:
    said = (
        "The attack success rate is measured with the one trigger and the one target of this study; another trigger may survive.",
        "Oracle choices are made on the images that they are reported on, among many trials and epochs: they are "
        "optimistic, and their intervals do not account for the choice.",
        "Accuracy and ASR are zero-shot, on this evaluation set; nothing here speaks for other data or for other "
        "uses of the model.",
        "A low ASR means that the trigger no longer works as given, not that the model holds no trace of it.",
    )
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
