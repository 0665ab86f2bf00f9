"""Which experiment of a sweep a checkpoint is measured by: its own where it is the store's, else the one that was chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orchestrator.cluster.streaming
from datasets.errors import InputError
from datasets.triggers.patch import Patch
from datasets.triggers.warped import Warped
from orchestrator.cluster import session
from orchestrator.commands.cli import run
from orchestrator.console.log import hearing
from orchestrator.stages.base import seal
from orchestrator.stages.graph import stages
from orchestrator.store import Store
from orchestrator.sweep.loading import load_sweep, narrowed
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.records import remember_trial
from orchestrator.sweep.targets import GIVEN, OWN, experiments_of
from tests.tiny_sweep import BASE, SWEEP
from tests.unit.trainers.evaluate.test_analysis import local_index
from trainers.checkpoint import export
from trainers.model import TinyViT
from trainers.objectives.contrastive import MMCLSSL

CLEAN: Any = BASE.clean
HEAD = """
from dataclasses import replace
from ray import tune
from datasets.triggers.warped import Warped
from datasets.triggers.blended import Blended
from orchestrator.experiment.spec import Sweep
from tests.tiny_sweep import BASE
from trainers.model import TinyViT
from trainers.objectives.contrastive import MMCL, MMCLSSL
POISON = BASE.poison
"""
SPACES = {
    "triggers": {"poison": "[POISON, replace(POISON, trigger=Warped(k=8)), replace(POISON, mode='label_consistent')]",
                 "pretrain.objective": "[MMCL(), MMCLSSL()]", "clean.lr": "[1e-3, 2e-3]"},
    "counts": {"poison.count": "[20, 5, 10]", "pretrain.seed": "[0, 1]"},
    "seeds": {"pretrain.seed": "[0, 1]", "clean.lr": "[1e-3, 2e-3]"},
    "targets": {"poison.target": "['banana', 'circle']"},
    "whole": {"poison.count": "[20, 5]",
              "pretrain": "[replace(BASE.pretrain, objective=MMCLSSL()), replace(BASE.pretrain, batch_size=16)]"},
    "models": {"pretrain": "[replace(BASE.pretrain, model=TinyViT(), epochs=n) for n in (1, 2)]"},
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    """sweep(name): a file with that sweep in it."""

    def write(name: str) -> str:
        space = ", ".join(f"{path!r}: tune.grid_search({values})" for path, values in SPACES[name].items())
        (tmp_path / f"{name}.py").write_text(f"{HEAD}SWEEP = Sweep(name={name!r}, base=BASE, space={{{space}}})\n")
        return str(tmp_path / f"{name}.py")

    return write


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store; what Ray makes of the shards is made in this process."""
    monkeypatch.setattr(orchestrator.cluster.streaming, "index_shards", local_index)
    monkeypatch.setattr(session, "connect", lambda cores: None)
    monkeypatch.setattr(session, "shutdown", lambda: None)
    return Store(tmp_path / "store")


def made(store: Store, experiment, kind: str = "pretrain", weights: bool = False) -> str:
    """An epoch folder of the experiment's stage, as if it had been trained."""
    stage = stages(experiment)[kind]
    with store.working(stage.kind, stage.fingerprint) as folder:
        (folder / "epoch_0001").mkdir()
        if weights:
            export(folder / "epoch_0001", experiment.pretrain.model.build(0))
        return str(seal(stage, store, 1.0).folder / "epoch_0001")


def warped(experiment):
    return replace(experiment, poison=replace(experiment.poison, trigger=Warped(k=8)))


def counted(count, experiment=BASE):
    return replace(experiment, poison=replace(experiment.poison, count=count))


def target(sweep, store, checkpoint, matters=OWN, said=None, **overrides):
    """The experiment that the checkpoint is measured by; the path's dots are written __."""
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    with hearing(([] if said is None else said).append):
        return experiments_of(load_sweep(sweep), given, [checkpoint], matters, str(store.root))[checkpoint]


# ---- the commands themselves ----------------------------------------------------------------------------------------------


