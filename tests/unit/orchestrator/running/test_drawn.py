"""Sweeps whose values are drawn: `num_samples` counts trials, and what is at its end is not run again."""

import json
import time
from dataclasses import replace

import ray
from ray import tune

from orchestrator.commands.show import plan_rows, plan_text
from orchestrator.experiment.spec import Compute
from orchestrator.running.driver import _record, _recorded
from orchestrator.running.tuning import Context, Notes, _optuna, clean_sweep, told
from orchestrator.stages.base import At, seal
from orchestrator.stages.graph import stages
from orchestrator.stages.measured import measurements
from orchestrator.store import METRICS, Store
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.records import recorded_trials, remember_trial
from orchestrator.sweep.stored import load_study
from orchestrator.training.measuring import MEASURED
from tests.drawn_sweep import SWEEP
from tests.unit.fake_study import line

PLAN = make_plan(SWEEP)
OPTUNA = make_plan(replace(SWEEP, search="optuna"))
GRID = [(overrides, stages(experiment)["clean"]) for overrides, experiment in PLAN.grid]
ALIKE = {stage.fingerprint: (overrides, stage) for overrides, stage in GRID}


def lines(store, stage, epochs=2):
    folder = store.work("clean", stage.fingerprint)
    folder.mkdir(parents=True)
    (folder / METRICS).write_text("".join(json.dumps(line(epoch, 80.0, 3.0)) + "\n" for epoch in range(epochs)))


def finished(store, stage):
    with store.working(stage.kind, stage.fingerprint):
        folder, along = store.work(stage.kind, stage.fingerprint), {one.digest: {"from": 0, "names": []} for one in measurements(stage)}
        (folder / METRICS).write_text(json.dumps(line(1, 80.0, 3.0)) + "\n")
        (folder / MEASURED).write_text(json.dumps({"measured": along}))
        seal(stage, store, 1.0)


def test_draws_are_known_beforehand_and_are_the_same_every_time():
    assert len(GRID) == 5 and len(ALIKE) == 2, "five trials, of which two differ"
    again = make_plan(SWEEP).grid
    assert [overrides for overrides, _ in again] == [overrides for overrides, _ in GRID]
    more = make_plan(replace(SWEEP, num_samples=8)).grid
    assert [overrides for overrides, _ in more[:5]] == [overrides for overrides, _ in GRID]
    other = make_plan(replace(SWEEP, num_samples=40, seed=1)).grid
    assert [o for o, _ in other] != [o for o, _ in make_plan(replace(SWEEP, num_samples=40)).grid]
    assert {o["clean.method.inmodal_weight"] for o, _ in other} == {1.0, 2.0}


def test_each_point_of_the_grids_has_its_own_draws():
    space = {"clean.lr": tune.loguniform(1e-4, 1e-2), "pretrain.seed": tune.grid_search([0, 1]), "clean.pairs": tune.randint(64, 96)}
    grid = make_plan(replace(SWEEP, space=space, num_samples=3)).grid
    assert len(grid) == 6 and len({o["clean.lr"] for o, _ in grid}) == 6
    assert all(list(o) == list(space) and type(o["clean.pairs"]) is int and 64 <= o["clean.pairs"] < 96 for o, _ in grid)


def test_the_plan_counts_cleanings_and_trials(tmp_path):
    rows = plan_rows(PLAN, Compute(store=str(tmp_path)), None)
    assert sum(row["stage"] == "clean" for row in rows) == 2
    assert "1 pre-training, 2 cleanings. 5 trials are drawn" in plan_text(PLAN, Compute(store=str(tmp_path)), rows)


def test_what_is_at_its_end_is_not_run_again_and_starts_no_ray(tmp_path):
    """A finished trial and one that the scheduler stopped; of each several draws."""
    store = Store(tmp_path)
    (first, done), (second, stopped) = ALIKE.values()
    finished(store, done)
    lines(store, stopped)
    remember_trial(store, PLAN.fingerprint, stopped.fingerprint, second, status="stopped")
    trials = clean_sweep(PLAN, [stages(SWEEP.base)["pretrain"].fingerprint], At(store=store, compute=SWEEP.compute))
    assert not ray.is_initialized()
    assert [trial.status for trial in trials] == ["finished" if o == first else "stopped" for o, _ in GRID]
    study = load_study(PLAN, store)
    assert study.pretrains == [] and study.missing == 0
    assert sorted(trial.status for trial in study.trials) == ["finished", "stopped"], "each cleaning once"
    _record(PLAN, store, trials)
    assert _recorded(PLAN, store) is None, "the pre-training is not there"
    finished(store, stages(SWEEP.base)["pretrain"])
    assert _recorded(PLAN, store) == trials and len(trials) == 5


