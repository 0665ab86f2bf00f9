"""The study's numbers as rows: points.csv, the tables of the page as values, the summary as text for a terminal."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.failures import SAID
from orchestrator.results.cautions import warnings
from orchestrator.results.kinds import names
from orchestrator.results.names import (
    duration,
    hyperparameters,
    number_of,
    percent,
    settings_among,
    signed,
    value_at,
)
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import (
    ACCURACY,
    ASR,
    Point,
    asr_of,
    attacks_of,
    checkpoint_of,
    interval_of,
    methods_of,
    panels,
    plans_cleaning,
    points_of,
    role_of,
    starts_of,
)
from orchestrator.results.selection import RULES, Row, fronts, table

WIDTH = 100
"""Columns of the text for a terminal."""
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A table's heads and rows, as text."""


def points_csv(study: Study) -> str:
    """One line for each stage and epoch: percent with 95 % Wilson intervals, hyper-parameters by path, then every metric by its name.

    `role` says whether a point is from before a cleaning, from training, or a result; rules choose only among results. `checkpoint` is the
    folder of its weights, relative to the store; empty if they were not kept.
    """
    paths = sorted({path for trial in study.trials for path in hyperparameters(trial)})
    fixed = ["study", "stage", "name", "fingerprint", "pretrain", "objective", "method", "status"]
    measured = [
        "epoch",
        "role",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "n",
        "asr",
        "asr_low",
        "asr_high",
        "asr_n",
        "seconds",
    ]
    objectives, methods = names(study.pretrains), methods_of(study)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    stages: list[StageResult] = [*study.pretrains, *study.trials]
    others = sorted({name for stage in stages for point in points_of(stage) for name in point.metrics})
    writer.writerow([*fixed, *paths, *measured, *others, "checkpoint"])
    for stage in stages:
        seconds = {line["epoch"]: line.get("seconds") for line in stage.metrics}
        trial = stage if isinstance(stage, TrialResult) else None
        source = trial.pretrain if trial else stage.fingerprint
        tried = hyperparameters(trial) if trial else {}
        for point in points_of(stage):
            writer.writerow(
                [
                    study.name,
                    stage.stage,
                    stage.name,
                    stage.fingerprint,
                    source,
                    objectives.get(source, ""),
                    methods[trial.fingerprint] if trial else "",
                    stage.status,
                    *(_cell(tried.get(path)) for path in paths),
                    point.epoch,
                    role_of(stage, point.epoch),
                    *_measured(point, ACCURACY),
                    *_measured(point, ASR),
                    _cell(seconds.get(point.epoch)),
                    *(_cell(point.metrics.get(name)) for name in others),
                    checkpoint_of(study, point),
                ]
            )
    return buffer.getvalue()


NOT_KEPT = "not kept; --keep all keeps every epoch"


def pareto_csv(study: Study) -> str:
    """One line for each point of a Pareto front, from the lowest ASR up: one front for each pre-training and method.

    `checkpoint` says where its weights are in the store, or how to keep them.
    """
    trials = {trial.fingerprint: trial for trial in study.trials}
    paths = sorted({path for trial in study.trials for path in hyperparameters(trial)})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["study", "pretraining", "pretrain", "method", "fingerprint", *paths, "epoch", "asr", "accuracy", "checkpoint"])
    for panel, stage, method, points in fronts(study):
        for point in points:
            tried = hyperparameters(trials[point.stage.fingerprint])
            row = [study.name, panel.label, stage.fingerprint, method, point.stage.fingerprint, *(_cell(tried.get(p)) for p in paths)]
            writer.writerow([*row, point.epoch, _cell(point.asr), _cell(point.accuracy), checkpoint_of(study, point) or NOT_KEPT])
    return buffer.getvalue()


def _measured(point: Point, metric: str) -> list[Any]:
    value = point.metrics[metric]
    n = point.metrics.get(f"{metric.split('/')[0]}/n")
    return [_cell(value), *map(_cell, point.interval(metric)), "" if n is None else int(n)]


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else value  # exact values, so that a row can be repeated


