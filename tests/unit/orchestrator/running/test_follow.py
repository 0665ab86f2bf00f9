"""The lines of progress: nothing of an earlier attempt, and a time left that does not jump."""

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.console import live
from orchestrator.console.progress import SMOOTHING_S, clock, left, meter, smoothed
from orchestrator.running.follow import Follower, Mirror
from orchestrator.stages.graph import stages
from orchestrator.store import Store, write_lines
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from orchestrator.tracking.tracker import Tracker
from tests.tiny_sweep import SWEEP


@pytest.fixture
def following(tmp_path: Path, said: list[str]):
    """(the follower of a sweep, the folder of its unfinished pre-training, what was said) with progress of an earlier attempt."""
    plan, store = make_plan(SWEEP), Store(tmp_path)
    stage = stages(plan.upstream[0][1])["pretrain"]
    folder = store.work(stage.kind, stage.fingerprint)
    folder.mkdir(parents=True)
    write(folder, step=20)
    line = {"epoch": 0, "step": 0, "seconds": 0.0, "metrics": {"zeroshot/top1": 25.0, "asr/top1": 1.0}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    mirror = Mirror(Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny"))
    return Follower(plan, store, mirror), folder, said, lambda: load_study(plan, store, live=True)


def write(folder: Path, **fields: float) -> None:
    (folder / "progress.json").write_text(json.dumps({"step": 0, "total": 24, "rate": 100.0, "batch_size": 32} | fields))


def test_progress_of_an_earlier_attempt_is_not_shown(following):
    follower, folder, said, study = following
    follower._tell(study())
    follower._tell(study())
    assert len(said) == 1 and said[0].endswith("starting workers") and "pretrain MMCL" in said[0]
    write(folder, step=21)
    follower._tell(study())
    assert len(said) == 2 and "21/24 steps" in said[1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"step": "a", "total": 1, "rate": 1, "batch_size": 1}'])
def test_progress_that_cannot_be_read_is_left_out(following, content: bytes):
    follower, folder, said, study = following
    (folder / "progress.json").write_bytes(content)
    (folder / "notes.txt").write_bytes(b"a note\xff\n")
    follower._tell(study())
    assert said[0].startswith("a note") and said[1].endswith("starting workers") and len(said) == 2


def test_a_failure_that_would_come_again_is_said_at_once_and_once(following):
    follower, folder, said, study = following
    write(folder, step=4)
    (folder / "failed.json").write_text(json.dumps({"kind": "input", "error": "Mine.train returned nothing", "rank": 0}))
    follower._tell(study())
    follower._tell(study())
    assert len(said) == 1 and said[0].endswith("failed: Mine.train returned nothing")


@pytest.mark.parametrize("off_s", [-3600, 3600])
def test_a_failure_is_this_attempts_if_it_was_written_since_whatever_the_clock_of_the_disk(following, off_s: int):
    follower, folder, said, study = following
    write(folder, step=4)

    def fail() -> None:
        (folder / "failed.json").write_text(json.dumps({"kind": "input", "error": "the same", "rank": 0}))
        os.utime(folder / "failed.json", (time.time() + off_s,) * 2)

    fail()
    later = Follower(follower._plan, follower._store, follower._mirror)
    later._tell(study())
    assert [line for line in said if "failed" in line] == [], "it is left from before"
    (folder / "failed.json").unlink()  # as a stage that begins does
    fail()
    later._tell(study())
    assert [line for line in said if "failed" in line] == [said[-1]] and said[-1].endswith("failed: the same")


def test_notes_of_a_stage_that_ended_between_two_looks_are_said_once_and_never_by_the_next_run(tmp_path, said):
    plan, store = make_plan(SWEEP), Store(tmp_path)
    made = stages(plan.grid[0][1])
    for number, kind in enumerate(("pretrain", "clean")):
        stage = made[kind]
        mirror = Mirror(Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny"))
        with Follower(plan, store, mirror), store.working(kind, stage.fingerprint) as folder:
            (folder / "notes.txt").write_text(f"NOTE of {kind}\n")
            found = store.seal(kind, stage.name, stage.fingerprint, config={}, inputs={}, seconds=1.0)
        assert found.manifest["files"] == {} and said == ["NOTE of pretrain", "NOTE of clean"][: number + 1]


def test_the_rate_is_the_plain_average_at_first_and_follows_slowly():
    rate = smoothed()
    assert rate(100, 5.0) == 0  # what was done before it was first asked does not count
    assert rate(110, 6.0) == pytest.approx(10)
    for second in range(7, 400):
        steady = rate(100 + 10 * (second - 5), float(second))
    assert steady == pytest.approx(10)
    paused = rate(100 + 10 * 394, 402.0)
    assert 8.5 < paused < 10, "a pause of 3 s moves it by less than 3 s in SMOOTHING_S do"
    fast = rate(100 + 10 * 394 + 1000, 402.0 + SMOOTHING_S)
    assert paused < fast < 1000 / SMOOTHING_S


def test_the_rate_of_equal_amounts_does_not_depend_on_how_often_it_is_asked():
    often, seldom = smoothed(since=0.0), smoothed(since=0.0)
    for tenth in range(1, 1001):
        many = often(tenth * 0.7, tenth / 10)
    assert many == pytest.approx(seldom(700, 100.0)) == pytest.approx(7)


def test_a_clock_and_a_rate_of_nothing():
    assert (clock(3723.9), left(10, 0.0), left(10, 2.0)) == ("1:02:03", "unknown", "0:00:05")


def test_a_meter_says_rate_and_time_left(said):
    progress = meter("index", "shards", every_s=0.0)
    progress(1, 4)
    progress(4, 4)
    assert said[0].startswith("index  1/4 shards  ") and said[1].endswith("ETA 0:00:00")


def view_of(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def rows(view: live.View) -> list[str]:
    """The view as it is drawn now, without trailing blanks."""
    plain = Console(file=io.StringIO(), width=view.console.width)
    plain.print(view.table())
    return [line.rstrip() for line in plain.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_view_has_one_line_for_each_running_stage_and_an_ended_one_is_a_line_above(following):
    follower, folder, said, study = following
    with live.viewing(view_of(80)) as view:
        follower._tell(study())
        assert rows(view)[-1].split() == ["pretrain", "MMCL", "(bcf016)", "starting", "workers"]
        write(folder, step=6)
        follower._tell(study())
        head, line = rows(view)
        assert head.split() == ["rate", "ETA", "accuracy", "ASR"]
        assert re.fullmatch(r"pretrain MMCL \(bcf016\) +━+╸?━* +100 samples/s +0:00:05 +25.0 % +1.0 %", line) and len(line) <= 80
        (folder / "failed.json").write_text(json.dumps({"kind": "diverged", "error": "loss is not finite", "rank": 0}))
        follower._tell(study())
        assert view._shown == {} and said[-1] == "WARNING pretrain MMCL (bcf016)  failed: loss is not finite"


def test_a_stage_that_has_ended_is_said_once_with_what_it_measured(tmp_path, said):
    plan, store = make_plan(SWEEP), Store(tmp_path)
    follower = Follower(plan, store, None)  # type: ignore[arg-type]
    stage = stages(plan.upstream[0][1])["pretrain"]
    with live.viewing(view_of(80)) as view:
        with store.working(stage.kind, stage.fingerprint) as folder:
            os.utime(store.lock(stage.kind, stage.fingerprint), (time.time() - 3600,) * 2)  # the disk's clock is behind
            for _ in range(2):
                follower._tell(load_study(plan, store, live=True))
            assert [one.more for one in view._shown.values()] == ["starting workers"], "before it has measured anything"
            lines = [{"epoch": 0, "step": 0, "seconds": 83.0, "metrics": {"zeroshot/top1": 25.0, "asr/top1": 1.0}}]
            write_lines(folder / "metrics.jsonl", lines)
            store.seal(stage.kind, stage.name, stage.fingerprint, config={}, inputs={}, seconds=83.0)
        for _ in range(2):
            follower._tell(load_study(plan, store, live=True))
        assert view._shown == {}
    assert said == [
        "pretrain MMCL (bcf016)  starting workers",
        "pretrain MMCL (bcf016)  finished in 0:01:23  accuracy 25.0 %  ASR 1.0 %",
    ]
    Follower(plan, store, None)._tell(load_study(plan, store, live=True))  # type: ignore[arg-type]
    assert len(said) == 2, "the next run does not say it again"
