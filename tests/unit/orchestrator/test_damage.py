"""A finished stage that lost part of its folder is refused by name, and never taken for one that measured nothing."""

import json

import pytest

from datasets.errors import InputError
from orchestrator.commands.show import show
from orchestrator.results.cautions import diverged
from orchestrator.running.tuning import Trial
from orchestrator.stages.base import seal
from orchestrator.stages.graph import stages
from orchestrator.stages.trained import last_checkpoint
from orchestrator.store import FAILED, METRICS, Store, digest_of, write_json
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import line
from tests.unit.making import make_of
from trainers.checkpoint import STATE

PLAN = make_plan(SWEEP)
FILES = {
    "testset": {"classes.json": {"names": ["apple", "banana"], "templates": ["a {}"]}, "summary.json": {"kept": 2, "drops": {}}},
    "poison": {"summary.json": {"captions_with_target": 5, "victims": 5, "visibility": {"visible": 1.0}}},
}


@pytest.fixture
def store(tmp_path):
    """Holds the sweep's pre-training, its first cleaning, and what the gate judges by."""
    store = Store(tmp_path)
    for kind, files in FILES.items():
        stage = stages(PLAN.grid[0][1])[kind]
        with store.working(kind, stage.fingerprint) as folder:
            for name, content in files.items():
                write_json(folder / name, content)
            seal(stage, store, 1.0)
    for kind in ("pretrain", "clean"):
        stage = stages(PLAN.grid[0][1])[kind]
        with store.working(kind, stage.fingerprint) as folder:
            (folder / METRICS).write_text("".join(json.dumps(line(epoch, 80.0, 97.0)) + "\n" for epoch in range(3)))
            write_json(folder / "measured.json", {"measured": {}, "digest": digest_of({})})
            for epoch in ("epoch_0001", "epoch_0002"):
                (folder / epoch).mkdir()
                (folder / epoch / "open_clip_model.safetensors").write_text("")
            (folder / "epoch_0002" / STATE).write_text("")
            seal(stage, store, 1.0)
    return store


def test_a_whole_one_is_read(store):
    assert not list(store.root.rglob(STATE)), "a finished training keeps no state of its optimiser"
    study = load_study(PLAN, store)
    assert len(study.pretrains) == len(study.gates) == 1 and len(study.trials[0].metrics) == 3


def test_a_trial_that_failed_is_known_to_have_failed_once_its_sweep_is_over(store):
    trial = stages(PLAN.grid[1][1])["clean"]
    with store.working("clean", trial.fingerprint) as folder:
        (folder / METRICS).write_text(json.dumps(line(0, 80.0, 97.0)) + "\n")
        write_json(folder / FAILED, {"kind": "diverged", "error": "step 3: loss is nan", "rank": 0})
    failed = load_study(PLAN, store).trials[1]
    assert (failed.status, failed.error, diverged(failed)) == ("failed", "step 3: loss is nan", True)
    assert load_study(PLAN, store, live=True).trials[1].status == "running", "Tune may try it again"


def test_a_trial_that_failed_before_its_first_line_is_not_counted_as_finished(store):
    ran = [Trial(PLAN.grid[1][0], stages(PLAN.grid[1][1])["clean"].fingerprint, "failed", "it broke")]
    (failed,) = load_study(PLAN, store, ran).trials
    assert (failed.status, failed.error, failed.metrics) == ("failed", "it broke", [])


@pytest.mark.parametrize("harm", [
    lambda path: path.unlink(),
    lambda path: path.write_text(""),
    lambda path: path.write_text(path.read_text()[:-40]),
    lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1])),
    lambda path: path.write_text("not JSON\n"),
    lambda path: path.write_text(json.dumps({"epoch": 0}) + "\n"),
])
@pytest.mark.parametrize(("kind", "name"), [("pretrain", METRICS), ("clean", METRICS), ("pretrain", "measured.json")])
def test_lost_or_broken_metrics_are_refused_and_listed(store, capsys, harm, kind, name):
    [file] = store.root.glob(f"{kind}/*-*/{name}")
    harm(file)
    with pytest.raises(InputError, match=f"{name} is .*show --verify.*delete the folder") as error:
        load_study(PLAN, store)
    assert str(file) in str(error.value)
    assert show(str(store.root), None, True) == 1
    if name == METRICS:
        assert show(str(store.root), None, False) == 1
        assert capsys.readouterr().out.count(f"DAMAGED {METRICS}") == 2


def test_the_last_checkpoint_is_never_an_earlier_one(store):
    pretrained = store.find("pretrain", stages(SWEEP.base)["pretrain"].fingerprint)
    assert last_checkpoint(pretrained).name == "epoch_0002"
    (pretrained.folder / "epoch_0002" / "open_clip_model.safetensors").write_text("changed")
    with pytest.raises(InputError, match="epoch_0002/open_clip_model.safetensors is not as its stage wrote it"):
        last_checkpoint(pretrained)
    (pretrained.folder / "epoch_0002" / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match="epoch_0002/open_clip_model.safetensors is missing"):
        last_checkpoint(pretrained)


def test_a_data_stage_without_one_of_its_files_is_not_used(tmp_path):
    stage = stages(SWEEP.base)["poison"]
    store = Store(tmp_path)
    found = make_of(store, stage, lambda folder: (folder / "rows.npy").touch())
    (found.folder / "rows.npy").unlink()
    with pytest.raises(InputError, match="rows.npy is missing"):
        make_of(store, stage)
