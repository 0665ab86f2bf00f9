"""The table of a study for a paper or a program: Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from datasets.errors import InputError
from orchestrator.report.tables import SHORT
from orchestrator.results.names import signed
from orchestrator.results.outcome import Study
from orchestrator.results.points import ACCURACY, ASR, Panel, Point, asr_of, attacks_of, interval_of, panels, starts_of
from orchestrator.results.selection import Choice, Row, table
from trainers.evaluate.choice import RULE, Rule

USUAL = tuple(SHORT)
"""Default rules of the table: those of the summary on the terminal."""
LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "≤": r"$\le$", "±": r"$\pm$", "↑": r"$\uparrow$",
         "↓": r"$\downarrow$", "−": "$-$", "–": "--", "→": r"$\rightarrow$", "★": r"$\star$", "λ": r"$\lambda$"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table. Numbers are (value, low, high) in percent, NaN where there is none; the bounds are 95 %."""

    pretraining: str
    cleaning: str
    rule: str
    accuracy: tuple[float, float, float]
    asr: tuple[float, float, float]
    change: float
    """Change of the accuracy by cleaning, in points; NaN for the uncleaned model."""
    reached: int
    """Repetitions in which some model meets the rule, of `repetitions`."""
    repetitions: int
    attacks: tuple[tuple[float, float, float], ...] = ()
    """ASR of each of several attacks, in the form of `asr`; empty if there is only one."""
    best: bool = False
    """Whether it is the best by this rule among the methods of its pre-training that reached the rule in every repetition."""


def lines(study: Study, rules: Sequence[str] = ()) -> list[Line]:
    """The uncleaned model of each pre-training, then each rule's choice for each method. InputError for an unknown rule."""
    for key in rules:
        if key not in RULE:
            raise InputError(f"--rule {key}: accepted: {', '.join(RULE)}.")
    rows, result, attacks = table(study), list[Line](), attacks_of(study)

    def each(line: Line, points: Sequence[Point]) -> Line:
        return replace(line, attacks=tuple((asr_of(points, name) if points else None) or (math.nan,) * 3 for name in attacks))

    for panel in panels(study):
        starts = starts_of(study, panel)
        if starts:
            accuracy, asr = (
                interval_of([start.metrics[metric] for start in starts], starts, metric) or (math.nan,) * 3 for metric in (ACCURACY, ASR)
            )
            n = len(starts)
            line = Line(pretraining=panel.label, cleaning="before cleaning", rule="", accuracy=accuracy, asr=asr, change=math.nan,
                        reached=n, repetitions=n)  # fmt: skip
            result.append(each(line, starts))
        for key in rules or USUAL:
            mine = [row for row in rows if row.panel == panel and row.rule.key == key]
            result += [each(line, row.points) for line, row in zip(_chosen(panel, mine), mine)]
    return result


def _chosen(panel: Panel, rows: Sequence[Row]) -> list[Line]:
    def score(row: Row) -> float:
        """The row's score by its rule, higher is better; minus infinity if a repetition has no model for the rule."""
        value = row.over(lambda c: -c.asr if row.rule.key.startswith("asr") else c.accuracy)
        return value[0] if value and len(row.reached) == len(row.choices) else -math.inf

    best = max(map(score, rows), default=-math.inf)
    result = []
    for row in rows:
        change = row.over(lambda c: -c.drop)
        result.append(
            Line(
                pretraining=panel.label,
                cleaning=row.method,
                rule=row.rule.key,
                accuracy=_measured(row, lambda c: c.accuracy, ACCURACY),
                asr=_measured(row, lambda c: c.asr, ASR),
                change=change[0] if change else math.nan,
                reached=len(row.reached),
                repetitions=len(row.choices),
                best=score(row) == best > -math.inf,
            )
        )
    return result


def _measured(row: Row, value: Callable[[Choice], float], metric: str) -> tuple[float, float, float]:
    return row.over(value, metric) or (math.nan, math.nan, math.nan)


