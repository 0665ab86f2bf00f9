"""The frame of a study: its choices, fronts and series are those of the report, and a notebook comes to the same."""

from __future__ import annotations

import csv
import io
import math

import pandas
import pytest

from datasets.errors import InputError
from orchestrator.report.tables import points_csv
from orchestrator.results import frames
from orchestrator.results.points import panels
from orchestrator.results.selection import RULES, fronts, table
from tests.unit.fake_study import fake_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return fake_study(tmp_path_factory.mktemp("store"))


def test_it_has_a_row_for_each_epoch_with_settings_and_metrics(study):
    frame = study.frame()
    stages = [*study.pretrains, *study.trials]
    assert len(frame) == sum(len(stage.metrics) for stage in stages) and not frame.duplicated(["fingerprint", "epoch"]).any()
    trial = study.trials[0]
    mine = frame[frame["fingerprint"] == trial.fingerprint].set_index("epoch")
    for line in trial.metrics:
        for name, value in line["metrics"].items():
            assert mine.loc[line["epoch"], name] == value
    assert mine["accuracy"].tolist() == mine["zeroshot/top1"].tolist() and mine.loc[0, "role"] == "before"
    assert {"clean.method.inmodal_weight", "pretrain.objective.inmodal_weight"} <= set(frame.columns) or "lr" in frame.columns
    rows = list(csv.DictReader(io.StringIO(points_csv(study))))
    assert [(r["fingerprint"], int(r["epoch"]), r["role"]) for r in rows] == list(
        frame[["fingerprint", "epoch", "role"]].itertuples(index=False, name=None)
    )


@pytest.mark.parametrize("rule", [rule.key for rule in RULES if not rule.metric])
def test_a_rule_picks_what_the_report_picks(study, rule):
    chosen = frames.choose(study.frame(), rule)
    expected = {
        (row.panel.label, row.method, choice.point.trial, choice.point.epoch, choice.drop)
        for row in table(study)
        if row.rule.key == rule
        for choice in row.reached
    }
    columns = ["pretraining", "method", "fingerprint", "epoch", "drop"]
    assert set(chosen[columns].itertuples(index=False, name=None)) == expected and expected


def test_fronts_are_those_of_the_report_and_a_filtered_frame_has_its_own(study):
    frame = study.frame()
    expected = [(stage.fingerprint, method, p.trial, p.epoch) for _, stage, method, points in fronts(study) for p in points]
    found = frames.front(frame)[["pretrain", "method", "fingerprint", "epoch"]].itertuples(index=False, name=None)
    assert sorted(found) == sorted(expected)
    last = frames.front(frame[frame["epoch"] == 6])
    assert set(last["epoch"]) == {6} and len(last) < len(expected)


def test_a_series_has_means_over_repetitions(study):
    found = frames.series(study.frame(), "clean.lr" if "clean.lr" in study.frame() else "lr", "blind")
    assert set(found["pretraining"]) == {panel.label for panel in panels(study)}
    assert all(math.isnan(low) for low, n in zip(found["low"], found["n"]) if n == 1)
    with pytest.raises(InputError, match="no field 'clean.nothing'"):
        frames.series(study.frame(), "clean.nothing")
    with pytest.raises(InputError, match="rule is 'best'; accepted: acc_at_asr_le_5"):
        frames.choose(study.frame(), "best")


def test_a_frame_without_rows_is_one_sentence() -> None:
    for of in (frames.choose, frames.front):
        with pytest.raises(InputError, match="the store holds nothing of the sweep yet"):
            of(pandas.DataFrame([]))