def summary(study: Study) -> dict[str, Any]:
    """Values of the template `summary`: the choices, one block for each pre-training. Numbers are (value, interval) as text."""
    rows, blocks, attacks = table(study), [], attacks_of(study)
    for panel in panels(study):
        starts, mine = starts_of(study, panel), [row for row in rows if row.panel == panel]
        blocks.append(
            {
                "label": panel.label,
                "start": [_told(interval_of([s.metrics[metric] for s in starts], starts, metric)) for metric in (ACCURACY, ASR) if starts],
                "seeds": number_of(len(starts), "seed") if len(starts) > 1 else "",
                "rules": [
                    {"text": rule.text, "oracle": rule.oracle, "rows": [_chosen(row) for row in mine if row.rule.key == rule.key]}
                    for rule in RULES if any(row.rule == rule for row in mine)
                ],
                "attacks": _attacks_table(starts, mine, attacks) if attacks and starts else None,
            }
        )  # fmt: skip
    return {"panels": blocks, "unkept": unkept(rows)}


def _attacks_table(starts: Sequence[Point], rows: Sequence[Row], attacks: dict[str, str]) -> Table:
    """The ASR of each attack by itself: of the uncleaned models, and of the model that each rule picks for each method."""
    groups = [("before cleaning", "", starts), *((row.method, row.rule.text, row.points) for row in rows if row.points)]
    lines = [(method, rule, *(" ".join(_told(asr_of(points, name))).strip() for name in attacks)) for method, rule, points in groups]
    return ("cleaning", "chosen for", *(f"ASR of {name} → {target}" for name, target in attacks.items())), lines


def _chosen(row: Row) -> dict[str, Any]:
    """The rule's choice for one method; `none` says why there is no model."""
    several = len(row.choices) > 1
    if not row.reached:
        times = f" in any of {len(row.choices)} repetitions" if several else ""
        return {"method": row.method, "none": f"none reached it{times}" if row.choices else "not measured yet"}
    lost, relative = row.over(lambda c: c.drop), row.over(lambda c: c.drop_relative)
    assert lost and relative
    note = f"reached in {len(row.reached)} of {len(row.choices)} repetitions: " if several else ""
    return {
        "method": row.method,
        "none": "",
        "accuracy": _told(row.over(lambda c: c.accuracy, ACCURACY)),
        "asr": _told(row.over(lambda c: c.asr, ASR)),
        "change": signed(-lost[0]),
        "relative": signed(-relative[0], "%"),
        "chosen": note + "; ".join(f"{c.settings or 'as given'}, epoch {c.point.epoch}" for c in row.reached if c.point),
        "kept": "; ".join(c.checkpoint or "not kept" for c in row.reached),
    }


def _told(found: tuple[float, float, float] | None) -> tuple[str, str]:
    """`98.9 %` and `[98.1, 99.4]`, clipped to 0 … 100; the interval is empty if it is unknown, and both are if there is no value."""
    if not found:
        return "–", ""
    mean, low, high = found
    return percent(mean), f"[{max(low, 0):.1f}, {min(high, 100):.1f}]" if math.isfinite(low) else ""


def unkept(rows: Sequence[Row]) -> str:
    """What to do if the weights of a chosen model were not kept; empty if all were."""
    gone = [choice.trial.folder for row in rows for choice in row.reached if choice.trial and not choice.checkpoint]
    if not gone:
        return ""
    folder = f"{gone[0].parent.name}/{gone[0].name}"
    return (
        f"The weights of some of these models were not kept, by --keep last, an older version, or by hand. To have them, delete the "
        f"folders of their cleanings in the store, such as {folder}, and run the same command with --keep chosen (or --keep all)."
    )


