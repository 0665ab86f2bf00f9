"""Pre-trainings that do not wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from orchestrator.override import override_all
from orchestrator.plan import make_plan
from orchestrator.results import load_study
from orchestrator.spec import Compute, Sweep
from orchestrator.stages.base import At
from orchestrator.stages.graph import make_data, stages, trained_by
from orchestrator.store import Store, read_lines
from orchestrator.training import StageError, train_all
from tests.tiny_sweep import BASE


def test_one_of_several_pretrainings_diverges_and_the_others_are_kept(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    experiments = [
        override_all(BASE, {"pretrain.seed": 0}),
        override_all(BASE, {"pretrain.seed": 1, "pretrain.lr": 1e30}),
    ]
    at = At(store=store, compute=Compute(store=str(tmp_path)))
    make_data(BASE, at)
    with pytest.raises(StageError, match="diverged at step"):
        train_all([trained_by(experiment) for experiment in experiments], at)
    good, bad = (stages(experiment)["pretrain"].fingerprint for experiment in experiments)
    assert store.find("pretrain", good) and not store.find("pretrain", bad)

    (artefact,) = train_all([trained_by(experiments[0])], at)
    assert artefact.fingerprint == good, "found, not made again"


def kill_one(ready: Callable[[], bool] = lambda: True) -> None:
    """Kill the process that waits for one of the pre-trainings."""
    victim = None
    while victim is None or not ready():
        time.sleep(0.05)
        victim = next((p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_apart")), None)
    victim.kill()


def test_one_that_is_killed_in_its_middle_is_started_again_and_goes_on(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    experiments = [override_all(BASE, {"pretrain.seed": seed}) for seed in (0, 1)]
    wanted = [trained_by(experiment) for experiment in experiments]
    make_data(BASE, At(store=store))
    finished: list[int] = []

    def kill() -> None:
        kill_one(ready=lambda: bool(list(tmp_path.glob("pretrain/*/epoch_0001"))))
        finished.append(len(list(tmp_path.glob("pretrain/*/manifest.json"))))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    made = train_all(wanted, At(store=store, compute=Compute(store=str(tmp_path), retries=1)))
    thread.join()
    assert finished[0] < 2, "one was killed before both had ended"
    for artefact in made:
        lines = read_lines(artefact.folder / "metrics.jsonl")
        assert [line["epoch"] for line in lines] == list(range(BASE.pretrain.epochs + 1))


def test_the_process_of_one_is_killed_and_the_others_are_kept(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    experiments = [override_all(BASE, {"pretrain.seed": seed}) for seed in (0, 1)]
    wanted = [trained_by(experiment) for experiment in experiments]
    make_data(BASE, At(store=store))

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    with pytest.raises(StageError, match="pretrain mmcl-.* failed near step .* the same command continues"):
        train_all(wanted, At(store=store, compute=Compute(store=str(tmp_path), retries=0)))
    thread.join()
    kept = [store.find("pretrain", stages(experiment)["pretrain"].fingerprint) for experiment in experiments]
    assert sum(artefact is not None for artefact in kept) == 1, "its sibling went on"
    made = train_all(wanted, At(store=store, compute=Compute(store=str(tmp_path))))
    assert len({artefact.fingerprint for artefact in made}) == 2


def test_a_prior_is_trained_once_without_the_poison_and_the_pretrainings_start_from_it(ray_session, tmp_path):
    store = Store(str(tmp_path))
    store.prepare()
    prior = replace(BASE.pretrain, epochs=1)
    both = [override_all(replace(BASE, prior=prior), {"pretrain.epochs": 1, "pretrain.seed": seed}) for seed in (0, 1)]
    at = At(store=store, compute=Compute(store=str(tmp_path)))
    make_data(both[0], at)
    made = train_all([trained_by(experiment) for experiment in both], at)
    (healthy,) = (a for a in store.all() if a.manifest["name"] == "mmcl unpoisoned")
    assert not (healthy.folder / "gate.json").exists()
    last = read_lines(healthy.folder / "metrics.jsonl")[-1]["metrics"]
    for artefact in made:
        assert (artefact.folder / "gate.json").exists() and artefact.manifest["inputs"]["prior"] == healthy.fingerprint
        first = read_lines(artefact.folder / "metrics.jsonl")[0]["metrics"]
        assert first["zeroshot/top1_count"] == last["zeroshot/top1_count"] and first["asr/top1_count"] == last["asr/top1_count"]

    study = load_study(make_plan(Sweep(name="x", base=both[0])), store)
    assert [result.fingerprint for result in study.priors] == [healthy.fingerprint]
    assert [result.fingerprint for result in study.pretrains] == [made[0].fingerprint] and len(study.gates) == 1
