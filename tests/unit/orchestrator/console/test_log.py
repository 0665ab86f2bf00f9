"""The log of a run: every record with time, level, stage and rank; a file for each process."""

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.cluster.session import quiet
from orchestrator.commands import cli
from orchestrator.commands.show import show
from orchestrator.console import log
from orchestrator.console.log import hearing, recording
from orchestrator.stages.graph import stages
from orchestrator.store import NOTES, Store
from orchestrator.training.job import Job, making
from tests.experiments import ROOT
from tests.tiny_sweep import SWEEP
from trainers.distributed import World

RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})  (\w+) *  (.+?)  (driver|rank \d+)  (.*)")


def records(file: Path) -> list[tuple[str, ...]]:
    """(level, stage, rank, message) of each record."""
    found = [RECORD.fullmatch(line) for line in file.read_text().splitlines()]
    assert all(found), file.read_text()
    return [match.groups()[1:] for match in found if match]


def test_a_run_has_a_folder_and_every_record_its_stage(tmp_path, said):
    stage = stages(SWEEP.base)["index"]
    with recording(tmp_path, "My sweep!"):
        log.log.info("starting")
        with log.making(str(stage)):
            log.say("NOTE two shards hold no sample")
            log.log.debug("of no interest")
        log.log.error("trial 0123 failed", extra={"stage": "clean x-0123"})
    log.log.info("after the end")
    [folder] = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"my-sweep-\d{8}-\d{6}-\d+", folder.name)
    assert records(folder / "driver.log") == [
        ("INFO", "-", "driver", "starting"),
        ("NOTE", str(stage), "driver", "two shards hold no sample"),
        ("DEBUG", str(stage), "driver", "of no interest"),
        ("ERROR", "clean x-0123", "driver", "trial 0123 failed"),
    ]
    assert said == ["starting", "NOTE two shards hold no sample", "FAILED trial 0123 failed", "after the end"]


WORKER = """
import sys
from orchestrator.console import log
log.join(sys.argv[1])
with log.making("pretrain mmcl-012345678901", 1):
    log.log.info("begins")
log.log.info("waits")
"""


def test_a_worker_process_has_a_file_of_its_own_with_its_rank(tmp_path):
    with recording(tmp_path, "tiny"):
        log.join(log.folder())  # where the driver itself makes a stage it goes on as it is
        subprocess.run([sys.executable, "-c", WORKER, log.folder()], cwd=ROOT, check=True, timeout=300)
        log.log.info("ends")
    driver, worker = sorted((tmp_path / "logs").glob("*/*.log"), key=lambda file: file.name != "driver.log")
    assert records(driver) == [("INFO", "-", "driver", "ends")]
    assert records(worker) == [("INFO", "pretrain mmcl-012345678901", "rank 1", "begins"), ("INFO", "-", "rank 0", "waits")]


def test_what_a_stages_process_notes_lies_in_the_stages_folder_and_its_failure_in_the_log(tmp_path):
    job = Job(experiment=SWEEP.base, inputs=None, folder=str(tmp_path), compute=SWEEP.compute, stage="clean x-0123")  # type: ignore[arg-type]
    with recording(tmp_path, "tiny"), pytest.raises(InputError), making(job, World()):
        log.note("no room")
        log.log.info("of the log alone")
        raise InputError("batch_size is 3")
    assert (tmp_path / NOTES).read_text() == "NOTE no room\n"
    [file] = (tmp_path / "logs").glob("*/driver.log")
    text = file.read_text()
    assert "clean x-0123  rank 0  of the log alone" in text and "Traceback" in text and "InputError: batch_size is 3" in text
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in text.splitlines()), "lines of several files can be put in order"


def test_the_logs_of_a_store_are_no_artefacts(tmp_path, capsys):
    store = Store(tmp_path)
    stage = stages(SWEEP.base)["cleanset"]
    with store.working(stage.kind, stage.fingerprint):
        store.seal(stage.kind, stage.name, stage.fingerprint, config={}, inputs={}, seconds=1.0)
    with recording(store.root, "a" * 11 + "-b"):
        log.log.info("x")
    assert [artefact.folder.parent.name for artefact in store.all()] == ["cleanset"] and store.damaged() == []
    assert show(str(tmp_path), None, True) == 0 and "logs" not in capsys.readouterr().out
    assert show(str(tmp_path), stage.fingerprint[:12], True) == 0


def test_warnings_of_python_and_what_ray_says_go_to_the_file_and_not_to_the_terminal(tmp_path, said, capsys, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray._private import log as ray_log
    from ray._private import worker

    shown: list[object] = []
    monkeypatch.setattr(ray_log.PlainRayHandler, "emit", ray_log.PlainRayHandler.emit)
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data))
    with recording(tmp_path, "tiny"):
        quiet()
        logging.getLogger("ray").error("a warning of Ray's")
        logging.getLogger("ray.tune.tune").warning("a table of Tune's")
        coloured = "\x1b[33mWARNING: 8 PYTHON worker processes\x1b[0m"
        worker.print_to_stdstream({"lines": [coloured], "pid": "raylet", "is_err": False}, False)
        worker.print_to_stdstream({"lines": ["hello"], "pid": "123", "is_err": False}, False)
        with warnings.catch_warnings():
            logging.captureWarnings(True)
            warnings.simplefilter("always")
            warnings.warn("an odd number", stacklevel=1)
    assert ray is not None and shown == [{"lines": ["hello"], "pid": "123", "is_err": False}], "what a worker prints is asked for"
    text = next((tmp_path / "logs").glob("*/driver.log")).read_text()
    for told in ("DEBUG    -  driver  ray: a warning of Ray's", "ray.tune.tune: a table", "  raylet: WARNING: 8 PYTHON", "an odd number"):
        assert told in text
    assert said == [] and capsys.readouterr().err == ""


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, said):
    (tmp_path / "logs").write_text("a file")
    with recording(tmp_path, "tiny"):
        log.log.info("goes on")
    assert said == ["goes on"]


