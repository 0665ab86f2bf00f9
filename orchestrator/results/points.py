"""What was measured: points, their intervals, and which models belong together.

All shares are in percent.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.results.kinds import names, study_method, study_objective
from orchestrator.results.names import (
    hyperparameters,
    is_seed,
    objective_of,
    seeds_of,
    short_paths,
    tell_apart,
    value_at,
    value_text,
)
from orchestrator.results.once import once
from orchestrator.results.outcome import StageResult, Study, TrialResult
from orchestrator.results.published import Cleaned, Start
from trainers.checkpoint import epoch_folder
from trainers.evaluate.choice import ACCURACY as ACCURACY
from trainers.evaluate.choice import ASR as ASR
from trainers.evaluate.choice import M, measured, results
from trainers.evaluate.choice import start_of as epoch_to_start_from
from trainers.evaluate.zeroshot import wilson
from trainers.weights.epoch_folder import WEIGHTS

CLEANING_SET = ("clean.pairs", "clean.choice", "clean.poisons", "clean.keys")
"""Fields that define the cleaning set and do not tune the cleaning: no rule chooses between trials that differ in them."""
GIVEN = (*CLEANING_SET, "clean.start")
"""These fields, and the epoch of the pre-training at which the cleaning starts."""
MAX_ARMS = 12
"""A series with more values than this, such as a drawn one, does not split a method's trials into arms."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of one model."""

    stage: StageResult
    epoch: int
    accuracy: float
    asr: float
    returned: bool = False
    """Whether the cleaning method returned this model instead of the last one of its training."""
    metrics: dict[str, float] = field(repr=False)

    @property
    def trial(self) -> str:
        """The fingerprint of its stage."""
        return self.stage.fingerprint

    def interval(self, metric: str) -> tuple[float, float]:
        """95 % Wilson interval over the evaluation's images; (nan, nan) if n is unknown."""
        low, high = self.metrics.get(f"{metric}_low"), self.metrics.get(f"{metric}_high")
        if low is not None and high is not None:
            return float(low), float(high)
        return interval_of_share(self.metrics[metric], self.metrics.get(f"{metric.split('/')[0]}/n", 0))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Pre-trainings that differ only in their seeds."""

    label: str
    pretrains: tuple[StageResult, ...]

    def holds(self, trial: TrialResult) -> bool:
        return any(trial.pretrain == stage.fingerprint for stage in self.pretrains)

    @property
    def objective(self) -> str:
        """The name of its objective in the report."""
        return objective_of(self.pretrains[0])

    @property
    def study_objective(self) -> str:
        """The objective's name in the study of CleanCLIP; empty for any other objective."""
        return study_objective(self.pretrains[0])