def test_evaluate_stamps_the_warped_model_with_its_own_trigger(sweep, store, monkeypatch, capsys):
    stamped: list[type] = []

    def watched(kind, stamp):
        return lambda self, image_HWC, rng: (stamped.append(kind), stamp(self, image_HWC, rng))[1]

    for kind in (Patch, Warped):
        monkeypatch.setattr(kind, "stamp", watched(kind, kind.stamp))
    checkpoint = made(store, warped(BASE), weights=True)
    words = ["evaluate", sweep("triggers"), "--store", str(store.root), "--checkpoint", checkpoint, "--cache", "off"]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["asr/n"] > 0
    assert f"{checkpoint}: poison.trigger Warped, poison.mode dirty_label, pretrain.objective MMCL\n" in err
    assert stamped.count(Warped) > 0 and Patch not in stamped
    stamped.clear()
    assert run([*words, "--poison.trigger", "Patch", "--poison.mode", "dirty_label"]) == 0, "what the command line says goes before"
    assert Patch in stamped and Warped not in stamped


def test_analyse_looks_at_the_victims_that_each_model_saw(sweep, store, tmp_path, capsys):
    checkpoints = [made(store, counted(count), weights=True) for count in (5, 10)]
    words = ["analyse", sweep("counts"), "--store", str(store.root), "--out", str(tmp_path / "out"), "--checkpoint"]
    assert run([*words, *checkpoints]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(out)[one]["pairs/poisoned_n"] for one in checkpoints] == [5, 10]
    assert f"{checkpoints[0]}: poison.count 5, pretrain.seed 0\n" in err and f"{checkpoints[1]}: poison.count 10, pretrain" in err
    foreign = tmp_path / "elsewhere"
    foreign.mkdir()
    export(foreign, BASE.pretrain.model.build(0))
    assert run([*words, str(foreign)]) == 2
    err = capsys.readouterr().err
    assert "sweep counts" in err and "varies poison.count (20, 5, 10): choose one, e.g. --poison.count 20." in err
    assert run([*words, str(foreign), "--poison.count", "10"]) == 0
    assert json.loads(capsys.readouterr().out)[str(foreign)]["pairs/poisoned_n"] == 10


# ---- a checkpoint of the store --------------------------------------------------------------------------------------------


def test_a_cleaned_model_is_measured_as_its_pre_training_was(sweep, store):
    experiment = warped(replace(BASE, clean=replace(CLEAN, lr=2e-3)))
    of_the_sweep = made(store, experiment, "clean")
    of_another = made(store, replace(experiment, clean=replace(CLEAN, lr=0.5)), "clean")
    for checkpoint in (of_the_sweep, of_another, f"{of_the_sweep}/open_clip_model.safetensors"):
        Path(checkpoint).touch()
        assert target(sweep("triggers"), store, checkpoint).poison.trigger == Warped(k=8)


@pytest.mark.parametrize("kind", ["pretrain", "clean"])
def test_a_stage_that_is_not_finished_tells_by_its_folder(sweep, store, kind):
    experiment = warped(replace(BASE, clean=replace(CLEAN, lr=2e-3)))
    checkpoint = store.work(kind, stages(experiment)[kind].fingerprint) / "epoch_0001"
    checkpoint.mkdir(parents=True)
    assert target(sweep("triggers"), store, str(checkpoint)).poison.trigger == Warped(k=8)


def test_an_unfinished_cleaning_whose_values_were_drawn_is_found_among_the_trials_begun(tmp_path, store):
    (tmp_path / "drawn.py").write_text(
        f"{HEAD}SWEEP = Sweep(name='drawn', base=BASE, num_samples=2, space={{'poison.count': tune.grid_search([20, 5]), "
        "'clean.lr': tune.loguniform(1e-4, 1e-2)})\n"
    )
    experiment = counted(5, replace(BASE, clean=replace(CLEAN, lr=0.00123)))
    plan, stage = make_plan(load_sweep(str(tmp_path / "drawn.py"))), stages(experiment)["clean"]
    checkpoint = store.work("clean", stage.fingerprint) / "epoch_0001"
    checkpoint.mkdir(parents=True)
    with pytest.raises(InputError, match="does not tell"):
        target(str(tmp_path / "drawn.py"), store, str(checkpoint))
    remember_trial(store, plan.fingerprint, stage.fingerprint, {"poison.count": 5, "clean.lr": 0.00123})
    assert target(str(tmp_path / "drawn.py"), store, str(checkpoint)).poison.count == 5