def as_text(study: Study, form: str, rules: Sequence[str] = ()) -> str:
    """The table as `form`: md | latex | csv. In Markdown and LaTeX the best of each pre-training and rule is bold."""
    table_lines, attacks = lines(study, rules), attacks_of(study)
    return {"csv": _csv, "md": _markdown, "latex": _latex}[form](table_lines, attacks)


def _csv(found: Sequence[Line], attacks: Mapping[str, str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = [f"{name}{end}" for name in ("accuracy", "asr") for end in ("", "_low", "_high")]
    each = [f"asr/{name}{end}" for name in attacks for end in ("", "_low", "_high")]
    writer.writerow(["pretraining", "cleaning", "rule", *numbers, "change", "reached", "repetitions", "best", *each])
    for line in found:
        values = ["" if math.isnan(value) else repr(value) for value in (*line.accuracy, *line.asr, line.change)]
        by_attack = ["" if math.isnan(value) else repr(value) for bounds in line.attacks for value in bounds]
        writer.writerow([line.pretraining, line.cleaning, line.rule, *values, line.reached, line.repetitions, int(line.best), *by_attack])
    return out.getvalue()


HEADS = ("pre-training", "cleaning", "chosen for", "accuracy ↑ (%)", "ASR ↓ (%)", "change (points)")
"""With several attacks followed by one column for each."""
BOLD = (1, 3, 4)
"""Columns that are bold in a best line: cleaning, accuracy and ASR."""


def _cells(line: Line) -> tuple[str, ...]:
    some = f" ({line.reached} of {line.repetitions})" if line.reached < line.repetitions else ""
    chosen = _rule(RULE[line.rule]) if line.rule else ""
    if not line.reached:
        return line.pretraining, line.cleaning, chosen, "none" if line.repetitions else "–", "–", "–", *("–" for _ in line.attacks)
    change = "" if math.isnan(line.change) else signed(line.change, "").strip()
    numbers = (_number(line.accuracy, line), _number(line.asr, line), change, *(_number(one, line) for one in line.attacks))
    return line.pretraining, line.cleaning, chosen + some, *numbers


def _heads(attacks: Mapping[str, str]) -> list[str]:
    return [*HEADS, *(f"ASR of {name} → {target} ↓ (%)" for name, target in attacks.items())]


def _rule(rule: Rule) -> str:
    return rule.text if rule.oracle else rule.text.replace("ASR not looked at", "blind")


def _number(value: tuple[float, float, float], line: Line) -> str:
    """`98.9 ± 0.6` over repetitions, `98.9 [98.1, 99.4]` over the images of a single one."""
    mean, low, high = value
    if math.isnan(mean):
        return "–"
    if not math.isfinite(low):
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {mean - low:.1f}" if line.reached > 1 else f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _markdown(found: Sequence[Line], attacks: Mapping[str, str]) -> str:
    def text(cell: str) -> str:
        return cell.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")

    out = ["| " + " | ".join(map(text, _heads(attacks))) + " |", "|---|---|---|---:|---:|---:|" + "---:|" * len(attacks)]
    for line in found:
        cells = [text(cell) for cell in _cells(line)]
        cells = [f"**{cell}**" if line.best and number in BOLD else cell for number, cell in enumerate(cells)]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, "", NOTE, ""])


def _latex(found: Sequence[Line], attacks: Mapping[str, str]) -> str:
    def text(cell: str) -> str:
        return "".join(LATEX.get(character, character) for character in cell)

    columns = "lllrrr" + "r" * len(attacks)
    out = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(text, _heads(attacks))) + r" \\", r"\midrule"]
    for before, line in zip([None, *found], found):
        if before is not None and before.pretraining != line.pretraining:
            out.append(r"\midrule")
        cells = [text(cell) for cell in _cells(line)]
        cells = [rf"\textbf{{{cell}}}" if line.best and number in BOLD else cell for number, cell in enumerate(cells)]
        out.append(" & ".join(cells) + r" \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", f"% {NOTE}", "% needs the package booktabs", ""])


NOTE = (
    "Bold: best of its pre-training by this rule. ± is Student's 95 % interval over seeds; brackets, for one seed, Wilson's 95 % "
    "interval over the test pictures. All but the blind rules need the ASR, which a defender cannot measure."
)