def interval_of_share(share: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a share of n, both in percent; nan if n is unknown."""
    if not n or not math.isfinite(share):
        return math.nan, math.nan
    return wilson(share / 100 * n, n)


def interval_of(values: Sequence[float], points: Sequence[Point], metric: str) -> tuple[float, float, float] | None:
    """Mean and 95 % t interval over the repetitions. For a single one the interval over its images if `metric` is a share of them."""
    interval = mean_interval(values)
    return (interval[0], *points[0].interval(metric)) if interval and len(values) == 1 and metric else interval


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """(mean, low, high) with Student's 95 % interval; bounds are nan for one value; None for none."""
    if not values:
        return None
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, math.nan, math.nan
    from scipy.special import stdtrit  # here, for a plan needs no interval

    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    t = float(stdtrit(n - 1, 0.975))
    return mean, mean - t * sd / math.sqrt(n), mean + t * sd / math.sqrt(n)


def attacks_of(study: Study) -> dict[str, str]:
    """Name → target of each attack, where there are several; else empty."""
    return {name: str(facts.get("target", "")) for name, facts in study.poison.get("found", {}).items()}


def asr_of(points: Sequence[Point], attack: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of one attack's ASR over these points, as in `interval_of`; None if it is missing in some of them."""
    metric = f"asr/{attack}/top1"
    values = [point.metrics[metric] for point in points if metric in point.metrics]
    return interval_of(values, points, metric) if len(values) == len(points) else None


@once
def points_of(stage: StageResult) -> list[Point]:
    """Every epoch with a finite accuracy and ASR, in order. If a line was written twice, the last one counts."""
    measurements = measured(stage.metrics)
    return [Point(stage=stage, epoch=p.epoch, accuracy=p.accuracy, asr=p.asr, returned=p.returned, metrics=p.metrics) for p in measurements]


@once
def cleaned_points(trial: TrialResult) -> list[Point]:
    """The points of a trial that are its method's results (`choice.results`); epoch 0 is the model before cleaning.

    A trial that failed or still runs has none, because a model in the middle of its training is not what the method returns.
    """
    return [] if trial.status in ("failed", "running") else results(points_of(trial))


def checkpoint_of(study: Study, point: Point) -> str:
    """The path of the model's weights, relative to the store; empty if they were not kept.

    Epoch 0 of a cleaning is the pre-trained model itself, unless its method changed weights before the first step.
    """
    stage, epoch = point.stage, point.epoch
    if epoch == 0 and isinstance(stage, TrialResult):
        start = start_of(study, stage.pretrain, stage)
        if start is None or (start.accuracy, start.asr) != (point.accuracy, point.asr):
            return ""
        stage, epoch = start.stage, start.epoch
    folder = epoch_folder(stage.folder, epoch)
    return str(folder.relative_to(stage.folder.parent.parent)) if (folder / WEIGHTS).is_file() else ""


@once
def start_of(study: Study, pretrain: str, trial: TrialResult | None = None) -> Point | None:
    """The uncleaned model: the last epoch of the pre-training, or the epoch at which a trial starts (`Clean.start`).

    If the study has no such pre-training, epoch 0 of one of its cleanings.
    """
    for stage in study.pretrains:
        if stage.fingerprint == pretrain and (points := points_of(stage)):
            return uncleaned(points, trial)
    firsts = [p for t in study.trials if t.pretrain == pretrain and trial in (None, t) for p in points_of(t) if p.epoch == 0]
    return firsts[0] if firsts else None


def uncleaned(points: Sequence[Point], trial: TrialResult | None) -> Point | None:
    """The point of a pre-training whose model the trial cleans; without a trial the last one."""
    return epoch_to_start_from(points, str(value_at(trial, "clean.start") or "") if trial else "")


def starts_of(study: Study, panel: Panel) -> list[Point]:
    """The uncleaned models of a panel, one for each seed that has been measured."""
    return [start for stage in panel.pretrains if (start := start_of(study, stage.fingerprint))]


def published_starts(study: Study, panel: Panel) -> list[Start]:
    """The published uncleaned models that are drawn in this panel."""
    starts = study.published.starts if study.published else ()
    return [start for start in starts if start.objective == panel.study_objective and start.fits(panel.pretrains[0].config)]


def published_cleanings(study: Study, panel: Panel) -> list[Cleaned]:
    """The published cleanings that belong beside a panel's. Those for one value of a cleaning field are shown only if the method is tried
    there."""
    cleanings = study.published.cleanings if study.published else ()
    mine = [trial for trial in study.trials if panel.holds(trial)]
    return [
        cleaned
        for cleaned in cleanings
        if cleaned.objective == panel.study_objective
        and (
            any(study_method(trial) == cleaned.method and cleaned.fits(trial.config) for trial in mine)
            if cleaned.of_cleaning
            else cleaned.fits(panel.pretrains[0].config)
        )
    ]


def repetitions(study: Study, trials: Sequence[TrialResult]) -> dict[str, str]:
    """Fingerprint of a trial → its seeds and those of its pre-training as text; equal for the same repetition under two objectives."""
    seeds = {stage.fingerprint: seeds_of(stage.config) for stage in study.pretrains}
    result = {}
    for trial in trials:
        own_seeds = {path: value for path, value in hyperparameters(trial).items() if is_seed(path)}
        result[trial.fingerprint] = json.dumps(seeds.get(trial.pretrain, {}) | own_seeds, sort_keys=True, default=str)
    return result


def plans_cleaning(study: Study) -> bool:
    """Whether the study has cleanings: a sweep may consist of pre-trainings only."""
    base = study.config.get("base")
    return bool(study.trials) or not isinstance(base, dict) or base.get("clean") is not None


def role_of(stage: StageResult, epoch: int) -> str:
    """The role of an epoch in its stage: before | training | result; rules choose among results only."""
    if not isinstance(stage, TrialResult):
        return "training"
    return "before" if epoch == 0 else "result" if any(point.epoch == epoch for point in cleaned_points(stage)) else "training"


def front(points: Sequence[M]) -> list[M]:
    """The Pareto front, by rising ASR: the points for which no other is at least as accurate at no higher ASR."""
    kept: list[M] = []
    for point in sorted(points, key=lambda p: (p.asr, -p.accuracy, p.epoch, p.trial)):
        if not kept or point.accuracy > kept[-1].accuracy:
            kept.append(point)
    return kept


@once
def panels(study: Study, ignoring: str = "") -> list[Panel]:
    """The study's pre-trainings, with repetitions that differ only in seeds together, in the order in which they were declared.

    `ignoring`: a dotted path whose values do not separate them either (that of a series).
    """
    groups: dict[str, list[StageResult]] = {}
    facts: dict[str, dict[str, Any]] = {}
    objectives = names(study.pretrains)
    for stage in study.pretrains:
        start_config = before_cleaning(stage.config, ignoring)
        key = json.dumps([objectives[stage.fingerprint], start_config], sort_keys=True, default=str)
        groups.setdefault(key, []).append(stage)
        facts[key] = start_config
    labels: dict[str, str] = {}
    for objective in dict.fromkeys(objectives.values()):
        alike = [key for key in groups if objectives[groups[key][0].fingerprint] == objective]
        for key, words in zip(alike, tell_apart([facts[key] for key in alike])):
            labels[key] = f"{objective}, {words}" if words else objective
        for key in alike:
            if [labels[other] for other in alike].count(labels[key]) > 1:
                labels[key] += f" ({groups[key][0].fingerprint[:6]})"
    return [Panel(label=labels[key], pretrains=tuple(stages)) for key, stages in groups.items()]


def before_cleaning(value: Any, ignoring: str, path: str = "") -> Any:
    """The part of a configuration that determines the uncleaned model: all but its cleaning, its seeds and the ignored path."""
    if not isinstance(value, dict):
        return value
    inner = {key: f"{path}.{key}" if path else key for key in value}
    return {
        key: before_cleaning(value[key], ignoring, where)
        for key, where in inner.items()
        if where not in ("clean", ignoring) and not is_seed(key)
    }


@once
def arms(study: Study, ignoring: str = "") -> dict[str, str]:
    """Fingerprint of a trial → its arm: the method, with the cleaning set, the start and the series' value if a method has several of them.

    "CleanCLIP", or "CleanCLIP, poisons 5": a rule chooses among the trials of one arm. `ignoring`: a dotted path that does not split them.
    """
    paths = [*GIVEN]
    if study.series.startswith("clean.") and study.series not in ("clean.method", *paths):
        values = {str(value_at(trial, study.series)) for trial in study.trials}
        paths += [study.series] if len(values) <= MAX_ARMS else []
    paths = [path for path in paths if path != ignoring]
    settings = {t.fingerprint: {path: value_at(t, path) for path in paths} for t in study.trials}
    called = methods_of(study)
    short = short_paths(list(dict.fromkeys([*paths, *(p for t in study.trials for p in hyperparameters(t))])))
    seen: dict[str, dict[str, set[str]]] = {}
    for fingerprint, values_of in settings.items():
        for path, value in values_of.items():
            seen.setdefault(called[fingerprint], {}).setdefault(path, set()).add(str(value))
    names = {}
    for fingerprint, values_of in settings.items():
        method = called[fingerprint]
        varied = [f"{short[p]} {value_text(v)}" for p, v in values_of.items() if v not in (None, "") and len(seen[method][p]) > 1]
        names[fingerprint] = ", ".join([method, *varied])
    return names


@once
def methods_of(study: Study) -> dict[str, str]:
    """Fingerprint of a trial → name of its method within the study; no two classes share a name."""
    return names(study.trials)


def methods(study: Study) -> list[str]:
    """Names of the arms, in the order of the trials."""
    return list(dict.fromkeys(arms(study).values()))


def trials_of(study: Study, panel: Panel, method: str) -> list[TrialResult]:
    named = arms(study)
    return [trial for trial in study.trials if panel.holds(trial) and named[trial.fingerprint] == method]