def test_overrides_that_the_sweep_ran_with_and_others_for_this_measurement(sweep, store):
    longer = replace(counted(5), pretrain=replace(BASE.pretrain, epochs=7, seed=1))
    checkpoint = made(store, longer)
    said: list[str] = []
    found = target(sweep("counts"), store, checkpoint, said=said, pretrain__epochs="7", evaluate__seed="3", poison__target="circle")
    poison = replace(BASE.poison, count=5, target="circle")
    assert found == replace(longer, evaluate=replace(BASE.evaluate, seed=3), poison=poison)
    assert said == [f"{checkpoint}: poison.count 5, pretrain.seed 1, with --poison.target circle"]
    assert target(sweep("counts"), store, checkpoint, pretrain__epochs="7", poison__count="20").poison.count == 20, "also of what it varies"


def test_what_a_run_set_in_each_value_of_a_grid_is_found_so_and_its_seeds_are(sweep, store):
    """Here the 16 is no choice of the value that has it anyway."""
    ran = replace(counted(5), pretrain=replace(BASE.pretrain, objective=MMCLSSL(), batch_size=16, seed=4))
    checkpoint, given = made(store, ran), {"pretrain.batch_size": "16"}
    [found] = experiments_of(load_sweep(sweep("whole"), seeds=[3, 4]), given, [checkpoint], OWN, str(store.root)).values()
    assert found == ran
    with pytest.raises(InputError, match="does not tell"):
        target(sweep("whole"), store, checkpoint, pretrain__batch_size="16")


def test_a_model_before_the_poison_that_several_share_does_not_choose_among_them(sweep, store, tmp_path):
    text = Path(sweep("counts")).read_text().replace("base=BASE", "base=replace(BASE, prior=BASE.pretrain)")
    (tmp_path / "prior.py").write_text(text)
    checkpoint = made(store, replace(BASE, prior=BASE.pretrain), "prior")
    with pytest.raises(InputError, match=r"varies poison.count \(20, 5, 10\)"):
        target(str(tmp_path / "prior.py"), store, checkpoint)
    assert target(str(tmp_path / "prior.py"), store, checkpoint, matters=GIVEN).poison.target == "banana"


# ---- a checkpoint from elsewhere ------------------------------------------------------------------------------------------


def test_a_foreign_checkpoint_must_be_told_by_overrides(sweep, store, tmp_path):
    (tmp_path / "model.pt").touch()
    foreign = str(tmp_path / "model.pt")
    with pytest.raises(InputError) as error:
        target(sweep("triggers"), store, foreign)
    assert "poison.trigger (Patch, Warped) and poison.mode (dirty_label, label_consistent)" in str(error.value)
    assert "e.g. --poison.trigger Patch --poison.mode dirty_label" in str(error.value)
    assert target(sweep("triggers"), store, foreign, poison__trigger="warped").poison.trigger == Warped(k=8)
    assert target(sweep("triggers"), store, foreign, poison__mode="label_consistent").poison.trigger == BASE.poison.trigger
    with pytest.raises(InputError, match="varies poison.mode"):
        target(sweep("triggers"), store, foreign, poison__trigger="Patch")
    with pytest.raises(InputError, match="--poison.trigger Sig: .* it has Patch, Warped"):
        target(sweep("triggers"), store, foreign, poison__trigger="Sig")
    words = {"poison__trigger": "warped", "poison__mode": "label_consistent"}
    found = [target(sweep("triggers"), store, foreign, **dict(order)).poison for order in (words.items(), reversed(words.items()))]
    assert found[0] == found[1] and (found[0].trigger, found[0].mode) == (Warped(k=8), "label_consistent")
    assert target(sweep("triggers"), store, foreign, poison__trigger__k="16").poison.trigger == Warped(k=16), "only one has a k"
    assert target(sweep("targets"), store, foreign, poison__target="circle").poison.target == "circle"
    with pytest.raises(InputError, match="model.pt.* does not exist"):
        target(sweep("triggers"), store, foreign + "x")


