"""A prior without the poison, and cleaning by clusters and by pseudo-labels through Tune: what is needed is made once and found again."""

from __future__ import annotations

from dataclasses import replace

from ray import tune

from orchestrator.experiment.spec import Compute, Sweep
from orchestrator.running.stages_on_ray import train_all
from orchestrator.running.tuning import clean_sweep
from orchestrator.stages.base import At
from orchestrator.stages.graph import make_data, stages, trained_by
from orchestrator.store import Artefact, Store, read_json, read_lines
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from tests.tiny_sweep import BASE
from trainers.methods.deep_clustering import DeepClustering
from trainers.methods.labels import Labels
from trainers.methods.pseudo_labels import PseudoLabels
from trainers.methods.shrink_perturb import ShrinkPerturb

TRAINED = replace(BASE.pretrain, epochs=1)
METHODS = [DeepClustering(clusters=8), ShrinkPerturb(then=PseudoLabels(labeller=TRAINED))]


def test_both_run_and_a_second_time_nothing_is_made(ray_session, tmp_path):
    store, compute = Store(str(tmp_path)), Compute(store=str(tmp_path))
    store.prepare()
    base = replace(BASE, pretrain=TRAINED, prior=TRAINED, clean=replace(BASE.clean, epochs=1, poisons=2))
    plan = make_plan(Sweep(name="x", base=base, space={"clean.method": tune.grid_search(METHODS)}))
    at = At(store=store, compute=compute)
    make_data(base, at)
    made = train_all([trained_by(base)], at)
    models = [start.fingerprint for start in made]
    check_prior(store, made)

    trials = clean_sweep(plan, models, at)
    assert [trial.status for trial in trials] == ["finished", "finished"], [trial.error for trial in trials]
    kinds = [artefact.manifest["stage"] for artefact in store.all()]
    assert kinds.count("pretrain") == 2 and kinds.count("labels") == 1, "prior and labeller are one"

    cleaned = stages(next(experiment for overrides, experiment in plan.grid if overrides["clean.method"] is METHODS[1]))
    labelled = store.find("labels", cleaned["labels"].fingerprint)
    labels = Labels.read(labelled.folder / "labels.parquet")
    summary = read_json(labelled.folder / "summary.json")
    assert len(labels.by_key) == summary["pictures"] == sum(summary["counts"].values()) == 96 and labels.classes == 4
    for trial in trials:
        lines = read_lines(store.find("clean", trial.fingerprint).folder / "metrics.jsonl")
        assert {"before/mmcl", "before/mmcl_grad_norm", "before/inmodal", "before/inmodal_grad_norm"} <= set(lines[0]["metrics"])
        assert "train/deep_clustering" in lines[1]["metrics"] and "before/mmcl" not in lines[1]["metrics"]

    study = load_study(plan, store)
    assert [result.fingerprint for result in study.pretrains] == models and len(study.priors) == len(study.gates) == 1

    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")}
    assert clean_sweep(plan, models, at) == trials
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/manifest.json")} == files


def check_prior(store: Store, made: list[Artefact]) -> None:
    """The prior was trained without the poison, and every pre-training starts from it."""
    (healthy,) = (artefact for artefact in store.all() if artefact.manifest["name"] == "mmcl unpoisoned")
    last = read_lines(healthy.folder / "metrics.jsonl")[-1]["metrics"]
    for artefact in made:
        assert artefact.manifest["inputs"]["prior"] == healthy.fingerprint
        first = read_lines(artefact.folder / "metrics.jsonl")[0]["metrics"]
        assert first["zeroshot/top1_count"] == last["zeroshot/top1_count"] and first["asr/top1_count"] == last["asr/top1_count"]
