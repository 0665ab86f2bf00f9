"""A trial that Ray's monitor kills for its memory, within a limit as of a container: it is tried again, and the others go on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.limit import Limit, why_not
from tests.experiments import ROOT, stop

SWEEP = """
import sys, time
from pathlib import Path
from orchestrator.cluster import session
session.set_environment()
from ray import tune
from orchestrator.cluster.memory import let_tune_retry

def trial(config):
    marks = Path(sys.argv[1])
    (marks / f"{config['name']}-{len(list(marks.glob(config['name'] + '-*')))}").touch()
    if config["name"] == "hungry" and not (marks / "hungry-1").exists():
        eaten = [b"x" * (400 << 20)]
        while True:
            eaten.append(b"x" * (16 << 20))
            time.sleep(0.1)
    tune.report({"score": 1})

session.connect(1, object_store_bytes=80_000_000)
let_tune_retry()
tuner = tune.Tuner(
    tune.with_resources(trial, {"CPU": 1}), param_space={"name": tune.grid_search(["hungry", "modest"])},
    run_config=tune.RunConfig(storage_path=sys.argv[1] + "/tune", failure_config=tune.FailureConfig(max_failures=1), verbose=0),
)
print("ENDED", sorted((one.config["name"], one.error, one.metrics["score"]) for one in tuner.fit()))
session.shutdown()
"""


def test_a_trial_that_rays_monitor_kills_is_tried_again(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    (tmp_path / "sweep.py").write_text(SWEEP.replace("sys.argv[1]", repr(str(tmp_path))))
    limit = Limit(f"cschaos-test-{os.getpid()}")
    limit.set(2 << 30)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*limit.within, sys.executable, str(tmp_path / "sweep.py")], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=200)
    finally:
        stop(process)
        killed = limit.kills()
        limit.remove()
    assert killed == 0, "it was Ray that killed it"
    assert "ENDED [('hungry', None, 1), ('modest', None, 1)]" in output, output
    assert sorted(path.name for path in tmp_path.glob("*-?")) == ["hungry-0", "hungry-1", "modest-0"]
