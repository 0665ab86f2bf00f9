"""Pre-trainings that do not wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil
import pytest

from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Compute
from orchestrator.running.stages_on_ray import train_all
from orchestrator.stages.base import At
from orchestrator.stages.graph import make_data, trained_by
from orchestrator.store import Store, read_lines
from orchestrator.training.ray_train import StageError
from tests.tiny_sweep import BASE


def kill_one(ready: Callable[[], bool]) -> None:
    """Kill the process that waits for one of the pre-trainings."""
    victim = None
    while victim is None or not ready():
        time.sleep(0.05)
        victim = next((p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_apart")), None)
    victim.kill()


def test_one_diverges_and_one_is_killed_and_started_again_and_those_that_train_are_kept(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    experiments = [override_all(BASE, {"pretrain.seed": seed}) for seed in (0, 1)]
    diverging = trained_by(override_all(BASE, {"pretrain.seed": 2, "pretrain.lr": 1e30}))
    wanted = [trained_by(experiment) for experiment in experiments]
    at = At(store=store, compute=Compute(store=str(tmp_path), retries=1))
    make_data(BASE, at)
    finished: list[int] = []

    def kill() -> None:
        kill_one(ready=lambda: bool(list(tmp_path.glob("pretrain/*/epoch_0001"))))
        finished.append(len(list(tmp_path.glob("pretrain/*/manifest.json"))))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(StageError, match="diverged at step"):
        train_all([*wanted, diverging], at)
    thread.join()
    assert finished[0] < 2, "one was killed before both had ended"
    assert store.find("pretrain", diverging.fingerprint) is None
    made = [store.find("pretrain", stage.fingerprint) for stage in wanted]
    for artefact in made:
        assert artefact is not None
        lines = read_lines(artefact.folder / "metrics.jsonl")
        assert [line["epoch"] for line in lines] == list(range(BASE.pretrain.epochs + 1))
    assert train_all(wanted, at) == made, "found, not made again"
