"""A measurement is no part of what it measures: one more trains nothing, and looks at what is stored."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.triggers.blended import Blended
from datasets.triggers.native import Native
from orchestrator.stages.graph import stages
from orchestrator.stages.measured import lines_of, measurements
from orchestrator.store import Store
from orchestrator.sweep.plan import check_measurements, make_plan
from orchestrator.training.job import load_model
from orchestrator.training.measuring import MEASURED, _remember, read_measured
from tests.experiments import artefacts
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from trainers.checkpoint import epoch_folder
from trainers.evaluate.analysis import Analysis
from trainers.evaluate.another_set import ZeroShotOn
from trainers.evaluate.base import Evaluator
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.other_trigger import OtherTrigger
from trainers.evaluate.zeroshot import ZeroShotASR

SMALL = replace(SWEEP, base=replace(BASE, clean=replace(BASE.clean, epochs=2, warmup_steps=1)), space={})


@dataclass(frozen=True, kw_only=True)
class Norm(Evaluator):
    """The length of a weight."""

    power: float = 2.0

    def measure(self, model: Any, batches: Any, world: Any = None) -> dict[str, float]:
        return {"norm/text": float(torch.linalg.vector_norm(model.model.text_projection.detach(), self.power))}


def with_evaluators(*evaluators: Evaluator, **evaluate: Any) -> Any:
    return replace(SMALL, base=replace(SMALL.base, evaluate=replace(BASE.evaluate, evaluators=evaluators, **evaluate)))


def trained(store: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for kind in ("pretrain", "clean") for path in store.glob(f"{kind}/*/*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("measured") / "store"
    code, said, _ = run_here(SMALL, store)
    assert code == 0, said
    return store


def test_one_more_evaluator_trains_nothing_and_measures_what_is_stored(finished: Path) -> None:
    before = trained(finished)
    assert artefacts(finished, "measure") == {}, "what is measured while it trains is not measured again"
    code, said, study = run_here(with_evaluators(Norm(), Analysis()), finished)
    assert code == 0 and trained(finished) == before, said
    assert len(artefacts(finished, "measure")) == 4
    [source], [trial] = study.pretrains, study.trials
    for stage, epochs in ((source, (1, 2)), (trial, (2,))):
        have = [line["epoch"] for line in stage.metrics if "norm/text" in line["metrics"]]
        assert set(epochs) <= set(have), "of every stored checkpoint"
        assert all(("pairs/clean_cosine" in line["metrics"]) == (line["epoch"] in have) for line in stage.metrics)
        assert all("zeroshot/top1" in line["metrics"] for line in stage.metrics)
    again = {path: path.stat().st_mtime_ns for path in finished.glob("measure/*/manifest.json")}
    assert run_here(with_evaluators(Norm(), Analysis()), finished)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in finished.glob("measure/*/manifest.json")} == again
    assert not any("norm/text" in line["metrics"] for line in run_here(SMALL, finished)[2].pretrains[0].metrics)


def test_what_is_removed_of_a_finished_sweep_is_made_again(finished: Path, tmp_path: Path) -> None:
    store, sweep = tmp_path / "store", with_evaluators(Norm())
    shutil.copytree(finished, store)
    shutil.rmtree(store / "measure", ignore_errors=True)  # other tests' measurements
    assert run_here(sweep, store)[0] == 0
    before = {kind: set(artefacts(store, kind)) for kind in ("measure", "pretrain", "clean")}
    for kind in before:
        [*_, gone] = artefacts(store, kind).values()
        shutil.rmtree(gone)
        code, said, study = run_here(sweep, store)
        assert code == 0 and len(study.pretrains) == len(study.trials) == 1, said
        assert set(artefacts(store, kind)) == before[kind]
        assert all("norm/text" in stage.metrics[-1]["metrics"] for stage in (*study.pretrains, *study.trials))


def test_it_is_what_is_measured_while_it_trains(finished: Path, tmp_path: Path) -> None:
    sweep = with_evaluators(Norm(power=1.0))
    code, said, along = run_here(sweep, tmp_path / "store")
    assert code == 0 and artefacts(tmp_path / "store", "measure") == {}, said
    later = run_here(sweep, finished)[2]
    for one, other in zip(along.pretrains + along.trials, later.pretrains + later.trials, strict=True):
        assert one.fingerprint == other.fingerprint
        mine = {line["epoch"]: line["metrics"].get("norm/text") for line in one.metrics}
        for line in other.metrics:
            assert line["metrics"].get("norm/text", mine[line["epoch"]]) == mine[line["epoch"]]


def test_other_triggers_are_measured_on_what_is_stored(finished: Path) -> None:
    """The attack's own gives the attack's own ASR of every stored checkpoint; a second one leaves the first as it was measured."""
    before, known = trained(finished), set(artefacts(finished, "measure"))
    own = OtherTrigger(trigger=BASE.poison.trigger, name="own")
    stored = OtherTrigger(trigger=Native(trigger=BASE.poison.trigger), name="stored")  # pictures are stored as large as they are seen
    code, said, study = run_here(with_evaluators(own, stored), finished)
    assert code == 0 and trained(finished) == before, said
    for stage, epochs in ((study.pretrains[0], [1, 2]), (study.trials[0], [2])):
        lines = {line["epoch"]: line["metrics"] for line in stage.metrics if "other/own/asr_top1" in line["metrics"]}
        assert list(lines) == epochs
        for values in lines.values():
            for name in ("top1", "top5", "top1_count", "floor", "ra", "n", "top1_high"):
                assert values[f"other/own/asr_{name}"] == values[f"other/stored/asr_{name}"] == values[f"asr/{name}"]
    first = set(artefacts(finished, "measure")) - known
    code, said, study = run_here(with_evaluators(own, OtherTrigger(trigger=Blended(), target="circle", name="haze")), finished)
    assert code == 0 and trained(finished) == before, said
    assert len(first) == 4 and len(set(artefacts(finished, "measure")) - known - first) == 2
    assert "other/haze/asr_top1" in study.trials[0].metrics[-1]["metrics"]


def test_another_seed_of_the_evaluation_measures_accuracy_and_asr_anew(finished: Path) -> None:
    before = trained(finished)
    code, said, study = run_here(with_evaluators(seed=5), finished)
    assert code == 0 and trained(finished) == before, said
    made = [json.loads((folder / "manifest.json").read_text()) for folder in artefacts(finished, "measure").values()]
    assert sum(manifest["name"].startswith("accuracy and ASR") for manifest in made) == 2
    measured = [line for line in study.pretrains[0].metrics if "asr/top1" in line["metrics"]]
    assert [line["epoch"] for line in measured] == [1, 2], "epoch 0 has no checkpoint"


def test_accuracy_on_another_set_has_that_sets_classes_and_prompts(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "colours").mkdir()
    views = np.stack([np.full((32, 32, 3), 40 * grey, np.uint8) for grey in range(6)])
    for grey, picture in enumerate(views):
        folder = tmp_path / "colours" / ("grass", "sea")[grey // 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{grey}.png")
    other = EvalSet(path=str(tmp_path / "colours"), layout="folder", templates=("a patch of {}",))
    before = trained(finished)
    code, said, study = run_here(with_evaluators(ZeroShotOn(data=other, name="colours")), finished)
    assert code == 0 and trained(finished) == before, said
    metrics = study.trials[0].metrics[-1]["metrics"]
    found = {name.removeprefix("zeroshot_on/colours/"): value for name, value in metrics.items() if name.startswith("zeroshot_on/")}
    assert found["n"] == 6 and found["top5"] == 100 and metrics["zeroshot/n"] > 6
    store = Store(finished)
    model = load_model(BASE, str(epoch_folder(store.find("clean", study.trials[0].fingerprint).folder, 2)))
    batch = {"image": views, "label": np.repeat([0, 1], 3), "key": np.arange(6).astype(str)}
    alone = ZeroShotASR(class_names=("grass", "sea"), templates=("a patch of {}",)).measure(model, [batch])
    assert found == {name.removeprefix("zeroshot/"): value for name, value in alone.items()}
    code, said, _ = run_here(with_evaluators(LinearProbe(train=other), ZeroShotOn(data=other, name="colours")), finished)
    assert code == 2 and "are not the 4 of the test set" in said
    with pytest.raises(InputError, match="evaluator.name is ''"):
        ZeroShotOn(data=other)


def test_what_was_measured_for_a_part_of_a_training_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / MEASURED
    _remember(file, {"a": ["x"], "b": ["y"]}, 0)
    _remember(file, {"a": ["x"], "c": ["z"]}, 3)
    half, late = {"names": ["y"], "from": 0, "until": 3}, {"names": ["z"], "from": 3}
    assert read_measured(file) == {"a": {"names": ["x"], "from": 0}, "b": half, "c": late}
    file.write_text(file.read_text().replace("x", "y"))
    with pytest.raises(InputError, match="measured.json is not as it was written"):
        _remember(file, {"a": ["x"]}, 4)


def test_what_others_measured_is_not_taken_for_what_is_wanted(finished: Path) -> None:
    store, stage = Store(finished), stages(with_evaluators(seed=9).base)["pretrain"]
    assert all("zeroshot/top1" not in line["metrics"] and "train/loss" in line["metrics"] for line in lines_of(store, stage)[1:])
    assert [one.name for one in measurements(stage)] == ["accuracy and ASR of mmcl"]


def test_a_checkpoint_that_is_gone_and_a_sweep_over_measurements_are_told(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "store")
    [model] = artefacts(tmp_path / "store", "pretrain").values()
    shutil.rmtree(model / "epoch_0001")
    code, said, _ = run_here(with_evaluators(Norm(power=3.0)), tmp_path / "store")
    assert code == 2 and str(model / "epoch_0001") in said and "missing" in said
    with pytest.raises(InputError, match="space evaluate.seed: a measurement is no part of a training"):
        check_measurements(make_plan(replace(SMALL, space={"evaluate.seed": {"grid_search": [0, 1]}})))
    both = {"evaluate.seed": {"grid_search": [0]}, "pretrain.seed": {"grid_search": [0, 1]}}
    check_measurements(make_plan(replace(SMALL, space=both)))


def test_an_evaluator_says_how_often_it_measures(tmp_path: Path) -> None:
    sweep = with_evaluators(Norm(every=0))
    longer = replace(sweep, base=replace(sweep.base, clean=replace(BASE.clean, epochs=3, warmup_steps=1)))
    code, said, study = run_here(longer, tmp_path / "store")
    assert code == 0, said
    for stage in [*study.pretrains, *study.trials]:
        assert [line["epoch"] for line in stage.metrics if "norm/text" in line["metrics"]] == [stage.metrics[-1]["epoch"]]
    assert [Norm(every=2).due(epoch, 5) for epoch in range(6)] == [True, False, True, False, True, True]
    assert artefacts(tmp_path / "store", "measure") == {}