def headline(study: Study) -> list[str]:
    """One sentence for each pre-training with its main numbers."""
    rows = {(row.panel.label, row.method, row.rule.key): row for row in table(study)}
    sentences, attacks = [], attacks_of(study)
    for panel in panels(study):
        starts = starts_of(study, panel)
        if not starts:
            sentences.append(f"{panel.label}: not measured yet.")
            continue
        accuracy = sum(s.accuracy for s in starts) / len(starts)
        asr = sum(s.asr for s in starts) / len(starts)
        averaged = f" (means of {len(starts)} seeds)" if len(starts) > 1 else ""
        shown = percent(asr) + _each(starts, attacks)
        text = f"{panel.label} pre-training: accuracy {percent(accuracy)}, ASR {shown} before cleaning"
        text += f"{averaged}; "
        candidates = [r for (label, _, key), r in rows.items() if label == panel.label and key == "acc_at_asr_le_5"]
        full = [row for row in candidates if row.reached and len(row.reached) == len(row.choices)]
        gates = [study.gates.get(stage.fingerprint) for stage in panel.pretrains]
        took = not any(gate is not None and not gate.get("passed") for gate in gates)
        if not plans_cleaning(study):
            epochs = max(s.epoch for s in starts)
            text = f"{panel.label} pre-training: accuracy {percent(accuracy)}, ASR {shown} after {epochs} epochs{averaged}"
            text += "." if took else "; the attack did not take."
        elif not took:
            text += "the attack did not take, so cleaning shows nothing here."
        elif not candidates:
            text += "no cleaning was measured."
        elif not full:
            low = min((row for row in candidates), key=lambda row: -len(row.reached))
            some = f" in every repetition (best: {len(low.reached)} of {len(low.choices)})" if low.reached else ""
            text += f"no cleaning method reached ASR ≤ 5 %{some}."
        else:
            best = max(full, key=lambda row: (row.over(lambda c: c.accuracy) or (0,))[0])
            a, b, lost = best.over(lambda c: c.accuracy), best.over(lambda c: c.asr), best.over(lambda c: c.drop)
            assert a and b and lost
            text += (
                f"the most accurate cleaned model with ASR ≤ 5 % ({best.method}) keeps "
                f"{percent(a[0])} accuracy at {percent(b[0])} ASR{_each(best.points, attacks)}, {_loss(lost[0])}."
            )
        sentences.append(text)
    return sentences or ["Nothing has been measured yet."]


def _each(points: Sequence[Point], attacks: dict[str, str]) -> str:
    """` (corner 98.0 %, haze 41.2 %)`: the ASR of each of several attacks; nothing where there is one."""
    texts = [f"{name} {percent(asr[0])}" for name in attacks if (asr := asr_of(points, name))]
    return f" ({', '.join(texts)})" if texts else ""


def _loss(points: float) -> str:
    if abs(points) < 0.05:
        return "with no accuracy lost"
    return f"{abs(points):.1f} points {'lost' if points > 0 else 'gained'}"


def trials_table(study: Study) -> Table:
    """Every trial with its settings, last epoch, time and state."""
    sources, methods = pretrain_names(study), methods_of(study)
    lines: list[tuple[str, ...]] = []
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in study.trials:
        groups.setdefault((trial.pretrain, methods[trial.fingerprint]), []).append(trial)
    told = {group: settings_among(trials) for group, trials in groups.items()}
    for trial in study.trials:
        points = points_of(trial)
        last = points[-1] if points and points[-1].epoch > 0 else None
        status = SAID.get(trial.failure, trial.status)
        state = status if not trial.error else f"{status}: {trial.error.strip().splitlines()[0]}"
        cells = (
            methods[trial.fingerprint],
            sources.get(trial.pretrain, trial.pretrain[:8]),
            told[trial.pretrain, methods[trial.fingerprint]](trial) or "as given",
            str(last.epoch) if last else "–",
            percent(last.accuracy if last else None),
            percent(last.asr if last else None),
            duration(trial.seconds),
            state,
            trial.fingerprint[:12],
        )
        lines.append(cells)
    return ("cleaning", "pre-training", "setting", "epochs", "accuracy", "ASR", "time", "state", "fingerprint"), lines


STAGE_HEADS = ("stage", "name", "state", "seconds", "fingerprint")


