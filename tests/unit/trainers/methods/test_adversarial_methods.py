"""Adversarial training, TRADES, TeCoA, FARE and Lipschitz as methods: a kill, what stays still, and the product's own run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune

from datasets.attack.poison import Poison
from datasets.errors import InputError
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.check import check, labelling
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from orchestrator.stages.graph import stages
from orchestrator.store import METRICS, read_lines
from tests.inprocess import run_here
from tests.parity.toys import RESNET, ToySet, resnet
from trainers.distributed import World
from trainers.loop import fit
from trainers.methods.adversarial_training import AdversarialTraining
from trainers.methods.base import Method, Run
from trainers.methods.fare import FARE
from trainers.methods.finetune import MMCLFineTune
from trainers.methods.labels import FILE, Labels
from trainers.methods.lipschitz import Lipschitz
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.methods.tecoa import TeCoA
from trainers.methods.trades import TRADES
from trainers.model import Model, TinyCLIP
from trainers.objectives.adversary import Adversary
from trainers.objectives.contrastive import MMCL
from trainers.schedule import Training
from trainers.weights.load import load_weights

ATTACK = Adversary(eps=8 / 255, step=4 / 255, steps=2)
TRAINING = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=0, checkpoint_every_steps=3)
PAIRS = 32
KEYS = [str(key) for key in ToySet(count=PAIRS).samples["key"]]
LABELLER = Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=1, batch_size=16, lr=3e-3, warmup_steps=1)
METHODS: dict[str, Method] = {
    "adversarial": AdversarialTraining(adversary=ATTACK),
    "trades": TRADES(adversary=ATTACK),
    "tecoa": TeCoA(adversary=ATTACK, labeller=LABELLER, template="the {}"),
    "fare": FARE(adversary=ATTACK),
    "lipschitz": Lipschitz(weight=1e-3, spectral_weight=1e-3),
}
NAMED = Labels({key: i % 3 for i, key in enumerate(KEYS)}, 3, "x", ("banana", "circle", "ring"))


def trained(
    method: Method, folder: Path, stop_at: int | None = None, labels: Labels = NAMED, **fields: Any
) -> tuple[Any, dict[int, dict[str, Any]]]:
    """The model and the lines after two epochs of four steps, killed before the step `stop_at`."""
    lines: dict[int, dict[str, Any]] = {}
    labels.write(folder / FILE)
    training = replace(TRAINING, **fields)

    def train(model, objective, phase):
        fit(model, objective, phase.training, ToySet(count=PAIRS, stop_at=stop_at), folder, begin_epoch=phase.begin_epoch,
            report=lambda line: lines.update({line["epoch"]: line}))  # fmt: skip

    made = dict.fromkeys(method.needs(), folder)
    run = Run(trainer=train, training=training, fresh=lambda: RESNET.build(7), keys=lambda: KEYS, made=made)
    return method.train(resnet(), run), lines


@cache
def whole(name: str) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, Any]]]:
    with TemporaryDirectory() as folder:
        model, lines = trained(METHODS[name], Path(folder))
    return model.model.state_dict(), lines


@pytest.mark.parametrize("stop_at", [3, 7])
@pytest.mark.parametrize("name", METHODS)
def test_a_kill_at_any_moment_changes_nothing(tmp_path, name, stop_at):
    expected, lines = whole(name)
    with pytest.raises(KeyboardInterrupt):
        trained(METHODS[name], tmp_path, stop_at)
    model, again = trained(METHODS[name], tmp_path)
    assert all(torch.equal(model.model.state_dict()[weight], value) for weight, value in expected.items())
    assert again[2]["metrics"]["train/loss"] == lines[2]["metrics"]["train/loss"]


PARTS = {"adversarial": {"adversarial"}, "trades": {"mmcl", "divergence"}, "tecoa": {"tecoa", "adversarial_top1"}, "fare": {"fare"},
         "lipschitz": {"mmcl", "gradient", "spectral"}}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_and_what_is_told(name):
    now, lines = whole(name)
    was = resnet().model.state_dict()
    changed = {weight for weight in now if not torch.equal(now[weight], was[weight])}
    towers = {"visual" if weight.startswith("visual.") else "text" for weight in changed}
    assert "visual.conv1.weight" in changed and "visual.bn1.running_mean" in changed
    assert towers == ({"visual"} if name in ("tecoa", "fare") else {"visual", "text"})
    assert ("logit_scale" in changed) == (name not in ("tecoa", "fare"))
    told = {key.removeprefix("train/") for key in lines[1]["metrics"] if key.startswith("train/")}
    assert told - {"loss", "lr", "logit_scale", "samples_per_second"} == PARTS[name]
    assert all(np.isfinite(value) for line in lines.values() for value in line["metrics"].values())


@pytest.mark.parametrize("name", METHODS)
def test_frozen_statistics_stay_and_nothing_is_left_behind(tmp_path, name):
    model, _ = trained(replace(METHODS[name], batch_norm="frozen"), tmp_path)
    now, was = model.model.state_dict(), resnet().model.state_dict()
    assert all(torch.equal(now[weight], was[weight]) for weight in now if "running" in weight or "batches" in weight)
    assert not torch.equal(now["visual.conv1.weight"], was["visual.conv1.weight"])
    assert not model._forward_pre_hooks and all(weight.requires_grad for weight in model.model.parameters())


def test_each_epoch_draws_anew_by_seed_and_pair(tmp_path, monkeypatch):
    drawn: list[list[int]] = []

    def noted(self, encoder, image, draw, loss):
        drawn.append(draw.tolist())
        return image.float()

    monkeypatch.setattr(Adversary, "attack", noted)
    trained(METHODS["fare"], tmp_path / "a")
    first = drawn.copy()
    assert len(first) == 8 and len({one for step in first for one in step}) == 2 * PAIRS, "a number for each pair and epoch"
    drawn.clear()
    trained(METHODS["fare"], tmp_path / "b")
    assert drawn == first
    drawn.clear()
    trained(METHODS["fare"], tmp_path / "c", seed=1)
    assert not {one for step in drawn for one in step} & {one for step in first for one in step}


def test_training_lowers_the_loss_under_attack():
    """Of FARE: how far adversarial pictures are from the features of the start, after training and before."""
    lines = whole("fare")[1]
    assert lines[2]["metrics"]["train/fare"] < 0.8 * lines[1]["metrics"]["train/fare"]


def test_tecoa_asks_for_labels_that_name_their_classes(tmp_path):
    method = METHODS["tecoa"]
    with pytest.raises(InputError, match=r"labels.parquet do not name their classes, .* remove their folder"):
        trained(method, tmp_path / "a", labels=Labels(NAMED.by_key, 3, "x"))
    with pytest.raises(InputError, match=r"labels.parquet has no label for the sample '0-7'"):
        trained(method, tmp_path / "b", labels=Labels({k: v for k, v in NAMED.by_key.items() if k != "0-7"}, 3, "x", NAMED.names))
    with pytest.raises(InputError, match=r"TeCoA.template is 'a photo'; accepted: a text with \{\} once"):
        replace(method, template="a photo")
    with pytest.raises(InputError, match="pretrained is not set"):
        TeCoA(labeller=Model(name="RN50"))
    read = Labels.read(tmp_path / "b" / FILE)
    assert read.names == NAMED.names and read.classes == 3


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_are_refused(name):
    with pytest.raises(InputError, match="training.accumulate must be 1, not 2"):
        METHODS[name].check_training(replace(TRAINING, accumulate=2))
    METHODS[name].check_training(TRAINING)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="Lipschitz.weight is 1.0, but compiled models have no second derivative"):
        Lipschitz().check_training(replace(TRAINING, compile=True))
    Lipschitz(weight=0, spectral_weight=1).check_training(replace(TRAINING, compile=True))
    for kind in (FARE, TRADES):
        with pytest.raises(InputError, match="adversary.start is 'picture'"):
            kind(adversary=Adversary(start="picture"))
    on_gpus = Run(trainer=lambda *_: None, training=TRAINING, fresh=resnet, world=World(size=2, device=torch.device("cuda")))
    with pytest.raises(InputError, match="Lipschitz.batch_norm is 'train', but batch normalisation over several GPUs"):
        Lipschitz().train(resnet(), on_gpus)
    Lipschitz(batch_norm="frozen").train(resnet(), on_gpus)


# ---- the product's own run ---------------------------------------------------------------------------------------------------

WORLD = tiny(train=48, test=20)
BASE = Experiment(
    data=Data(source=WORLD, subset=40), views=Views(size=32),
    poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=4),
    pretrain=replace(LABELLER, model=TinyCLIP(vision_width=8, embed_dim=16, text_width=8), epochs=2),
    clean=Clean(method=MMCLFineTune(), pairs=16, epochs=2, batch_size=8, lr=1e-3, warmup_steps=1),
    evaluate=Evaluate(data=WORLD),
)  # fmt: skip
GATE = Gate(min_asr=0.0, action="warn")
RUN = {**METHODS, "tecoa": TeCoA(adversary=ATTACK, labeller=replace(BASE.pretrain, epochs=1))}
"""TeCoA with the published prompt, which the context of this model holds."""


def test_each_method_cleans_in_the_products_run(tmp_path):
    code, said, study = run_here(Sweep(name="robust", base=BASE, gate=GATE, space={"clean.method": tune.grid_search([*RUN.values()])}),
                                 tmp_path)  # fmt: skip
    assert code == 0 and study is not None, said
    folders = {folder.name.rpartition("-")[0]: folder for folder in (tmp_path / "clean").iterdir()}
    assert set(folders) == {"adversarial", "trades", "tecoa", "fare", "lipschitz"}
    for name, folder in folders.items():
        lines = read_lines(folder / METRICS)
        assert [line["epoch"] for line in lines] == [0, 1, 2]
        assert {"zeroshot/top1", "asr/top1", *(f"train/{part}" for part in PARTS[name])} <= set(lines[-1]["metrics"]), name
        encoder = BASE.pretrain.model.build(1)
        fresh = encoder.model.visual.conv1.weight.clone()
        load_weights(encoder, folder / "epoch_0002")
        assert not torch.equal(encoder.model.visual.conv1.weight, fresh)
        assert all(torch.isfinite(weight).all() for weight in encoder.parameters())
    assert len(list((tmp_path / "labels").iterdir())) == 1


@pytest.mark.parametrize("name", ["adversarial", "trades", "lipschitz"])
def test_three_of_them_pre_train_too(tmp_path, name):
    base = replace(BASE, pretrain=replace(BASE.pretrain, objective=METHODS[name], epochs=1), clean=None)
    code, said, _ = run_here(Sweep(name="robust", base=base, gate=GATE), tmp_path)
    assert code == 0, said
    (folder,) = (tmp_path / "pretrain").iterdir()
    assert folder.name.startswith(f"{METHODS[name].slug}-")
    assert {f"train/{part}" for part in PARTS[name]} <= set(read_lines(folder / METRICS)[-1]["metrics"])


def test_the_other_two_do_not():
    with pytest.raises(InputError, match="pretrain.objective is FARE, which keeps the features of a model that is trained already"):
        check(replace(BASE, pretrain=replace(BASE.pretrain, objective=METHODS["fare"])))
    with pytest.raises(InputError, match="pretrain.objective is TeCoA, which needs Labelling"):
        stages(replace(BASE, pretrain=replace(BASE.pretrain, objective=METHODS["tecoa"])))


def test_tecoas_labeller_is_checked_and_is_no_part_of_the_cleaning():
    cleaning = override_all(BASE, {"clean.method": ShrinkPerturb(then=RUN["tecoa"])})
    assert labelling(cleaning) == RUN["tecoa"]
    made = stages(cleaning)
    assert made["labels"].inputs["labeller"].kind == "pretrain" and made["clean"].inputs["labels"] == made["labels"]
    assert not {"labeller", "classes", "templates"} & set(made["clean"].config["method"]["then"])
    with pytest.raises(InputError, match="labeller is a Training; accepted: a Model with pretrained, or a Pretrain"):
        check(override_all(BASE, {"clean.method": replace(RUN["tecoa"], labeller=TRAINING)}))
