"""MLflow holds what the study holds: once, whatever was interrupted, and says clearly when it cannot."""

import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.results.kinds import attack_text
from orchestrator.results.outcome import StageResult, Study
from orchestrator.running.follow import Mirror
from orchestrator.tracking.runs import FINGERPRINT, MAX_PARAM, STUDY
from orchestrator.tracking.server import absolute_uri, redacted, serve, ui_command, views
from orchestrator.tracking.tracker import DRIVER, ERROR, NONFINITE, Tracker, TrackingError
from tests.unit.fake_study import fake_study, line


def log(tracker: Tracker, study: Study) -> str:
    """What the driver does for a whole study."""
    parent = tracker.sweep_run(study)
    for role, results in (("pretrain", study.pretrains), ("clean", study.trials)):
        for result in results:
            tracker.stage_run(result, parent, role, {"note": "x"})
            tracker.finish(result)
    tracker.view(study)
    tracker.finish_sweep(parent, study)
    tracker.close_stale(parent)
    return parent


def runs(uri: str):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quickstart")
    return client, list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_a_stage_whose_pairs_were_analysed_has_a_picture_of_them(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    for entry in study.pretrains[0].metrics:
        entry["metrics"] |= {f"pairs/{kind}_{name}": 0.5 for kind in ("clean", "poisoned") for name in ("cosine", "cosine_sd")}
    parent = log(Tracker(uri, study.name, tmp_path / "files"), study)
    client, found = runs(uri)
    pictured = [run for run in found if "analysis.png" in {file.path for file in client.list_artifacts(run.info.run_id)}]
    assert [run.data.tags["cleansweep.fingerprint"] for run in pictured] == [study.pretrains[0].fingerprint]
    assert pictured[0].data.metrics["pairs/clean_cosine"] == 0.5 and pictured[0].data.tags["mlflow.parentRunId"] == parent


def test_a_pretraining_names_its_attacks():
    def told(**config: object) -> str:
        return attack_text(StageResult(stage="pretrain", name="", fingerprint="", folder=Path(), config=config))

    patch = {"trigger": {"class": "datasets.triggers.patch.Patch"}, "target": "banana"}
    words = {"trigger": {"class": "lab.Mark", "label": "a mark"}, "target": "cat", "count": 5}
    assert told(poison=patch) == "Patch → banana" and told(poison=None, attacks=()) == told() == ""
    assert told(poison=None, attacks=[patch, words, patch | {"count": 0}]) == "Patch → banana, a mark → cat"


def test_every_stage_is_a_run_once_with_every_epoch_once(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    parent = log(Tracker(uri, study.name), study)
    assert log(Tracker(uri, study.name), study) == parent  # another driver, the same command
    client, found = runs(uri)
    results = {r.fingerprint: r for r in [*study.pretrains, *study.trials]}
    assert len(found) == 1 + len(results)
    for run in found:
        tags = run.data.tags
        assert tags["cleansweep.commit"] == "0123abc" and tags["cleansweep.data"] == study.data_hash
        if run.info.run_id == parent:
            assert run.info.status == "FINISHED" and "mlflow.parentRunId" not in tags
            assert run.data.metrics["best/acc_at_asr_le_5"] > 90
            continue
        result = results.pop(tags["cleansweep.fingerprint"])
        assert tags["mlflow.parentRunId"] == parent and tags["role"] == result.stage
        assert run.info.status == ("FAILED" if result.status == "failed" else "FINISHED")
        history = client.get_metric_history(run.info.run_id, "zeroshot/top1")
        expected = [(x["epoch"], x["metrics"]["zeroshot/top1"]) for x in result.metrics]
        assert sorted((m.step, m.value) for m in history) == expected
    assert not results
    failed = next(run for run in found if run.info.status == "FAILED")
    assert "train/mmcl is nan" in failed.data.tags["cleansweep.error"]
    assert "train/loss = nan at epoch 2" in failed.data.tags["cleansweep.nonfinite"]
    assert {a.path for a in client.list_artifacts(parent)} >= {"config.json", "poison.json"}
    assert {a.path for a in client.list_artifacts(failed.info.run_id)} == {"config.json", "checkpoint.json"}


def test_what_is_measured_of_a_finished_stage_is_added_to_its_run_once(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    mirror = Mirror(Tracker(uri, study.name))
    mirror.sync(study)
    stage, trial = study.pretrains[0], study.trials[0]
    for result in (stage, trial):
        for entry in result.metrics[1:]:
            entry["metrics"]["shift/cosine"] = 10.0 + entry["epoch"]
    mirror.sync(study)  # measured while the same driver goes on
    trial.metrics[-1]["metrics"]["gap/late"] = 3.0
    for _ in range(2):  # two further drivers
        log(Tracker(uri, study.name), study)
    client, found = runs(uri)
    for result in (stage, trial):
        (run,) = (run for run in found if run.data.tags["cleansweep.fingerprint"] == result.fingerprint)
        added = client.get_metric_history(run.info.run_id, "shift/cosine")
        assert sorted((m.step, m.value) for m in added) == [(entry["epoch"], 10.0 + entry["epoch"]) for entry in result.metrics[1:]]
        assert len(client.get_metric_history(run.info.run_id, "zeroshot/top1")) == len(result.metrics)
        assert run.info.status == "FINISHED" and run.data.metrics.get("gap/late") == (3.0 if result is trial else None)


def test_nothing_is_kept_of_the_values_of_runs_that_have_ended_and_later_ones_are_added_all_the_same(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    tracker = Tracker(uri, study.name)
    parent = tracker.sweep_run(study)
    for trial in study.trials:
        run_id = tracker.stage_run(trial, parent, "clean")
        tracker.finish(trial)
    assert set(tracker._held) == {parent}
    for one in trial.metrics:
        one["metrics"]["later/top1"] = 50.0 + one["epoch"]
    assert tracker.stage_run(trial, parent, "clean") == run_id
    tracker.finish(trial)
    history = tracker._client.get_metric_history(run_id, "later/top1")
    assert sorted((metric.step, metric.value) for metric in history) == [(x["epoch"], 50.0 + x["epoch"]) for x in trial.metrics]
    epochs = [metric.step for metric in tracker._client.get_metric_history(run_id, "asr/top1")]
    assert sorted(epochs) == [x["epoch"] for x in trial.metrics] and set(tracker._held) == {parent}


def test_a_killed_driver_leaves_nothing_running_and_nothing_doubled(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    trial = study.trials[0]
    whole = trial.metrics
    first = Tracker(uri, study.name)
    parent = first.sweep_run(study)
    trial.metrics = whole[:3]
    run_id = first.stage_run(trial, parent, "clean")
    first.sync(trial)
    first.sync(trial)
    del first  # the driver dies here, both runs RUNNING

    second = Tracker(uri, study.name)
    assert second.sweep_run(study) == parent
    assert second.stage_run(trial, parent, "clean") == run_id
    trial.metrics = whole
    second.finish(trial)
    orphan = second.stage_run(study.trials[1], parent, "clean")
    second.finish_sweep(parent, study)
    assert second.close_stale(parent) == [orphan]
    client, found = runs(uri)
    assert len(found) == 3 and not any(run.info.status == "RUNNING" for run in found)
    steps = [m.step for m in client.get_metric_history(run_id, "asr/top1")]
    assert sorted(steps) == [x["epoch"] for x in whole]


def test_a_clock_that_was_set_back_ends_no_run_before_it_began_and_the_newest_value_is_shown(uri: str, tmp_path: Path, monkeypatch):
    study = fake_study(tmp_path)
    trial, now = study.trials[0], time.time
    whole = trial.metrics
    first = Tracker(uri, study.name)
    parent = first.sweep_run(study)
    trial.metrics, trial.status = whole[:2], "failed"
    run_id = first.stage_run(trial, parent, "clean")
    first.finish(trial)
    left = first.stage_run(study.trials[1], parent, "clean")
    first.finish_sweep(parent, study, status="FAILED")
    before = first._client.get_run(parent).data.metrics

    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    second = Tracker(uri, study.name)
    trial.metrics, trial.status = [*whole[:-1], line(whole[-1]["epoch"], 99.9, 0.1)], "finished"
    assert second.sweep_run(study) == parent and second.stage_run(trial, parent, "clean") == run_id
    second.finish(trial)
    second.finish_sweep(parent, study)
    assert second.close_stale(parent) == [left]
    client, found = runs(uri)
    assert len(found) == 3 and all(run.info.end_time >= run.info.start_time for run in found)
    after = client.get_run(parent).data.metrics
    assert after["best/acc_at_asr_le_5"] == 99.9 and before["best/acc_at_asr_le_5"] < 99.9


def test_runs_of_a_dead_driver_of_an_older_sweep_are_closed(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    tracker = Tracker(uri, study.name)
    old = tracker.sweep_run(study)
    tracker._client.set_tag(old, DRIVER, f"{socket.gethostname()}:{gone.pid}")
    alive = fake_study(tmp_path)
    alive.fingerprint = "a" * 64
    other = tracker.sweep_run(alive)
    tracker._client.set_tag(other, DRIVER, f"another-host:{gone.pid}")
    study.fingerprint = "b" * 64
    mine = tracker.sweep_run(study)
    assert set(tracker.close_stale(mine)) == {old, mine}


def test_a_failed_trial_that_later_succeeds_loses_its_error(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    trial = study.trials[0]
    tracker = Tracker(uri, study.name)
    parent = tracker.sweep_run(study)
    run_id = tracker.stage_run(trial, parent, "clean")
    trial.status, trial.error = "failed", "WorkerDied"
    tracker.finish(trial)
    trial.status, trial.error = "finished", None
    again = Tracker(uri, study.name)
    again.stage_run(trial, again.sweep_run(study), "clean")
    again.finish(trial)
    run = again._client.get_run(run_id)
    assert run.info.status == "FINISHED" and ERROR not in run.data.tags


def test_values_that_are_not_finite_cost_only_themselves(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    trial = study.trials[0]
    trial.metrics = [line(1, 90, 10, **{"train/loss": math.inf, "train/lr": 1e-3})]
    tracker = Tracker(uri, study.name)
    run_id = tracker.stage_run(trial, tracker.sweep_run(study), "clean")
    tracker.finish(trial)
    data = tracker._client.get_run(run_id).data
    assert "train/loss" not in data.metrics and data.metrics["train/lr"] == 1e-3
    assert data.tags[NONFINITE] == "train/loss = inf at epoch 1"
    trial.metrics = [*trial.metrics, line(2, 90, 10, **{"train/loss": math.nan})]
    tracker._client.delete_tag(run_id, NONFINITE)  # as if the driver had been killed before it was written
    again = Tracker(uri, study.name)
    again.stage_run(trial, again.sweep_run(study), "clean")
    again.finish(trial)
    told = again._client.get_run(run_id).data.tags[NONFINITE]
    assert told == "train/loss = inf at epoch 1; train/loss = nan at epoch 2"


def test_what_an_audit_found_is_told_once_for_each_epoch(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    stage = study.pretrains[0]
    tracker = Tracker(uri, study.name)
    run_id = tracker.stage_run(stage, tracker.sweep_run(study), "pretrain")
    tracker.finish(stage)
    fingerprint = tracker._client.get_run(run_id).data.tags[FINGERPRINT]
    study_tag = tracker._client.get_run(run_id).data.tags[STUDY]
    for _ in range(2):
        for epoch, value in ((1, 10.0), (3, 20.0), (2, 20.0)):
            tracker.audited(study_tag, fingerprint, "PGD", "aaaa", {"robust": value}, epoch)
    history = tracker._client.get_metric_history(run_id, "audit/PGD/robust")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 10.0), (2, 20.0), (3, 20.0)]
    for again in (tracker, Tracker(uri, study.name)):  # another command, other settings under the same name; then both once more
        again.audited(study_tag, fingerprint, "PGD", "bbbb", {"robust": 50.0}, 1)
        again.audited(study_tag, fingerprint, "PGD", "aaaa", {"robust": 10.0}, 1)
        again.audited(study_tag, fingerprint, "PGD, ε = 1/255", "cccc", {"robust": 60.0}, 1)
    data = tracker._client.get_run(run_id).data
    names = {name: value for name, value in data.metrics.items() if name.startswith("audit/")}
    assert names == {"audit/PGD/robust": 20.0, "audit/PGD bbbb/robust": 50.0, "audit/PGD_ ε _ 1/255/robust": 60.0}
    assert data.tags["audit/PGD"] == "aaaa"
    assert len(tracker._client.get_metric_history(run_id, "audit/PGD/robust")) == 3, "nothing is told twice"
    tracker._client.delete_tag(run_id, "audit/PGD")  # as an earlier version left it, which knew no such tag
    tracker.audited(study_tag, fingerprint, "PGD", "dddd", {"robust": 70.0}, 3)
    for setting, value in (("eeee", 1.0), ("ffff", 2.0)):
        tracker.audited(study_tag, fingerprint, "very long " * 30, setting, {"robust": value}, 1)
    data = tracker._client.get_run(run_id).data
    assert data.metrics["audit/PGD/robust"] == 20.0 and data.metrics["audit/PGD dddd/robust"] == 70.0
    assert {value for name, value in data.metrics.items() if name.startswith("audit/very long")} == {1.0, 2.0}


def test_long_and_odd_parameters_are_logged(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    study.config = {"words": "x" * 9000, "odd key [ä]": 1, **{f"k{i}": i for i in range(250)}}
    tracker = Tracker(uri, study.name)
    run_id = tracker.sweep_run(study)
    run = tracker._client.get_run(run_id)
    assert len(run.data.params["words"]) == MAX_PARAM and len(run.data.params) > 250


def test_the_view_is_stored_and_selects_this_study(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    tracker = Tracker(uri, study.name)
    tracker.sweep_run(study)
    path = tracker.view(study)
    assert path == tracker.view(study) and "viewStateShareKey=" in path
    tags = tracker._client.get_experiment_by_name(study.name).tags
    key = path.split("viewStateShareKey=")[1]
    assert study.fingerprint in tags[f"mlflow.sharedViewState.{key}"]
    assert views(uri) == {"quickstart": path}


def test_an_unreachable_server_is_named_quickly():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for uri in (f"http://127.0.0.1:{port}", f"postgresql://u:secret@127.0.0.1:{port}/db"):
        start = time.monotonic()
        with pytest.raises(InputError, match=f"127.0.0.1:{port}") as caught:
            Tracker(uri, "x").check()
        assert time.monotonic() - start < 12 and "secret" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing_is_given_up(tmp_path: Path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(InputError, match=uri):
            Tracker(uri, "x").check()
        assert time.monotonic() - start < 15


def test_folders_and_relative_paths():
    with pytest.raises(InputError, match="sqlite:///PATH"):
        absolute_uri("./mlruns")
    assert absolute_uri("sqlite:///here.db") == f"sqlite:///{Path.cwd() / 'here.db'}"
    assert redacted("postgresql://me:pw@host/db") == "postgresql://me:…@host/db"


def test_a_database_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        Tracker(f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}", "x").check()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="damaged.db"):
        Tracker(f"sqlite:///{damaged}", "x").check()


def test_a_locked_database_is_one_error_that_says_the_results_are_safe(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    tracker = Tracker(uri, study.name)
    tracker.stage_run(study.trials[0], tracker.sweep_run(study), "clean")
    holder = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TrackingError, match="safe in the store; the same command logs them later") as caught:
            tracker.sync(study.trials[0])
        assert uri in str(caught.value) and "\n" not in str(caught.value)
        with pytest.raises(InputError, match="locked"):
            Tracker(uri, study.name).check()
    finally:
        holder.close()
    tracker.finish(study.trials[0])  # and once it is free, nothing is missing or doubled
    _, found = runs(uri)
    assert sum(run.info.status == "FINISHED" for run in found) == 1


def test_the_pages_are_served_on_loopback_only(tmp_path: Path):
    command = ui_command(f"sqlite:///{tmp_path / 'mlflow.db'}", 5099)
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--workers") + 1] == "1"
    with pytest.raises(InputError, match="no tracking database"):
        serve(f"sqlite:///{tmp_path / 'none.db'}")


def test_checking_leaves_a_users_settings_alone(uri: str, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    Tracker(uri, "x").check()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"


def test_runs_are_called_by_what_tells_them_apart(uri: str, tmp_path: Path):
    study = fake_study(tmp_path)
    first, second, *others = study.trials
    titles = {first.fingerprint: "Wander, weight 1 on MMCL", second.fingerprint: "Wander, weight 3 on MMCL"}
    titles[study.pretrains[0].fingerprint] = "MMCL, seed 1"
    Mirror(Tracker(uri, study.name), titles).sync(study)
    called = {run.data.tags["cleansweep.fingerprint"]: run.info.run_name for run in runs(uri)[1]}
    assert called[first.fingerprint] == "Wander, weight 1 on MMCL" and called[second.fingerprint] == "Wander, weight 3 on MMCL"
    assert called[study.pretrains[0].fingerprint] == "pretrain MMCL, seed 1"
    assert all("on MMCL" in called[trial.fingerprint] for trial in others), "those that no plan knows: by their values"
