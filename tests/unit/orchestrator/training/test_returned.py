"""What a cleaning method returns is what is measured, saved and cleaned with; a lab's own methods, through the whole of a run."""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import open_clip
import pytest
import torch
from ray import tune
from safetensors.torch import load_file

from datasets.errors import InputError
from orchestrator.experiment.spec import Sweep
from orchestrator.report.tables import points_csv
from orchestrator.results.points import cleaned_points
from orchestrator.stages.graph import stages
from orchestrator.stages.trained import last_checkpoint
from orchestrator.store import Store, metrics_of, verify
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.stored import load_study
from orchestrator.training import workers
from orchestrator.training.job import load_model
from orchestrator.training.returned import check_kept, check_returned, differs, signature
from tests.inprocess import run_here
from tests.own_methods import Hooked, OnACopy, Prune, WiseFT, Wrong
from tests.unit.orchestrator.test_byte_flips import BASE, GATE
from trainers import checkpoint
from trainers.methods.base import Method
from trainers.methods.finetune import MMCLFineTune
from trainers.model import TinyCLIP, TinyViT
from trainers.weights.epoch_folder import WEIGHTS
from trainers.weights.load import load_weights

ASKED = ("zeroshot/top1", "asr/top1")


def sweep_of(*methods: Method, epochs: int = 2) -> Sweep:
    base = replace(BASE, clean=replace(BASE.clean, epochs=epochs))
    return Sweep(name="own", base=base, space={"clean.method": tune.grid_search(list(methods))}, gate=GATE)


