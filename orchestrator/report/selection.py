"""Which cleaned model one would keep, what it cost, and what to distrust.

All shares are in percent, all drops in percentage points unless called relative.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.report.names import (
    called,
    flatten,
    hyperparameters,
    is_seed,
    method_of,
    objective_of,
    replicate_of,
    settings,
    short_paths,
    value_text,
    without_seeds,
)
from orchestrator.study import StageResult, Study, TrialResult

ACCURACY, ASR = "zeroshot/top1", "asr/top1"

T_975 = [
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
]
"""Student's t, two-sided 95 %, for 1 … 15 degrees of freedom; beyond, 1.96 + 2.4 / df is within .01 of it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of one model."""

    stage: StageResult
    epoch: int
    accuracy: float
    asr: float
    metrics: dict[str, float] = field(repr=False)

    def interval(self, metric: str) -> tuple[float, float]:
        """95 % Wilson interval over the evaluation's images; (nan, nan) where n is not known."""
        low, high = self.metrics.get(f"{metric}_low"), self.metrics.get(f"{metric}_high")
        if low is not None and high is not None:
            return float(low), float(high)
        return wilson(self.metrics[metric], self.metrics.get(f"{metric.split('/')[0]}/n", 0))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a model is picked out of the trials and epochs of one cleaning method."""

    key: str
    text: str
    oracle: bool
    """Whether the choice needs the attack's success rate, which a defender cannot measure."""
    choose: Callable[[Sequence[Point], Point], Point | None] = field(repr=False)
    """(candidates, the uncleaned model) → the choice, or None where no candidate qualifies."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Pre-trainings that differ in nothing but their seeds."""

    label: str
    pretrains: tuple[StageResult, ...]

    def holds(self, trial: TrialResult) -> bool:
        return any(trial.pretrain == stage.fingerprint for stage in self.pretrains)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a rule picked in one repetition, and its distance from the uncleaned model."""

    point: Point | None
    start: Point
    settings: str = ""

    @property
    def drop(self) -> float:
        """Accuracy lost, points; negative where cleaning gained."""
        return self.start.accuracy - self.point.accuracy if self.point else math.nan

    @property
    def drop_relative(self) -> float:
        """Accuracy lost, percent of the start's."""
        return 100 * self.drop / self.start.accuracy if self.start.accuracy > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a pre-training, a cleaning method and a rule, over all repetitions."""

    panel: Panel
    method: str
    rule: Rule
    choices: tuple[Choice, ...]

    @property
    def reached(self) -> list[Choice]:
        return [choice for choice in self.choices if choice.point]

    def over(self, value: Callable[[Choice], float]) -> tuple[float, float, float] | None:
        """Mean and 95 % t interval over the repetitions that reached it; nan bounds for a single one."""
        return mean_interval([value(choice) for choice in self.reached])


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a share of n, both in percent."""
    if not n or not math.isfinite(share):
        return math.nan, math.nan
    p = share / 100
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, 100 * (centre - half)), min(100.0, 100 * (centre + half))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """(mean, low, high) with Student's 95 % interval; bounds are nan for one value; None for none."""
    if not values:
        return None
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, math.nan, math.nan
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    t = T_975[n - 2] if n - 2 < len(T_975) else 1.96 + 2.4 / (n - 1)
    return mean, mean - t * sd / math.sqrt(n), mean + t * sd / math.sqrt(n)


def points_of(stage: StageResult) -> list[Point]:
    """Every epoch with a finite accuracy and ASR, in order; a line written twice counts once, the last."""
    found = {}
    for line in stage.metrics:
        metrics = line.get("metrics", {})
        values = metrics.get(ACCURACY), metrics.get(ASR)
        if all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            accuracy, asr = (float(v) for v in values)
            found[line["epoch"]] = Point(stage=stage, epoch=line["epoch"], accuracy=accuracy, asr=asr, metrics=metrics)
    return [found[epoch] for epoch in sorted(found)]


def cleaned_points(trial: TrialResult) -> list[Point]:
    """The points of a trial after at least one epoch; epoch 0 is the model before cleaning."""
    return [point for point in points_of(trial) if point.epoch > 0]


def start_of(study: Study, pretrain: str) -> Point | None:
    """The uncleaned model: the last epoch of the pre-training or, without one, epoch 0 of a cleaning."""
    for stage in study.pretrains:
        if stage.fingerprint == pretrain and (points := points_of(stage)):
            return points[-1]
    firsts = [p for t in study.trials if t.pretrain == pretrain for p in points_of(t) if p.epoch == 0]
    return firsts[0] if firsts else None


