"""Pseudo-labels: made by another model, joined by key."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from datasets.errors import InputError
from datasets.evaluation.prompts import NAMES
from datasets.seeding import rng
from datasets.triggers.patch import Patch
from orchestrator.experiment.check import labelling
from orchestrator.experiment.override import override_all
from orchestrator.stages.graph import stages
from sweeps.quickstart import BASE
from tests.parity.toys import RESNET, ToySet, resnet
from trainers.batch import image_tensor
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.labels import CLASSES, FILE, SCHEMA, Labels
from trainers.methods.pseudo_labels import PseudoLabels, zero_shot_labels
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.model import Model, TinyCLIP
from trainers.schedule import Training

KEYS = [str(key) for key in ToySet().samples["key"]]
TRUE = {key: int(rng("label", key).integers(4)) for key in KEYS}
TRAINED = replace(BASE.pretrain, epochs=3)
METHOD = PseudoLabels(labeller=TRAINED)


def table(file, keys, classes=4, labels=None, schema=SCHEMA):
    labels = labels or [TRUE.get(key, 0) for key in keys]
    rows = pa.table([pa.array(keys), pa.array(labels, pa.int32())], schema=schema)
    pq.write_table(rows.replace_schema_metadata({CLASSES: str(classes)} if classes else None), file)
    return file


def cleaned(folder, labels, method=METHOD):
    """Weights after a cleaning with the labels of a file, or with these."""
    (folder / "made").mkdir(parents=True)
    if isinstance(labels, Labels):
        labels.write(folder / "made" / FILE)
    else:
        shutil.copy(labels, folder / "made" / FILE)
    made = {METHOD.labelling: folder / "made"}
    training = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=1)

    def train(model, objective, phase):
        fit(model, objective, training, ToySet(), folder, begin_epoch=phase.begin_epoch)

    run = Run(trainer=train, training=replace(training, seed=3), fresh=lambda: RESNET.build(5), keys=lambda: KEYS, made=made)
    return method.train(resnet(), run).state_dict()


@pytest.mark.parametrize("method", [METHOD, ShrinkPerturb(then=METHOD)], ids=["alone", "after shrink-perturb"])
def test_the_order_of_rows_says_nothing(tmp_path, method):
    one = cleaned(tmp_path / "one", table(tmp_path / "a.parquet", KEYS), method)
    shuffled = [*rng("shuffle").permutation(KEYS), "a key of another set"]
    other = cleaned(tmp_path / "two", table(tmp_path / "b.parquet", shuffled), method)
    assert all(torch.equal(other[name], value) for name, value in one.items()) and "head.weight" in one
    wrong = Labels({key: TRUE[KEYS[i - 1]] for i, key in enumerate(KEYS)}, 4, "x")
    assert not torch.equal(cleaned(tmp_path / "three", wrong, method)["head.weight"], one["head.weight"])


def test_a_missing_key_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"labels\.parquet has no label for the sample '0-7'"):
        cleaned(tmp_path, table(tmp_path / "c.parquet", [key for key in KEYS if key != "0-7"]))


@pytest.mark.parametrize(("made", "said"), [
    (lambda file: table(file, ["a", "b", "a"]), "3 rows for 2 keys"),
    (lambda file: table(file, ["a"], labels=[4]), "'a' the label 4; accepted are 0 to 3"),
    (lambda file: table(file, ["a"], classes=None), "number of classes"),
    (lambda file: file.write_text("key,label\n"), "cannot be read"),
    (lambda file: None, "cannot be read"),
])
def test_files_that_are_no_labels_are_refused(tmp_path, made, said):
    file = tmp_path / "labels.parquet"
    made(file)
    with pytest.raises(InputError, match=said) as error:
        Labels.read(file)
    assert str(file) in str(error.value)


def test_what_is_written_is_read(tmp_path):
    Labels(TRUE, 4, "x").write(tmp_path / "new" / "labels.parquet")
    found = Labels.read(tmp_path / "new" / "labels.parquet")
    assert found.by_key == TRUE and found.classes == 4 and found.of(KEYS[:3]).tolist() == [TRUE[key] for key in KEYS[:3]]


def test_the_labels_are_the_nearest_prompts():
    model, feed = resnet(), ToySet()
    names, templates = ("red thing", "green thing", "blue thing"), ("a {}", "the {}.")
    labels = zero_shot_labels(model, feed.pairs(), names, templates)
    assert list(labels.by_key) == KEYS and labels.classes == 3
    with torch.no_grad():
        heads = [model.encode_text(model.tokenize([t.replace("{}", name) for t in templates])).mean(0).numpy() for name in names]
        features = model.encode_image(image_tensor(feed.samples["image"], torch.device("cpu"))).numpy()
    heads = np.stack(heads)
    expected = (features @ (heads / np.linalg.norm(heads, axis=1, keepdims=True)).T).argmax(1)
    assert [labels.by_key[key] for key in KEYS] == expected.tolist()


def with_method(method, **fields):
    return override_all(BASE, {"clean.method": method, **{f"clean.{k}": v for k, v in fields.items()}})


def test_labels_are_a_stage_between_cleaning_set_and_cleaning():
    made = stages(with_method(ShrinkPerturb(then=METHOD)))
    assert list(made)[-4:] == ["cleanset", "labeller", "labels", "clean"]
    assert made["labels"].inputs == {role: made[role] for role in ("cleanset", "testset", "labeller")}
    assert made["clean"].inputs["labels"] == made["labels"]
    assert (made["labeller"].kind, made["labels"].kind) == ("pretrain", "labels")
    assert "labels" not in stages(BASE)


def test_an_equal_prior_and_labeller_are_one_stage_and_labels_are_shared():
    made = stages(replace(with_method(METHOD), prior=TRAINED))
    assert made["prior"].fingerprint == made["labeller"].fingerprint

    def labels(method, **fields):
        return stages(with_method(method, **fields))["labels"].fingerprint

    own = labels(METHOD)
    assert own == labels(METHOD, lr=1.0) == labels(replace(METHOD, weight=1.0)) == labels(ShrinkPerturb(then=METHOD))
    others = [labels(METHOD, pairs=500), labels(replace(METHOD, classes=("a", "b"))), labels(replace(METHOD, templates="simple")),
              labels(replace(METHOD, labeller=replace(TRAINED, seed=1))),
              labels(PseudoLabels(labeller=Model(name="RN50-quickgelu", pretrained="openai")))]
    assert len({own, *others}) == 6


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    made = []
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
        method = PseudoLabels(labeller=Model(name="RN50", pretrained=str(tmp_path / name)))
        made.append(stages(with_method(ShrinkPerturb(then=method))))
    for role in ("labels", "clean"):
        assert made[0][role].fingerprint == made[1][role].fingerprint != made[2][role].fingerprint


def test_what_the_labels_are_made_from_enters_a_cleaning_by_them_alone():
    before = stages(with_method(METHOD))
    saved_often = replace(METHOD, labeller=replace(TRAINED, checkpoint_every_steps=7))
    assert stages(with_method(saved_often)) == before
    assert not {"labeller", "classes", "templates"} & set(before["clean"].config["method"])
    assert stages(with_method(replace(METHOD, weight=1.0)))["clean"].config != before["clean"].config
    other = stages(with_method(replace(METHOD, templates="simple")))["clean"]
    assert other.config == before["clean"].config and other.fingerprint != before["clean"].fingerprint


def test_a_list_that_was_edited_makes_new_labels(monkeypatch):
    def labels(method):
        return stages.__wrapped__(with_method(method))["labels"].fingerprint

    methods = METHOD, replace(METHOD, classes="cifar10")
    before = [labels(method) for method in methods]
    monkeypatch.setitem(NAMES, "cifar10", ("aeroplane", *NAMES["cifar10"][1:]))
    after = [labels(method) for method in methods]
    assert after[0] == before[0] and after[1] != before[1]


SIGLIP = Model(name="ViT-L-16-SigLIP-256", pretrained="webli")


@pytest.mark.parametrize(("fields", "said"), [
    ({"clean.method": PseudoLabels(labeller=SIGLIP)}, r"labeller is ViT-L-16-SigLIP-256.* transformers.*extra `labels`"),
    ({"clean.method": PseudoLabels(labeller=replace(TRAINED, model=SIGLIP))}, "labeller.model is ViT-L-16-SigLIP-256"),
    ({"pretrain.model": SIGLIP, "views.size": 256}, "pretrain.model is ViT-L-16-SigLIP-256"),
    ({"clean.method": PseudoLabels(labeller=replace(SIGLIP, pretrained="laion"))}, r"labeller.pretrained is 'laion'.*webli"),
    ({"pretrain.model": Model(name="RN50", pretrained="laion"), "views.size": 224}, "pretrain.model.pretrained is 'laion'"),
])
def test_a_model_that_cannot_be_made_is_refused_before_anything_is_trained(fields, said, monkeypatch):
    monkeypatch.setattr("trainers.model.find_spec", lambda package: None)
    with pytest.raises(InputError, match=said):
        stages(override_all(BASE, fields))


def test_with_its_tokenizer_installed_it_is_accepted(monkeypatch):
    monkeypatch.setattr("trainers.model.find_spec", lambda package: True)
    assert stages(with_method(PseudoLabels(labeller=SIGLIP)))["labels"].name == SIGLIP.name


@pytest.mark.parametrize(("build", "said"), [
    (lambda: PseudoLabels(labeller=Model(name="RN50")), "pretrained is not set"),
    (lambda: PseudoLabels(labeller=TinyCLIP()), "labeller"),
    (lambda: PseudoLabels(labeller=TRAINED, classes="imagenet"), "imagenet1k"),
    (lambda: PseudoLabels(labeller=TRAINED, templates=("no place",)), "{}"),
    (lambda: PseudoLabels(labeller=TRAINED, weight=0), r"PseudoLabels.weight is 0; accepted: a number \(above 0\)"),
    (lambda: stages(with_method(PseudoLabels(labeller=Training(epochs=1, batch_size=4, lr=1, warmup_steps=0)))), "a Pretrain"),
    (lambda: stages(override_all(with_method(PseudoLabels(labeller=replace(TRAINED, model=TinyCLIP(image_size=32)))),
                                 {"poison.trigger": Patch(size=40)})), "40"),
])
def test_what_cannot_label_is_refused(build, said):
    with pytest.raises(InputError, match=said):
        build()


def test_a_method_without_labels_asks_for_none():
    assert labelling(BASE) is None and labelling(with_method(ShrinkPerturb(then=METHOD))) == METHOD
