"""The process beside a driver that ends what a killed driver leaves behind, with plain processes in the place of Ray's."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.cluster import orphans

DRIVER = """
import sys, time
from pathlib import Path
from orchestrator.cluster import orphans
place = Path(sys.argv[1])
print(orphans.Watch(place, []).process.pid, flush=True)
time.sleep(600)
"""
SLEEPING = "import sys, time; file = open(sys.argv[1]); sys.stdout.write('x'); sys.stdout.close(); time.sleep(600)"


def sleeping(program: str, *words: str, **options: object) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, start_new_session=True, **options)
    assert process.stdout is not None and process.stdout.read(1)
    return process


def test_what_works_in_a_session_of_a_killed_driver_ends_and_nothing_else(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    watch = psutil.Process(int(driver.stdout.readline()))
    own, other = tmp_path / f"session_a_{driver.pid}", tmp_path / f"session_b_{driver.pid}0"
    for session in (own, other):
        (session / "logs").mkdir(parents=True)
        (session / "logs" / "log").write_text("")
    log = str(own / "logs" / "log")
    agent = "/lib/ray/dashboard/agent.py"
    names, elsewhere = sleeping(SLEEPING, log, agent), sleeping(SLEEPING, str(other / "logs" / "log"), agent)
    script = sleeping(SLEEPING, log)  # somebody's own program, which reads the log
    writes = sleeping("import os; os.write(1, b'x'); import time; time.sleep(600)", stderr=open(log, "w"))  # noqa: SIM115
    reader = subprocess.Popen(["tail", "-f", log], stdout=subprocess.DEVNULL)
    try:
        assert watch.status() != psutil.STATUS_ZOMBIE and all(one.poll() is None for one in (names, writes, elsewhere, reader, script))
        driver.kill()
        driver.wait()
        assert names.wait(60) == writes.wait(60) == -9
        psutil.wait_procs([watch], timeout=60)
        assert not watch.is_running() or watch.status() == psutil.STATUS_ZOMBIE
        assert elsewhere.poll() is reader.poll() is script.poll() is None
    finally:
        for one in (driver, names, writes, elsewhere, reader, script):
            one.kill()
            one.wait()


def test_a_known_session_and_the_driver_itself_are_spared(tmp_path: Path) -> None:
    sessions = [tmp_path / f"session_{name}_{os.getpid()}" for name in ("old", "new")]
    for session in sessions:
        session.mkdir()
        (session / "log").write_text("")
    old, new = (sleeping(SLEEPING, str(session / "log"), "/lib/ray/agent.py") for session in sessions)
    try:
        with (sessions[1] / "log").open():
            orphans.end(str(tmp_path), os.getpid(), [sessions[0].name])
        assert new.wait(60) == -9 and old.poll() is None
    finally:
        for one in (old, new):
            one.kill()
            one.wait()