def most_accurate(limit: float) -> Callable[[Sequence[Point], Point], Point | None]:
    """Highest accuracy among the points with ASR ≤ limit; ties go to the lower ASR, the earlier epoch."""

    def choose(points: Sequence[Point], start: Point) -> Point | None:
        fit = [p for p in points if p.asr <= limit]
        return min(fit, key=lambda p: (-p.accuracy, p.asr, p.epoch, p.stage.fingerprint), default=None)

    return choose


def lowest_asr(points: Sequence[Point], start: Point, lost: float = 1.0) -> Point | None:
    """Lowest ASR among the points that lost at most `lost` points of accuracy; ties: the higher accuracy."""
    fit = [p for p in points if start.accuracy - p.accuracy <= lost + 1e-9]
    return min(fit, key=lambda p: (p.asr, -p.accuracy, p.epoch, p.stage.fingerprint), default=None)


def blind(points: Sequence[Point], start: Point) -> Point | None:
    """Highest accuracy, the ASR not looked at; ties go to the later epoch, as a defender would train on."""
    return min(points, key=lambda p: (-p.accuracy, -p.epoch, p.stage.fingerprint), default=None)


RULES = (
    Rule(key="acc_at_asr_le_5", text="best accuracy with ASR ≤ 5 %", oracle=True, choose=most_accurate(5)),
    Rule(key="acc_at_asr_le_10", text="best accuracy with ASR ≤ 10 %", oracle=True, choose=most_accurate(10)),
    Rule(key="asr_at_1pt_loss", text="lowest ASR at ≤ 1 point of accuracy lost", oracle=True, choose=lowest_asr),
    Rule(key="blind", text="most accurate, ASR not looked at", oracle=False, choose=blind),
)


def best_metrics(lines: list[dict[str, Any]], start_accuracy: float | None = None) -> dict[str, float]:
    """`best/…` of one trial from its lines of metrics; a rule that nothing fits is left out.

    `start_accuracy` (percent) is the uncleaned model's; without it the loss is counted from epoch 0.
    """
    stage = StageResult(stage="", name="", fingerprint="", folder=Path(), config={}, metrics=lines)
    points = points_of(stage)
    cleaned = [p for p in points if p.epoch > 0]
    best = {}
    for limit in (5, 10):
        if cleaned and (choice := most_accurate(limit)(cleaned, cleaned[0])):
            best[f"best/acc_at_asr_le_{limit}"] = choice.accuracy
    if start_accuracy is None and points and points[0].epoch == 0:
        start_accuracy = points[0].accuracy
    if start_accuracy is not None:
        fit = [p.asr for p in cleaned if start_accuracy - p.accuracy <= 1 + 1e-9]
        best |= {"best/asr_at_1pt_loss": min(fit)} if fit else {}
    return best


