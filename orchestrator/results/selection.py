"""Which cleaned model to keep, and what it cost.

All shares are in percent, all drops in percentage points unless called relative.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.results.names import settings
from orchestrator.results.once import once
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.points import (
    Panel,
    Point,
    arms,
    checkpoint_of,
    cleaned_points,
    front,
    interval_of,
    panels,
    points_of,
    repetitions,
    start_of,
)
from trainers.evaluate.choice import LIMITS, RULES, Epoch, Rule, lowest_asr, most_accurate, results
from trainers.evaluate.choice import RULE as RULE
from trainers.evaluate.choice import blind as blind


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The model that a rule picked in one repetition, and its distance from the uncleaned model."""

    point: Point | None
    start: Point
    settings: str = ""
    repetition: str = ""
    """Its seeds. A repetition has the same seeds under every objective and method."""
    trial: TrialResult | None = field(default=None, repr=False)
    checkpoint: str = ""
    """The path of its weights in the store; empty if they were not kept."""

    @property
    def accuracy(self) -> float:
        return self.point.accuracy if self.point else math.nan

    @property
    def asr(self) -> float:
        return self.point.asr if self.point else math.nan

    @property
    def drop(self) -> float:
        """Accuracy lost, in points; negative if cleaning raised it."""
        return self.start.accuracy - self.accuracy

    @property
    def drop_relative(self) -> float:
        """Accuracy lost, in percent of the uncleaned model's."""
        return 100 * self.drop / self.start.accuracy if self.start.accuracy > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a pre-training, a cleaning method and a rule, over all repetitions that were measured."""

    panel: Panel
    method: str
    rule: Rule
    choices: tuple[Choice, ...]
    trials: tuple[TrialResult, ...] = field(default=(), repr=False)

    @property
    def reached(self) -> list[Choice]:
        return [choice for choice in self.choices if choice.point]

    @property
    def points(self) -> list[Point]:
        """The models that the rule found, one a repetition."""
        return [choice.point for choice in self.choices if choice.point]

    def over(self, value: Callable[[Choice], float], metric: str = "") -> tuple[float, float, float] | None:
        """Mean and 95 % t interval over the repetitions in which the rule found a model. For a single one the interval over its images if
        `metric` is a share of them, else nan."""
        return interval_of([value(choice) for choice in self.reached], self.points, metric)


def best_metrics(lines: list[dict[str, Any]], start_accuracy: float | None = None) -> dict[str, float]:
    """`best/…` of one trial from its lines of metrics; a rule that no model fits is left out.

    `start_accuracy` (percent) is the uncleaned model's; if it is not given, the loss is counted from epoch 0.
    """
    return best_of(points_of(StageResult(stage="", name="", fingerprint="", folder=Path(), config={}, metrics=lines)), start_accuracy)


def best_of(points: list[Point], start_accuracy: float | None = None) -> dict[str, float]:
    """As `best_metrics`, of the points of one trial or the first of them."""
    cleaned = results(points)
    best = {}
    for limit in LIMITS:
        if cleaned and (choice := most_accurate(limit)(cleaned, cleaned[0])):
            best[f"best/acc_at_asr_le_{limit}"] = choice.accuracy
    if start_accuracy is None and points and points[0].epoch == 0:
        start_accuracy = points[0].accuracy
    if start_accuracy is not None:
        lowest = lowest_asr(cleaned, Epoch(0, start_accuracy, math.nan))
        best |= {"best/asr_at_1pt_loss": lowest.asr} if lowest else {}
    return best


def choices(study: Study, trials: Sequence[TrialResult], rule: Rule) -> tuple[Choice, ...]:
    """The rule's choice among these trials for each repetition that has at least one measured epoch."""
    seeds = repetitions(study, trials)
    groups: dict[tuple[str, str], list[TrialResult]] = {}
    for trial in trials:
        groups.setdefault((trial.pretrain, seeds[trial.fingerprint]), []).append(trial)
    result = []
    for (_, repetition), group in groups.items():
        start = start_of(study, group[0].pretrain, group[0])
        points = [p for trial in group for p in cleaned_points(trial)]
        if start is None or not points:
            continue
        point = rule.choose(points, start)
        chosen = next((t for t in group if point and t.fingerprint == point.stage.fingerprint), None)
        text = settings(chosen, list(trials)) if chosen else ""
        kept = checkpoint_of(study, point) if point else ""
        result.append(Choice(point=point, start=start, settings=text, trial=chosen, repetition=repetition, checkpoint=kept))
    return tuple(result)


@once
def table(study: Study, ignoring: str = "") -> list[Row]:
    """Every pre-training × cleaning method × rule, including rules that no model fits. `ignoring`: a dotted path whose values share a row
    (that of a series).
    """
    named, rows = arms(study, ignoring), []
    for panel in panels(study):
        for method in dict.fromkeys(named.values()):
            trials = tuple(t for t in study.trials if named[t.fingerprint] == method and panel.holds(t))
            points = [point for trial in trials for point in cleaned_points(trial)]
            for rule in (rule for rule in RULES if trials and rule.concerns(points)):
                rows.append(Row(panel=panel, method=method, rule=rule, choices=choices(study, trials, rule), trials=trials))
    return rows


def fronts(study: Study) -> list[tuple[Panel, StageResult, str, list[Point]]]:
    """(panel, pre-training, method, Pareto front over all its trials and epochs): one for each seed of a pre-training."""
    named, result = arms(study), []
    for panel in panels(study):
        for stage in panel.pretrains:
            for method in dict.fromkeys(named.values()):
                trials = [t for t in study.trials if t.pretrain == stage.fingerprint and named[t.fingerprint] == method]
                if points := front([p for trial in trials for p in cleaned_points(trial)]):
                    result.append((panel, stage, method, points))
    return result
