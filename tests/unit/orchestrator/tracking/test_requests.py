"""How MLflow is told: few requests, none of which leaves half an epoch."""

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.results.outcome import Study
from orchestrator.running.follow import Mirror
from orchestrator.tracking import runs
from orchestrator.tracking.runs import COMPLETE, batches
from orchestrator.tracking.tracker import ERROR, Tracker, TrackingError
from tests.unit.fake_study import fake_study


def held(uri: str) -> dict[str, list[tuple]]:
    """What the database holds, by fingerprint instead of by run, without times."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        names = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'cleansweep.fingerprint'"))
        columns = {"metrics": "key, step, value", "latest_metrics": "key, step, value", "params": "key, value", "tags": "key, value"}
        found = {}
        for table, wanted in columns.items():
            rows = database.execute(f"SELECT run_uuid, {wanted} FROM {table}").fetchall()
            kept = [(names[run], *row) for run, *row in rows if row[0] not in ("mlflow.parentRunId", "cleansweep.driver")]
            found[table] = sorted(kept, key=str)
        found["runs"] = sorted((names[run], status) for run, status in database.execute("SELECT run_uuid, status FROM runs"))
    return found


def mirror(uri: str, study: Study) -> None:
    """What the driver does at the end of a run."""
    folder = Path(uri.removeprefix("sqlite:///")).parent / "report"
    folder.mkdir(exist_ok=True)
    Mirror(Tracker(uri, study.name)).finish(study, folder / "report.html", failed=False)


def expected(study: Study) -> Counter:
    """(fingerprint, metric, epoch) of every finite value that the study measured."""
    return Counter(
        (result.fingerprint, name, entry["epoch"])
        for result in [*study.pretrains, *study.trials] for entry in result.metrics
        for name, value in entry["metrics"].items() if value == value and abs(value) != float("inf")
    )  # fmt: skip


def test_a_stage_is_told_in_two_requests_and_read_in_none(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    study, asked = fake_study(tmp_path), Counter[str]()

    def counted(name: str) -> Any:
        whole = getattr(MlflowClient, name)
        return lambda self, *args, **kwargs: (asked.update([name]), whole(self, *args, **kwargs))[1]

    names = ("log_batch", "get_run", "get_metric_history", "search_runs", "set_tag", "set_terminated", "create_run")
    for name in names:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    mirror(uri, study)
    stages = len(study.pretrains) + len(study.trials)
    assert asked["create_run"] == asked["set_terminated"] == stages + 1
    assert asked["log_batch"] <= 2 * stages + 3 and asked["search_runs"] == 2
    assert asked["get_run"] == asked["get_metric_history"] == asked["set_tag"] == 0
    values = Counter((run, name, step) for run, name, step, _ in held(uri)["metrics"])
    assert {key: values[key] for key in expected(study)} == expected(study), "every value, once"


def test_small_requests_leave_the_same_as_large_ones(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: Path):
    study = fake_study(tmp_path)
    mirror(uri, study)
    large = held(uri)
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "mlflow.db"
    with sqlite3.connect(template) as source, sqlite3.connect(other) as target:
        source.backup(target)
    monkeypatch.setattr(runs, "MAX_METRICS", 1)
    mirror(f"sqlite:///{other}", study)
    assert held(f"sqlite:///{other}") == large


def test_no_epoch_is_divided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "MAX_METRICS", 10)
    lines = [(epoch, {f"m{i}": 0.0 for i in range(size)}) for epoch, size in enumerate((4, 4, 4, 12, 1, 10, 10))]
    assert [[epoch for epoch, _ in batch] for batch in batches(lines)] == [[0, 1], [2], [3], [4], [5], [6]]
    assert list(batches([])) == []


@pytest.mark.parametrize("closed", [False, True])
def test_a_driver_that_dies_before_a_run_is_ended_costs_nothing(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool):
    """Between the last values and the run's end; `closed`: another driver has ended the run as left open meanwhile."""
    from sqlalchemy.exc import OperationalError

    study = fake_study(tmp_path)
    trial, first = study.trials[0], Tracker(uri, study.name)
    parent = first.sweep_run(study)
    run_id = first.stage_run(trial, parent, "clean")

    def dies(*_: object) -> None:
        raise OperationalError("", {}, sqlite3.OperationalError("gone"))

    monkeypatch.setattr(first._client, "set_terminated", dies)
    with pytest.raises((TrackingError, OperationalError)):
        first.finish(trial)
    if closed:
        Tracker(uri, study.name).close_stale(parent)
    again = Tracker(uri, study.name)
    again.sweep_run(study)
    assert again.stage_run(trial, parent, "clean") == run_id
    again.finish(trial)
    run = again._client.get_run(run_id)
    assert run.info.status == "FINISHED" and COMPLETE in run.data.tags and ERROR not in run.data.tags
    for name in ("zeroshot/top1", "final/asr", "best/acc_at_asr_le_5"):
        steps = [metric.step for metric in again._client.get_metric_history(run_id, name)]
        assert len(steps) == len(set(steps)), f"{name} is doubled"