class Made:
    """What a method left in the store."""

    def __init__(self, store: Path, sweep: Sweep, method: Method) -> None:
        [experiment] = [e for _, e in make_plan(sweep).grid if e.clean.method == method]
        found, pretrained = (Store(store).find(kind, stages(experiment)[kind].fingerprint) for kind in ("clean", "pretrain"))
        self.experiment, self.artefact = experiment, found
        self.lines = metrics_of(found)
        self.epochs = [line["epoch"] for line in self.lines]
        self.checkpoints = sorted(path.name for path in found.folder.glob("epoch_*"))
        self.last = load_file(last_checkpoint(found) / WEIGHTS)
        self.before = load_file(last_checkpoint(pretrained) / WEIGHTS)
        self.measured = [tuple(line["metrics"][name] for name in ASKED) for line in self.lines]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds every method beside the plain fine-tuning."""
    store = tmp_path_factory.mktemp("store")
    code, said, study = run_here(SWEEP, store)
    assert code == 0 and study.missing == 0 and len(study.trials) == 5, said
    return store


SWEEP = sweep_of(MMCLFineTune(), WiseFT(alpha=0.0), WiseFT(alpha=0.5), Prune(), OnACopy())


def test_weights_changed_after_fit_are_the_last_line_and_the_last_checkpoint(store):
    made = Made(store, SWEEP, WiseFT(alpha=0.0))
    assert made.epochs == [0, 1, 2, 3] and [line.get("returned", False) for line in made.lines] == [False, False, False, True]
    assert all(torch.equal(made.last[name], value) for name, value in made.before.items()), "alpha 0 is the model before cleaning"
    assert made.measured[3] == made.measured[0]
    study = load_study(make_plan(SWEEP), Store(store))
    trial = next(trial for trial in study.trials if trial.fingerprint == made.artefact.fingerprint)
    assert [point.epoch for point in cleaned_points(trial)] == [3], "the training's points are never chosen"
    rows = [row for row in csv.DictReader(io.StringIO(points_csv(study))) if row["fingerprint"] == trial.fingerprint]
    assert [row["role"] for row in rows] == ["before", "training", "training", "result"] and rows[3]["checkpoint"].endswith("epoch_0003")
    assert made.checkpoints == ["epoch_0003"] and verify(made.artefact) == []


def test_the_line_is_of_the_saved_weights(store):
    made, plain = Made(store, SWEEP, WiseFT(alpha=0.5)), Made(store, SWEEP, MMCLFineTune())
    name = "visual.conv1.weight"
    assert torch.allclose(made.last[name], torch.lerp(made.before[name], plain.last[name], 0.5), atol=1e-6)
    assert made.measured[:3] == plain.measured, "the points before are the training's"
    assert made.lines[3]["seconds"] >= made.lines[2]["seconds"] and made.lines[3]["step"] == made.lines[2]["step"]


def test_a_method_that_trains_nothing_has_one_line_of_its_own(store):
    made = Made(store, SWEEP, Prune())
    assert made.epochs == [0, 1] and made.lines[1]["returned"] and made.checkpoints == ["epoch_0001"]
    assert made.measured[0] == Made(store, SWEEP, MMCLFineTune()).measured[0] and "before/mmcl" in made.lines[0]["metrics"]
    zeros = (made.last["visual.conv1.weight"] == 0).float().mean()
    assert 0.25 < zeros < 0.35
    trials = {trial.fingerprint: trial for trial in load_study(make_plan(SWEEP), Store(store)).trials}
    assert trials[made.artefact.fingerprint].status == "finished"


def test_a_method_that_adds_nothing_after_fit_has_no_line_more(store):
    plain, copied = Made(store, SWEEP, MMCLFineTune()), Made(store, SWEEP, OnACopy())
    for made in (plain, copied):
        assert made.epochs == [0, 1, 2] and made.checkpoints[-1] == "epoch_0002" and not any("returned" in line for line in made.lines)
    assert all(torch.equal(plain.last[name], value) for name, value in copied.last.items())
    assert plain.measured == copied.measured


@pytest.mark.parametrize("method", [WiseFT(alpha=0.0), Prune()])
def test_open_clip_loads_the_last_checkpoint(store, method):
    made = Made(store, SWEEP, method)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{last_checkpoint(made.artefact)}")
    assert all(torch.equal(value, made.last[name]) for name, value in model.state_dict().items())
    again = load_model(made.experiment, str(last_checkpoint(made.artefact)))
    assert torch.equal(again.model.visual.conv1.weight, made.last["visual.conv1.weight"])


def test_another_object_may_be_returned(tmp_path):
    sweep = sweep_of(OnACopy(trained=False), epochs=1)
    assert run_here(sweep, tmp_path)[0] == 0
    made = Made(tmp_path, sweep, OnACopy(trained=False))
    assert made.epochs == [0, 1, 2] and all(torch.equal(made.last[name], value) for name, value in made.before.items())


@pytest.mark.parametrize(("mistake", "told"), [
    ("nothing", "Wrong.train returned nothing; it must return the trained model"),
    ("inner model", "Wrong.train returned CLIP; it must return the trained model"),
    ("infinite", "Wrong.train returned weights that are not finite: visual.conv1.weight"),
    ("parametrized", "Wrong.train returned a model of other weights than it got: visual.conv1.weight is no weight"),
    ("half", "visual.conv1.weight is torch.float16"),
    ("twice", "run.fit was called again, but the stage's 2 epochs are done"),
])
def test_what_is_no_model_is_refused_in_one_sentence(store, tmp_path, mistake, told):
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("clean", "sweep"))
    code, said, study = run_here(sweep_of(Wrong(mistake=mistake)), tmp_path / "store")
    assert code == 1 and told in said and "\n" not in said.strip()
    assert [trial.status for trial in study.trials] == ["failed"] and not list((tmp_path / "store" / "clean").glob("[!.]*-*"))


@pytest.mark.parametrize(("way", "trains"), [("clip", False), ("clip", True), ("replaced", False), ("function", True)])
def test_a_change_that_is_not_in_the_weights_is_refused(store, tmp_path, way, trains):
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("clean", "sweep"))
    code, said, study = run_here(sweep_of(Hooked(way=way, trains=trains), epochs=1), tmp_path / "store")
    assert code == 1 and "Hooked.train returned a model that its saved weights do not give again" in said and "\n" not in said.strip()
    assert [trial.status for trial in study.trials] == ["failed"] and not list((tmp_path / "store" / "clean").glob("[!.]*-*"))


def test_a_hook_that_only_looks_on_is_no_change(store, tmp_path):
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("clean", "sweep"))
    sweep = sweep_of(Hooked(way="looks", trains=True))
    assert run_here(sweep, tmp_path / "store")[0] == 0
    assert Made(tmp_path / "store", sweep, Hooked(way="looks", trains=True)).measured == Made(store, SWEEP, MMCLFineTune()).measured


@pytest.mark.parametrize("model", [TinyCLIP(), TinyViT()])
def test_rounding_is_no_change_and_the_model_is_left_as_it_was(model):
    one, again = (model.build(0) for _ in range(2))
    one.place(torch.device("cpu"), precision="bf16").train()
    again.channels_last = False
    check_kept(one, again, "Own")
    assert one.training and one.autocast == torch.bfloat16
    with torch.no_grad():
        one.model.text_projection *= 1.001  # of no effect on unit features
        check_kept(one, again, "Own")
        one.model.text_projection[0] *= 1.1
    with pytest.raises(InputError, match=r"Own.train returned a model.*not in the weights \(a hook"):
        check_kept(one, again, "Own")


def test_a_hook_that_a_compiled_model_passes_over_is_found():
    one, again = (TinyCLIP().build(0) for _ in range(2))
    one._image_tower = torch.compile(one.model.encode_image, backend="eager")
    with torch.no_grad():
        one.eval().encode_image(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    check_kept(one, again, "Own")
    one.model.visual.layer1.register_forward_hook(lambda module, inputs, output: 0 * output)
    with pytest.raises(InputError, match="not in the weights"):
        check_kept(one, again, "Own")


def test_features_that_are_not_finite_on_both_sides_are_left_to_the_measurement():
    one, again = (TinyCLIP().build(0) for _ in range(2))
    for model in (one, again):
        model.model.text_projection.data.fill_(float("nan"))
    check_kept(one, again, "Own")


@pytest.mark.parametrize("method", [WiseFT(alpha=0.5), Prune()])
@pytest.mark.parametrize(
    "moment", ["orchestrator.training.workers._append", "trainers.checkpoint.save_returned", "orchestrator.stages.base.seal"]
)
def test_a_kill_after_fit_changes_nothing(store, tmp_path, method, moment):
    """The method is called again; what it returned before is not taken for a checkpoint to train on from."""
    shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns("clean", "sweep"))
    append = workers._append

    def killed(*arguments, **named):
        if moment.endswith("_append") and not arguments[1].get("returned"):
            return append(*arguments, **named)
        raise KeyboardInterrupt

    sweep = sweep_of(method)
    with patch(moment, killed), pytest.raises(KeyboardInterrupt):
        run_here(sweep, tmp_path / "store")
    [work] = (tmp_path / "store" / "clean").glob(".work-*")
    assert (checkpoint.newest(work) is not None) == (isinstance(method, WiseFT) and moment != "orchestrator.stages.base.seal")
    code, said, _ = run_here(sweep, tmp_path / "store")
    assert code == 0, said
    made, whole = Made(tmp_path / "store", sweep, method), Made(store, SWEEP, method)
    assert (made.epochs, made.measured, made.checkpoints) == (whole.epochs, whole.measured, whole.checkpoints)
    assert all(torch.equal(made.last[name], value) for name, value in whole.last.items())


def test_a_changed_configuration_counts_as_changed(tmp_path):
    encoder = TinyCLIP(vision_width=8, embed_dim=16, text_width=8).build(0)
    checkpoint.save_returned(tmp_path, encoder, 1)
    assert not differs(encoder, tmp_path / "epoch_0001")
    encoder.normalise_by([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert differs(encoder, tmp_path / "epoch_0001")
    again = TinyCLIP(vision_width=8, embed_dim=16, text_width=8).build(0)
    with pytest.raises(InputError, match="not in the weights"):
        check_kept(encoder, again, "Own")
    load_weights(again, checkpoint.save_returned(tmp_path, encoder, 2))
    check_kept(encoder, again, "Own")


def test_a_model_of_another_architecture_is_refused():
    wanted = signature(TinyCLIP(vision_width=8).build(0))
    with pytest.raises(InputError, match=r"Own.train returned a model of other weights.*it was torch.float32 \[4, 3, 3, 3\]"):
        check_returned(TinyCLIP(vision_width=16).build(0), "Own", wanted)
