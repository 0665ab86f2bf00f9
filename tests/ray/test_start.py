"""A Ray that starts late, that dies under a run, and that lost a node: each in a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.experiments import ROOT, TINY, UPSTREAM, furnish, start, stop, wait_for


def python(program: str, *arguments: str, **environment: str) -> subprocess.Popen:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", program, *arguments], cwd=ROOT, env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def ready(process: subprocess.Popen) -> list[psutil.Process]:
    """Wait until the program says READY; what it has started."""
    assert process.stdout is not None
    while "READY" not in (line := process.stdout.readline()):
        assert line, "ended early"
    return psutil.Process(process.pid).children(recursive=True)


SLOW = """
import time
command = open("/proc/self/cmdline").read()
if "dashboard/agent.py" in command or "runtime_env/agent/main.py" in command:
    time.sleep(17)
"""
"""What a busy machine does: Ray's agents need longer than the 15 s that the raylet gives them."""


LATE = """
import psutil
from pathlib import Path
from orchestrator.cluster import session, start
from orchestrator.console.log import hearing
session.set_environment()
import ray
with hearing(print):
    start.start({"address": "local", "num_cpus": 1, "object_store_memory": 80_000_000})
inodes = {}
for child in psutil.Process().children(recursive=True):
    for link in Path(f"/proc/{child.pid}/fd").iterdir():
        try:
            inodes[link.readlink().name] = child.name()
        except OSError:
            pass
for name in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            print("LISTENS", words[1].split(":")[0], inodes[f"socket:[{words[9]}]"])
print("GCS", sum(child.name() == "gcs_server" for child in psutil.Process().children(recursive=True)))
ray.shutdown()
"""


def test_a_ray_that_starts_late_is_tried_again_in_a_short_folder_on_loopback() -> None:
    with tempfile.TemporaryDirectory(prefix="a-long-name-for-temporary-files-") as long:
        (Path(long) / "sitecustomize.py").write_text(SLOW)
        process = python(LATE, TMPDIR=long, PYTHONPATH=f"{long}{os.pathsep}{ROOT}")
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            stop(process)
    assert process.returncode == 0, output
    assert "too long for Ray's sockets" in output and "starting Ray …" in output
    assert "Ray did not start: its raylet ended by itself" in output and "trying once more" in output
    [folder] = [line.rsplit(" ", 1)[1] for line in output.splitlines() if "too long" in line]
    assert len(list(Path(folder).glob(f"session_*_{process.pid}"))) == 1, "the first attempt's is gone"
    assert "GCS 1" in output, "the first attempt's servers are gone"
    listens = [line.split() for line in output.splitlines() if line.startswith("LISTENS")]
    assert {"gcs_server", "raylet"} <= {words[2] for words in listens}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # 127.0.0.1, the same as IPv6, ::1
    assert {words[1] for words in listens} <= loopback, output


DYING = """
import sys, time
from orchestrator.cluster import session
from orchestrator.cluster.waiting import RayEnded, watching
session.set_environment()
import ray
session.connect(1, object_store_bytes=80_000_000)
try:
    with watching():
        waited = ray.remote(lambda: time.sleep(600)).remote()
        print("READY")
        ray.get(waited)
except RayEnded as ended:
    print("ENDED", ended)
    session.abandon()
    sys.exit(1)
"""


def test_a_raylet_that_dies_under_a_run_is_told_in_a_sentence() -> None:
    process = python(DYING)
    try:
        children = ready(process)
        [victim] = [child for child in children if child.name() == "raylet"]
        victim.kill()
        output, _ = process.communicate(timeout=60)
    finally:
        stop(process)
    assert process.returncode == 1, output
    [line] = output.splitlines()
    assert line.startswith("ENDED Ray's") and "killed" in line and "continues" in line
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE], "nothing of it is left"


def test_nothing_of_a_killed_drivers_ray_stays() -> None:
    """The agents are stopped, so that they cannot end by themselves; a busy machine or a dead GCS keeps them for a minute."""
    process, folder = python(DYING), ""
    try:
        children = ready(process)
        [raylet] = [child for child in children if child.name() == "raylet"]
        [folder] = {word.split("=")[1] for word in raylet.cmdline() if word.startswith("--session_dir=")}
        reader = subprocess.Popen(["tail", "-f", f"{folder}/logs/raylet.out"], stdout=subprocess.DEVNULL)
        agents = [child for child in raylet.children() if "Agent" in child.cmdline()[0]]
        assert len(agents) == 2, [child.cmdline() for child in raylet.children()]
        for agent in agents:
            agent.suspend()
        process.kill()
        _, left = psutil.wait_procs(children, timeout=60)
        assert not left and reader.poll() is None, "who reads its logs goes on"
    finally:
        reader.kill()
        stop(process)
        for child in children:
            if child.is_running():
                child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_whose_gcs_dies_ends_with_a_sentence_and_leaves_no_scratch(tiny_store: Path, tmp_path: Path) -> None:
    furnish(tmp_path, tiny_store, *UPSTREAM)
    process = start("run", TINY, "--store", str(tmp_path), "--clean.epochs", "100")
    try:
        wait_for(lambda: list(tmp_path.glob("clean/.*/epoch_*")), process)
        [victim] = [child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == "gcs_server"]
        victim.kill()
        output, _ = process.communicate(timeout=120)
    finally:
        stop(process)
    assert process.returncode == 1, output
    [line] = [line for line in output.splitlines() if line.startswith("cleansweep: ")]
    assert "Ray's GCS" in line and "the same command continues" in line
    assert "Traceback" not in output and "rpc_client" not in output, output
    assert list((tmp_path / "ray").iterdir()) == []


LOST = """
import os, time
from orchestrator.cluster import session
from orchestrator.cluster.waiting import Wanted, watching
from orchestrator.console.log import hearing
session.set_environment()
import ray
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
lost = made.add_node(num_cpus=2, object_store_memory=80_000_000)
os.environ["RAY_ADDRESS"] = made.address
session.connect()
said = []
def say(line):
    print(line)
    said.append(line)
def until(word):
    end = time.monotonic() + 90
    while not any(word in line for line in said):
        assert time.monotonic() < end, word
        time.sleep(0.1)
    said.clear()
with hearing(say), watching(poll_s=0.5, grace_s=1.0, again_s=2.0) as wants:
    wants(Wanted("pretrain mmcl-0", 3, 1.0))
    time.sleep(4)
    assert not said, said
    for process in [one.process for group in lost.all_processes.values() for one in group]:
        process.kill()
    until("is lost")
    until("WAITING")
    until("WAITING")
    wants(Wanted("a trial", 1, 1.0))
    time.sleep(3)
    assert not said, "what is there is enough for it"
session.shutdown()
made.shutdown()
"""


def test_a_cluster_that_lost_a_node_says_what_it_waits_for() -> None:
    process = python(LOST)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        stop(process)
    assert process.returncode == 0, output
    line = next(line for line in output.splitlines() if line.startswith("WAITING"))
    assert line.startswith("WAITING pretrain mmcl-0 needs 3 times 1 CPU; the cluster has 1 CPUs on 1 node now (lost: "), line