def stages_csv(study: Study) -> str:
    """One line for each stage of the sweep."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(STAGE_HEADS)
    writer.writerows((s.kind, s.name, s.state, round(s.seconds, 3), s.fingerprint) for s in study.stages)
    return out.getvalue()


def stages_table(study: Study) -> Table:
    """Every stage of the sweep."""
    rows = [(s.kind, s.name, s.state, duration(s.seconds) if s.seconds else "–", s.fingerprint[:12]) for s in study.stages]
    return ("stage", "name", "state", "time", "fingerprint"), rows


def dropped_table(study: Study) -> Table:
    """The pairs that were dropped before a training."""
    rows = [
        (one["of"], one["name"], f"{one['dropped']} of {one['pairs']}", f"{one['victims_caught']} of {one['victims']}",
         str(one["clean_pairs_lost"]), str(one["victims"] - one["victims_caught"]), one["fingerprint"][:12])
        for one in study.dropped
    ]  # fmt: skip
    return ("pairs of", "kept", "pairs dropped", "victims caught", "clean pairs lost", "victims left", "fingerprint"), rows


def pretrain_names(study: Study) -> dict[str, str]:
    """Fingerprint of a pre-training → its panel's name, with the seed if the panel has several: "MMCL, seed 1"."""
    names = {}
    for panel in panels(study):
        for stage in panel.pretrains:
            seed = value_at(stage, "pretrain.seed") if len(panel.pretrains) > 1 else None
            names[stage.fingerprint] = panel.label if seed is None else f"{panel.label}, seed {seed}"
    return names


def summary_text(study: Study, report: Path | str | None = None, ui: str = "cleansweep ui") -> str:
    """The result for a terminal, at most 100 columns wide; `ui` is the command that opens MLflow."""
    out = [f"{study.name}: {number_of(len(study.pretrains), 'pre-training')}, {_count(study)}", ""]
    rows = table(study)
    wide = max([24, *(min(len(row.method) + 1, 40) for row in rows)])
    for panel in panels(study):
        starts = starts_of(study, panel)
        out.append(_clip(f"pre-trained with {panel.label}"))
        out.append(f"  {'':<{wide}}{'':<20}{'accuracy':>9}{'ASR':>9}{'change':>13}  {'epoch':<6}")
        if starts:
            accuracy = sum(s.accuracy for s in starts) / len(starts)
            asr = sum(s.asr for s in starts) / len(starts)
            out.append(f"  {'before cleaning':<{wide}}{'':<20}{percent(accuracy):>9}{percent(asr):>9}")
        for row in (row for row in rows if row.panel == panel and row.rule.key in SHORT):
            short = SHORT[row.rule.key]
            a, b, lost = row.over(lambda c: c.accuracy), row.over(lambda c: c.asr), row.over(lambda c: c.drop)
            if not (a and b and lost):
                out.append(_clip(f"  {row.method[: wide - 1]:<{wide}}{short:<20}{'none':>9}"))
                continue
            few = f"{len(row.reached)}/{number_of(len(row.choices), 'seed')}"
            epoch = str(row.reached[0].point.epoch) if len(row.choices) == 1 and row.reached[0].point else few
            change = signed(-lost[0], "pt")
            numbers = f"{percent(a[0]):>9}{percent(b[0]):>9}{change:>13}"
            setting = f"  {row.reached[0].settings}" if len(row.choices) == 1 else ""
            out.append(_clip(f"  {row.method[: wide - 1]:<{wide}}{short:<20}{numbers}  {epoch}{setting}"))
            lies = [choice.checkpoint or "not kept" for choice in row.reached]
            out.append(_clip(f"  {'':<{wide}}{'':<20}{lies[0]}" + (f" and {len(lies) - 1} more: points.csv" if lies[1:] else "")))
        out.append("")
    out += [*textwrap.wrap(f"! {unkept(rows)}", WIDTH, subsequent_indent="  "), ""] if unkept(rows) else []
    for warning in warnings(study):
        out += textwrap.wrap(f"! {warning}", WIDTH, subsequent_indent="  ", break_long_words=True)
    if warnings(study):
        out.append("")
    if report:
        out.append(f"report: {report}")
    out.append(f"MLflow: {ui}")
    return "\n".join(out)


SHORT = {
    "acc_at_asr_le_5": "best, ASR ≤ 5 %",
    "acc_at_asr_le_10": "best, ASR ≤ 10 %",
    "asr_at_1pt_loss": "lowest ASR, ≤ 1 pt",
    "blind": "blind, accuracy",
    "blind_decree": "blind, by DECREE",
}


def _count(study: Study) -> str:
    states = [trial.status for trial in study.trials]
    counts = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
    return number_of(len(states), "cleaning") + (f" ({', '.join(counts)})" if counts else "")


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