def test_optuna_counts_draws_and_continues_those_that_did_not_end(tmp_path):
    store = Store(tmp_path)
    (first, done), (second, other) = ALIKE.values()
    finished(store, done)
    for draw in range(3):
        remember_trial(store, OPTUNA.fingerprint, done.fingerprint, first, draw=draw)
    remember_trial(store, OPTUNA.fingerprint, other.fingerprint, second)
    known, _ = _optuna(dict(OPTUNA.sweep.space), OPTUNA, store)
    assert [trial.status for trial in known] == ["finished"] * 3, "three trials of one cleaning; the fourth goes on"
    lines(store, other)
    remember_trial(store, OPTUNA.fingerprint, other.fingerprint, second, status="stopped")
    known, _ = _optuna(dict(OPTUNA.sweep.space), OPTUNA, store)
    assert sorted(trial.status for trial in known) == ["finished"] * 3 + ["stopped"]
    assert [record.draw for record in recorded_trials(OPTUNA, store)] == [0, 1, 2, 0], "in the order in which they were begun"


def test_draws_stay_in_their_order_when_the_clock_is_set_back(tmp_path, monkeypatch):
    store, now = Store(tmp_path), time.time_ns
    (first, done), (second, other) = ALIKE.values()
    for hours, (values, stage, draw) in enumerate([(first, done, 0), (second, other, 0), (first, done, 1), (second, other, 1)]):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: now() - hours * 3600 * 10**9)
        remember_trial(store, OPTUNA.fingerprint, stage.fingerprint, values, draw=draw)
    found = [(record.trial, record.draw) for record in recorded_trials(OPTUNA, store)]
    assert found == [(stage.fingerprint[:12], draw) for draw in (0, 1) for stage in (done, other)]


def test_tune_is_told_what_a_sweep_can_name_and_no_more():
    """It keeps every metric of every trial in the driver's memory."""
    fine, poisoned = line(1, 80.0, 4.0), line(2, 90.0, 50.0)
    many = {f"train/norm_{number}": 1.0 for number in range(100)}
    for one in (fine, poisoned):
        one["metrics"] |= {"zeroshot/top5": 99.0, **many}
    assert told([fine, poisoned]) == {"epoch": 2, "zeroshot/top1": 90.0, "zeroshot/top5": 99.0, "best/acc_at_asr_le_5": 80.0}
    assert told([poisoned])["best/acc_at_asr_le_5"] == 0.0


class Started:
    def __init__(self, number, config):
        self.trial_id, self.config = f"t{number}", config


def test_a_draw_that_is_started_again_is_the_same_draw(tmp_path):
    store = Store(tmp_path)
    (first, done), (second, other) = ALIKE.values()
    context = Context(SWEEP, str(tmp_path), SWEEP.compute, {}, {}, OPTUNA.fingerprint)
    notes = Notes(OPTUNA, context, store)
    for number, values in enumerate((first, first, second)):
        notes.begun(Started(number, values))
        notes.begun(Started(number, values))  # its process died
    assert len(recorded_trials(OPTUNA, store)) == 3
    finished(store, done)
    notes = Notes(OPTUNA, context, store)  # the driver was killed
    notes.begun(Started(7, second))
    assert len(recorded_trials(OPTUNA, store)) == 3
    notes.stopped(Started(7, second))
    notes.begun(Started(8, first))
    assert [record.status for record in recorded_trials(OPTUNA, store)] == ["", "", "stopped", ""]


def test_records_of_an_older_version_are_read(tmp_path):
    store = Store(tmp_path)
    (first, done), _ = ALIKE.values()
    folder = store.root / "sweep" / f".trials-{OPTUNA.fingerprint[:12]}"
    folder.mkdir(parents=True)
    (folder / f"{done.fingerprint[:12]}.json").write_text(json.dumps(first))
    [record] = recorded_trials(OPTUNA, store)
    assert (record.overrides, record.status, record.draw) == (first, "", 0)
