"""Write a report: an HTML page that needs no network, points.csv and the figures, each under another name first and then renamed."""

import json
import math
from pathlib import Path
from typing import Any

from datasets.storage import write_whole
from orchestrator.report.claims_table import by_claim
from orchestrator.report.figures import Gallery
from orchestrator.report.rendering import render
from orchestrator.report.series import series_csv
from orchestrator.report.shown import Values, along, also_measured, before_first_step, best_ways, curves, image, scatters, similarities
from orchestrator.report.tables import (
    dropped_table,
    headline,
    pareto_csv,
    points_csv,
    pretrain_names,
    stages_csv,
    stages_table,
    summary,
    trials_table,
)
from orchestrator.results.cautions import cautions
from orchestrator.results.claims import judged
from orchestrator.results.names import called, duration, flatten, percent
from orchestrator.results.once import unchanging
from orchestrator.results.outcome import Study
from orchestrator.results.points import attacks_of, panels, plans_cleaning, points_of

MAX_CONFIGS = 40
MAX_SAMPLES = 24
"""At most this many pairs of pictures are on the sample sheet."""

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

    Files are written aside and renamed, the page last, so that a reader never sees an incomplete one.
    """
    with unchanging():
        return _write(study, Path(out))


def _write(study: Study, out: Path) -> Path:
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
    """The whole page as text. All text from outside is escaped, and every picture is embedded."""
    all_cautions, drawn = cautions(study), drawn or Gallery(study)
    cleaning, verdicts = plans_cleaning(study), judged(study.claims, [study])
    return render(
        "report",
        title=study.name,
        doc=study.doc.strip(),
        headline=headline(study),
        attacks=[f"{name} → {target}" for name, target in attacks_of(study).items()],
        gates=_gates(study),
        cleaning=cleaning,
        scatters=scatters(study, drawn, all_cautions) if cleaning else None,
        summary=summary(study),
        cautions=[caution.told() for caution in all_cautions if not caution.gate],
        claims=by_claim(verdicts) if cleaning and any(verdict.verdict != "not tried" for verdict in verdicts) else [],
        best=best_ways(study, drawn, all_cautions) if study.trials else None,
        series=study.series,
        along=along(study, drawn, all_cautions),
        curves=curves(study, drawn, all_cautions),
        before=before_first_step(study),
        also=also_measured(study),
        similarities=similarities(study, drawn),
        samples=[_sample(sample) for sample in study.samples[:MAX_SAMPLES]],
        poison=_poison(study),
        dropped=dropped_table(study),
        trials=trials_table(study),
        run=_run(study),
    )


def _gates(study: Study) -> list[Values]:
    """The verdicts of the attack gate: one line for each panel that passed, and a box for each failure."""
    blocks: list[Values] = []
    for panel in panels(study):
        passed = [gate for stage in panel.pretrains if (gate := study.gates.get(stage.fingerprint)) and gate.get("passed")]
        if passed:
            numbers = [", ".join(percent(_number(gate.get(key))) for gate in passed) for key in ("asr", "accuracy")]
            wanted = percent(_number(passed[0].get("threshold")), 0)
            seeds = f" with {len(passed)} of {len(panel.pretrains)} seeds" if len(panel.pretrains) > 1 else ""
            text = f"{panel.label}: the attack took{seeds}. ASR {numbers[0]} (at least {wanted} wanted), accuracy {numbers[1]}."
            if passed[0].get("clean"):
                text = f"{panel.label}: nobody was poisoned{seeds}. Accuracy {numbers[1]}; of the trigger alone, ASR {numbers[0]}."
            blocks.append({"passed": True, "text": text})
        for stage in panel.pretrains:
            gate, name = study.gates.get(stage.fingerprint), f"{panel.label} ({stage.fingerprint[:6]})"
            if gate is None:
                blocks.append({"passed": False, "text": f"{name}: the attack gate was not evaluated.", "numbers": ""})
            elif not gate.get("passed"):
                accuracy, asr, threshold = (_number(gate.get(key)) for key in ("accuracy", "asr", "threshold"))
                measured = f"ASR {percent(asr)} (at least {percent(threshold, 0)} wanted), accuracy {percent(accuracy)}"
                text = f"{name}: the attack did not take."
                blocks.append({"passed": False, "text": text, "numbers": measured, "reasons": gate.get("reasons", [])})
    return blocks


def _sample(sample: Values) -> Values:
    """A clean picture beside its triggered one, and the caption before and after."""
    pictures = [image(sample[kind], f"{sample.get('key', '')}, {kind}") for kind in ("clean", "triggered") if sample.get(kind)]
    return {"pictures": pictures, **{when: sample.get(f"caption_{when}", "") for when in ("before", "after")}}


def _poison(study: Study) -> Values:
    facts = dict(study.poison)
    drops, seen = facts.pop("drops", None), facts.pop("visibility", None)
    if isinstance(drops, dict):
        drops = _facts({DROP_REASONS.get(str(reason), str(reason)): count for reason, count in drops.items() if reason})
    shares = {k: percent(v) if _number(v) is not None else v for k, v in flatten(seen)} if isinstance(seen, dict) else {}
    return {"facts": _facts(facts), "drops": drops, "visibility": _facts(shares)}


def _facts(values: Values) -> list[tuple[str, str]]:
    """(name, value) in words, each field of nested values by itself."""
    return [(key.replace("_", " "), _text(value)) for key, value in flatten(values)]


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ")
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def _run(study: Study) -> Values:
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
    names, lines = pretrain_names(study), []
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
    return {
        "facts": _facts(facts),
        "stages": (("pre-training", "epochs", "accuracy", "ASR", "time", "state", "fingerprint"), lines),
        "unpoisoned": bool(study.priors),
        "every": stages_table(study) if study.stages else None,
        "config": _json(study.config),
        "configs": [(called(stage), _json(stage.config)) for stage in stages[:MAX_CONFIGS]],
        "count": len(stages),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=str, ensure_ascii=False)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