def panels(study: Study) -> list[Panel]:
    """The study's pre-trainings, repetitions with other seeds together, in the order they were declared."""
    groups: dict[str, list[StageResult]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for stage in study.pretrains:
        own = dict(flatten(without_seeds(stage.config))) | _origin(study, stage)
        key = json.dumps([objective_of(stage), own], sort_keys=True, default=str)
        groups.setdefault(key, []).append(stage)
        facts[key] = own
    made = []
    for key, stages in groups.items():
        label = objective_of(stages[0])
        alike = [other for other in groups if objective_of(groups[other][0]) == label]
        differing = [p for p in facts[key] if len({str(facts[other].get(p)) for other in alike}) > 1]
        if 1 <= len(differing) <= 2:
            names = short_paths(differing)
            label += "".join(f", {names[path]} {value_text(facts[key][path])}" for path in differing)
        elif len(alike) > 1:
            label += f" ({stages[0].fingerprint[:6]})"
        made.append(Panel(label=label, pretrains=tuple(stages)))
    return made


def _origin(study: Study, pretrain: StageResult) -> dict[str, Any]:
    """What the sweep varied before the cleaning, such as the poison: known from the trials that started there."""
    for trial in study.trials:
        if trial.pretrain == pretrain.fingerprint:
            tried = hyperparameters(trial)
            return {p: v for p, v in tried.items() if not p.startswith(("clean.", "pretrain.")) and not is_seed(p)}
    return {}


def methods(study: Study) -> list[str]:
    """Names of the cleaning methods, in the order of the trials."""
    return list(dict.fromkeys(method_of(trial) for trial in study.trials))


def trials_of(study: Study, panel: Panel, method: str) -> list[TrialResult]:
    return [trial for trial in study.trials if panel.holds(trial) and method_of(trial) == method]


def table(study: Study) -> list[Row]:
    """Every pre-training × cleaning method × rule, including those that nothing fits."""
    rows = []
    for panel in panels(study):
        for method in methods(study):
            trials = trials_of(study, panel, method)
            repetitions: dict[str, list[TrialResult]] = {}
            for trial in trials:
                repetitions.setdefault(replicate_of(trial), []).append(trial)
            for rule in RULES if trials else ():
                choices = []
                for group in repetitions.values():
                    start = start_of(study, group[0].pretrain)
                    if start is None:
                        continue
                    point = rule.choose([p for trial in group for p in cleaned_points(trial)], start)
                    chosen = next((t for t in group if point and t.fingerprint == point.stage.fingerprint), None)
                    text = settings(chosen, trials) if chosen else ""
                    choices.append(Choice(point=point, start=start, settings=text))
                rows.append(Row(panel=panel, method=method, rule=rule, choices=tuple(choices)))
    return rows


def warnings(study: Study, gates: bool = True) -> list[str]:
    """What a reader must know before believing the table, one sentence each, the gravest first.

    `gates=False` leaves the verdicts of the attack gate to the caller.
    """
    said = [*(_gate_warnings(study) if gates else []), *_broken(study)]
    rows = table(study)
    missed = []
    for row in rows:
        if row.rule.key == "acc_at_asr_le_5" and len(row.reached) < len(row.choices):
            count = f" (in {len(row.choices) - len(row.reached)} of {len(row.choices)} repetitions)"
            missed.append(f"{row.method} on {row.panel.label}" + (count if len(row.choices) > 1 else ""))
    if missed:
        said.append(f"No model reached ASR ≤ 5 %: {'; '.join(missed)}.")
    said += _grid_edges(study, rows)
    sizes = {
        (p.metrics.get("zeroshot/n"), p.metrics.get("asr/n"))
        for stage in [*study.pretrains, *study.trials]
        for p in points_of(stage)
    }
    if len(sizes) > 1:
        said.append("The evaluations differ in their number of images: some points are not comparable with others.")
    few = sorted({len(row.choices) for row in rows if len(row.choices) < 3})
    if few:
        seeds = "one seed" if few[-1] <= 1 else f"at most {few[-1]} seeds"
        said.append(
            f"Fewer than three seeds ({seeds} for a pre-training and method): differences may be chance. The "
            "intervals of single models count the evaluation's images, neither seeds nor the choice among trials."
        )
    return said


def _gate_warnings(study: Study) -> list[str]:
    said = []
    for stage in study.pretrains:
        gate = study.gates.get(stage.fingerprint)
        if gate is None and stage.status == "finished":
            said.append(f"{called(stage)}: the attack gate was not evaluated.")
        elif gate and not gate.get("passed"):
            reasons = "; ".join(str(reason).rstrip(".") for reason in gate.get("reasons", [])) or "no reason was given"
            said.append(f"{called(stage)}: the attack did not take, so its cleanings show nothing of a defence. {reasons}.")
    return said


def _broken(study: Study) -> list[str]:
    said = []
    for trial in [*study.pretrains, *study.trials]:
        what = called(trial)
        nonfinite = sorted({k for line in trial.metrics for k, v in line.get("metrics", {}).items() if not _finite(v)})
        if trial.status == "failed":
            reason = (trial.error or "no reason was recorded").strip().splitlines()[0]
            said.append(f"{what} failed: {reason}")
        elif nonfinite:
            said.append(f"{what} diverged: {', '.join(nonfinite)} stopped being finite numbers.")
    stopped = sum(trial.status == "stopped" for trial in study.trials)
    if stopped:
        said.append(f"The scheduler stopped {stopped} of {len(study.trials)} trials early; later epochs are not known.")
    running = sum(stage.status == "running" for stage in [*study.pretrains, *study.trials])
    if running:
        said.append(f"{running} stages have not finished: this page shows them as far as they are.")
    return said


def _grid_edges(study: Study, rows: list[Row]) -> list[str]:
    """Chosen values that are the smallest or largest tried: beyond them the choice could be better still."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        trials = trials_of(study, row.panel, row.method)
        names = short_paths(list(dict.fromkeys(path for trial in trials for path in hyperparameters(trial))))
        for choice in row.reached if row.rule.oracle else ():
            assert choice.point
            chosen = next(t for t in trials if t.fingerprint == choice.point.stage.fingerprint)
            for path, value in hyperparameters(chosen).items():
                values = sorted({v for t in trials if _number(v := hyperparameters(t).get(path))})  # type: ignore[type-var]
                if is_seed(path) or not _number(value) or len(values) < 2 or values[0] < value < values[-1]:
                    continue
                end = "smallest" if value == values[0] else "largest"
                tried = f"{value_text(values[0])} … {value_text(values[-1])}" if len(values) > 2 else "of two values"
                setting = f"{names[path]} = {value_text(value)}, the {end} tried ({tried})"
                found.setdefault(setting, {})[f"{row.method} on {row.panel.label}"] = None
    return [
        f"Chosen at the end of its grid: {setting}; a wider grid may change it. This holds for {'; '.join(where)}."
        for setting, where in found.items()
    ]


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