def test_a_value_that_is_not_on_the_grid_is_taken_where_it_can_be_written(sweep, store, tmp_path):
    assert target(sweep("counts"), store, str(tmp_path), poison__count="7").poison.count == 7
    rate = target(sweep("counts"), store, str(tmp_path), poison__count="none", poison__rate="0.5").poison
    assert (rate.count, rate.rate) == (None, 0.5)
    with pytest.raises(InputError, match="--poison.count few|poison.count: 'few'.*whole number"):
        target(sweep("counts"), store, str(tmp_path), poison__count="few")
    with pytest.raises(InputError, match="--pretrain.objective nonsense: .* it has MMCL, MMCLSSL"):
        target(sweep("triggers"), store, str(tmp_path), pretrain__objective="nonsense")
    with pytest.raises(InputError, match="no field 'cuont'"):
        target(sweep("triggers"), store, str(tmp_path), poison__cuont="3")
    with pytest.raises(InputError, match="--pretrain: the sweep counts varies pretrain.seed itself"):
        target(sweep("counts"), store, str(tmp_path), pretrain="none")


def test_the_shards_of_one_poison_are_written_and_which_is_asked_for(sweep, monkeypatch, tmp_path, capsys):
    written = []
    took = lambda experiment, compute, out: written.append(experiment.poison.count) or {}
    monkeypatch.setattr("orchestrator.running.driver.write_poisoned", took)
    command = ["poison", sweep("counts"), "--out", str(tmp_path / "out")]
    assert run(command) == 2 and not written
    assert "varies poison.count (20, 5, 10): choose one, e.g. --poison.count 20" in capsys.readouterr().err
    assert run([*command, "--poison.count", "5"]) == run([*command, "--poison.count", "7"]) == 0 and written == [5, 7]
    assert run(["poison", sweep("seeds"), "--out", str(tmp_path / "out")]) == 0 and written[2] == BASE.poison.count


def test_where_nothing_that_matters_varies_any_checkpoint_goes_and_nothing_is_read(sweep, store, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.sweep.targets.stages", lambda experiment: pytest.fail("the shards may be on another machine"))
    for checkpoint in (str(tmp_path), "laion2b", made(store, warped(BASE))):
        said: list[str] = []
        assert target(sweep("seeds"), store, checkpoint, said=said, evaluate__seed="4").poison == BASE.poison and not said
    assert target(sweep("models"), store, str(tmp_path)).pretrain.model == TinyViT(), "the model of all trials, though not of the base"
    assert target(sweep("counts"), store, str(tmp_path), matters=GIVEN).poison.trigger == BASE.poison.trigger, "no pairs are looked at"


def test_a_model_that_was_trained_with_another_trigger_is_measured_and_that_is_said(sweep, store):
    other = warped(BASE)
    poisoned = stages(other)["poison"]
    with store.working("poison", poisoned.fingerprint):
        seal(poisoned, store, 1.0)
    for kind in ("pretrain", "clean"):
        said: list[str] = []
        target(sweep("seeds"), store, made(store, other, kind), said=said)
        assert len(said) == 1 and said[0].startswith("NOTE ") and "Warped" in said[0].split(" and is measured with ")[0]


def test_other_commands_do_not_override_what_the_sweep_varies(sweep):
    with pytest.raises(InputError, match="varies poison.count itself"):
        load_sweep(sweep("counts"), {"poison.count": "5"})
    assert narrowed(SWEEP, {"pretrain.epochs": "5"}).space == SWEEP.space