@pytest.mark.parametrize(("line", "level"), [
    ("NOTE no room", log.NOTE), ("WARNING x", logging.WARNING), ("WAITING for a GPU", log.WAITING), ("FAILED trial", logging.ERROR),
    ("NOTED", logging.INFO), ("index: 3 shards, 50 %s", logging.INFO), ("", logging.INFO),
])  # fmt: skip
def test_the_first_word_of_a_line_is_its_level_and_the_line_is_shown_as_it_was(line: str, level: int):
    lines: list[str] = []
    levels: list[int] = []
    with hearing(lines.append, wanted=lambda record: (levels.append(record.levelno), True)[1]):
        log.say(line)
    assert lines == [line] and levels == [level]


def test_control_characters_in_names_do_not_reach_the_terminal(said):
    log.note("a\x1b[2Jb\n    indented")
    assert said == ["NOTE a\\x1b[2Jb\n    indented"]


@pytest.mark.parametrize("command", ["run", "poison", "evaluate", "analyse", "export", "export-best", "ingest", "fetch"])
def test_a_wrong_level_is_one_sentence(command: str, capsys):
    assert cli.run([command, "--log-level", "loud"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--log-level: invalid choice: 'loud'" in error
    assert all(level in error for level in log.LEVELS)


def test_the_level_decides_what_the_terminal_gets(tmp_path, capsys, monkeypatch):
    def handler(options):
        log.log.debug("details")
        log.log.info("begins")
        log.note("no room")
        log.log.warning("the attack did not take")
        log.log.error("trial 0123")
        return 0

    monkeypatch.setitem(cli.HANDLERS, "ingest", handler)
    lines = ["details", "begins", "NOTE no room", "WARNING the attack did not take", "FAILED trial 0123"]
    for number, level in enumerate(("debug", "info", "warning", "error")):
        assert cli.run(["ingest", "a", "b", "--log-level", level]) == 0
        assert capsys.readouterr().err.splitlines() == lines[[0, 1, 3, 4][number] :]
    assert cli.run(["ingest", "a", "b"]) == 0
    assert capsys.readouterr().err.splitlines() == lines[1:]


def test_the_logs_of_the_last_runs_are_kept(tmp_path, monkeypatch):
    """By when something was last written, not by name: a run that began long ago and still writes keeps its log."""
    monkeypatch.setattr(log, "KEPT_LOGS", 3)
    logs = tmp_path / "logs"
    for number in range(5):
        run = logs / f"sweep-20200101-00000{number}-1"
        run.mkdir(parents=True)
        (run / "driver.log").write_text("x")
        for path in (run, run / "driver.log"):
            os.utime(path, (1000 + number, 1000 + number))
    os.utime(logs / "sweep-20200101-000000-1" / "driver.log", (5000, 5000))
    (logs / "my own notes").mkdir()
    os.utime(logs / "my own notes", (1, 1))
    with recording(tmp_path, "new"):
        log.log.info("said")
        with recording(tmp_path, "inner"):
            log.log.info("of the same command")
    left = sorted(path.name for path in logs.iterdir())
    assert left[0] == "my own notes" and left[1].startswith("new-")
    assert left[2:] == ["sweep-20200101-000000-1", "sweep-20200101-000004-1"]
    assert [record[-1] for record in records(logs / left[1] / "driver.log")] == ["said", "of the same command"]


@pytest.mark.parametrize("earlier", [0, 1, 25, 48, 49, 50, 60])
def test_as_many_logs_are_kept_as_there_may_be(earlier: int, tmp_path):
    for number in range(earlier):
        (tmp_path / "logs" / f"sweep-20200101-{number:06d}-1").mkdir(parents=True)
    with recording(tmp_path, "new"):
        log.log.info("said")
    assert len(list((tmp_path / "logs").iterdir())) == min(earlier + 1, log.KEPT_LOGS)


def test_the_log_of_this_run_is_kept_though_all_others_are_of_a_time_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "KEPT_LOGS", 3)
    for number in range(3):
        run = tmp_path / "logs" / f"sweep-20990101-00000{number}-1"
        run.mkdir(parents=True)
        os.utime(run, (4e9 + number, 4e9 + number))
    with recording(tmp_path, "new"):
        log.log.info("said")
    left = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert left[0].startswith("new-") and left[1:] == ["sweep-20990101-000001-1", "sweep-20990101-000002-1"]
    assert [record[-1] for record in records(tmp_path / "logs" / left[0] / "driver.log")] == ["said"]
