"""A study's numbers as pandas frames, for people who compute: every epoch of every training, and the models to keep.

`points` makes the frame; `choose`, `front` and `series` take it, whole or filtered, and return a smaller one. All shares are in percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets.errors import InputError
from orchestrator.results import points as measured
from orchestrator.results.names import flatten, hyperparameters
from orchestrator.results.outcome import Study, TrialResult
from trainers.evaluate.choice import MASK, RULE, Epoch

if TYPE_CHECKING:
    import pandas

REPETITION = ("pretraining", "pretrain", "method", "repetition")
"""Columns that are equal in all trials among which a rule of the report chooses."""


def points(study: Study) -> pandas.DataFrame:
    """One row for each epoch of each pre-training and cleaning; a column is NaN in rows that have no value for it.

    Columns: `study`, `stage` (pretrain | clean), `pretraining` (shared by pre-trainings that differ only in their seeds), `method` (the
    cleaning method; empty for a pre-training), `repetition` (its seeds), `fingerprint`, `pretrain` (fingerprint of the pre-training),
    `status`, `role` (training | before | result: rules choose among results), `epoch`, `step`, `seconds`, `checkpoint` (folder of its
    weights in the store; empty if they were not kept), `accuracy`, `asr` and their 95 % bounds, `start_accuracy` and `start_asr` of the
    uncleaned model; then every field of the experiment by its dotted path, and every metric by its name.
    """
    import pandas

    arms, seeds = measured.arms(study), measured.repetitions(study, study.trials)
    labels = {stage.fingerprint: panel.label for panel in measured.panels(study) for stage in panel.pretrains}
    rows = []
    for stage in [*study.pretrains, *study.trials]:
        trial = stage if isinstance(stage, TrialResult) else None
        source = trial.pretrain if trial else stage.fingerprint
        fixed = {
            "study": study.name,
            "stage": stage.stage,
            "pretraining": labels.get(source, ""),
            "method": arms[stage.fingerprint] if trial else "",
            "repetition": seeds[stage.fingerprint] if trial else "",
            "fingerprint": stage.fingerprint,
            "pretrain": source,
            "status": stage.status,
        }
        config = {path: _leaf(value) for path, value in flatten(stage.config)}
        config |= {path: _leaf(value) for path, value in hyperparameters(trial).items()} if trial else {}
        start = measured.start_of(study, source, trial) if trial else None
        by_epoch = {point.epoch: point for point in measured.points_of(stage)}
        for epoch, line in sorted({line["epoch"]: line for line in stage.metrics}.items()):
            row = {"role": measured.role_of(stage, epoch), "epoch": epoch, "step": line.get("step"), "seconds": line.get("seconds")}
            point = by_epoch.get(epoch)
            if point is not None:
                row |= {"checkpoint": measured.checkpoint_of(study, point), "accuracy": point.accuracy, "asr": point.asr}
                row |= _bounds(point)
            row |= {"start_accuracy": start.accuracy, "start_asr": start.asr} if start else {}
            rows.append(fixed | row | config | line.get("metrics", {}))
    return pandas.DataFrame(rows)


def choose(frame: pandas.DataFrame, rule: str = "acc_at_asr_le_5", by: Sequence[str] = REPETITION) -> pandas.DataFrame:
    """The row that the rule picks in each group, with a column `drop`: points of accuracy lost. Groups in which it picks none are left out.

    `rule`: a key of `trainers.evaluate.choice.RULES`. `by`: columns that are the same in all rows among which it chooses.
    """
    if rule not in RULE:
        raise InputError(f"rule is {rule!r}; accepted: {', '.join(RULE)}.")
    frame, picked = frame.reset_index(drop=True), []
    for _, group in _results(frame).groupby(list(by), sort=False, dropna=False):
        models = _models(group)
        start = Epoch(0, float(group["start_accuracy"].iloc[0]), float(group["start_asr"].iloc[0]))
        choice = RULE[rule].choose(models, start)
        picked += [] if choice is None else [group.index[models.index(choice)]]
    chosen = frame.loc[picked]
    return chosen.assign(drop=chosen["start_accuracy"] - chosen["accuracy"])


def front(frame: pandas.DataFrame, by: Sequence[str] = ("pretraining", "pretrain", "method")) -> pandas.DataFrame:
    """The rows of each group's Pareto front (no other row is at least as accurate at no higher ASR), from the lowest ASR up."""
    frame, kept = frame.reset_index(drop=True), []
    for _, group in _results(frame).groupby(list(by), sort=False, dropna=False):
        models = _models(group)
        kept += [group.index[models.index(point)] for point in measured.front(models)]
    return frame.loc[kept]


def series(frame: pandas.DataFrame, path: str, rule: str = "acc_at_asr_le_5", metric: str = "accuracy") -> pandas.DataFrame:
    """A metric of the rule's choices over the values of a field: columns `pretraining`, `method`, the path, `n`, `mean`, `low`, `high`.

    `path`: a dotted path of the experiment, e.g. clean.lr. `n`: number of repetitions; bounds are Student's 95 % interval, NaN if n is 1.
    """
    import pandas

    if path not in frame.columns:
        raise InputError(f"series: the study has no field {path!r}; accepted: the columns of the frame, e.g. clean.lr.")
    chosen = choose(frame, rule, (*REPETITION, path))
    rows = []
    for key, group in chosen.groupby(["pretraining", "method", path], sort=False, dropna=False):
        mean, low, high = measured.mean_interval(group[metric].tolist()) or (math.nan, math.nan, math.nan)
        rows.append([*key, len(group), mean, low, high])
    return pandas.DataFrame(rows, columns=["pretraining", "method", path, "n", "mean", "low", "high"])


def _results(frame: pandas.DataFrame) -> pandas.DataFrame:
    if frame.empty:
        raise InputError("the frame has no rows: the store holds nothing of the sweep yet; run it first, or name its store.")
    return frame[(frame["role"] == "result") & frame["accuracy"].notna() & frame["asr"].notna()]


def _models(group: pandas.DataFrame) -> list[Epoch]:
    """The rows in the form that the report's rules and fronts take."""
    masks = group[MASK] if MASK in group else [math.nan] * len(group)
    rows = zip(group.itertuples(), masks, strict=True)
    return [Epoch(int(row.epoch), row.accuracy, row.asr, row.fingerprint, metrics={MASK: mask}) for row, mask in rows]


def _bounds(point: measured.Point) -> dict[str, float]:
    names = {"accuracy": measured.ACCURACY, "asr": measured.ASR}
    return {f"{name}_{end}": value for name, metric in names.items() for end, value in zip(("low", "high"), point.interval(metric))}


def _leaf(value: Any) -> Any:
    """The value in a form that can be grouped and compared: lists become JSON."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value
