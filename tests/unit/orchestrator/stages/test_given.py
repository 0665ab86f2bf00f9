"""Models that others trained, as the start of cleanings."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets.errors import InputError
from orchestrator.experiment.override import override
from orchestrator.experiment.spec import Given
from orchestrator.stages.given import Brought
from orchestrator.stages.graph import stages
from tests.experiments import artefacts
from tests.inprocess import run_here
from tests.parity import peer_models
from tests.tiny_sweep import BASE, SWEEP
from tests.unit.trainers.weights.test_peer_weights import Scripted, assert_computes_the_same
from trainers.model import Model, TinyCLIP
from trainers.weights.load import load_weights


@pytest.fixture
def file(tmp_path):
    torch.save(TinyCLIP().build(0).model.state_dict(), tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt"


def given(file, **fields):
    return replace(BASE, pretrain=Given(**{"model": TinyCLIP(), "checkpoint": str(file), **fields}))


def test_it_is_known_by_its_bytes_and_its_model(tmp_path, file):
    stage = stages(given(file))["pretrain"]
    assert isinstance(stage, Brought) and stage.name == "theirs" and str(tmp_path) not in str(stage.config)
    other = tmp_path / "copy" / "elsewhere.pt"
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    assert stages(given(other))["pretrain"].fingerprint == stage.fingerprint
    assert stages(given(file))["clean"].inputs["pretrain"] == stage
    assert stages(override(given(file), "poison.target", "circle"))["pretrain"].fingerprint != stage.fingerprint, "measured otherwise"
    torch.save(TinyCLIP().build(1).model.state_dict(), other)
    stages.cache_clear()
    assert stages(given(other))["pretrain"].fingerprint != stage.fingerprint


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: given("theirs.pt"), r"Given.checkpoint is 'theirs.pt': give the absolute path"),
        (lambda file: given(file, model=Model(name="RN50", pretrained="openai")), "Given.model.pretrained is set"),
        (lambda file: Given(checkpoint=str(file)), "model"),
        (lambda file: stages(replace(given(file), prior=BASE.pretrain)), "prior is set, but pretrain is a given model"),
        (lambda file: stages(given(file.with_name("none.pt"))), "none.pt"),
    ],
)
def test_what_cannot_be_is_one_error(make, said, file):
    with pytest.raises((InputError, TypeError), match=said):
        make(file)


@dataclass(frozen=True, kw_only=True)
class Peers(TinyCLIP):
    """The model that `peer_models` lays out as other programs do."""

    tower: str = "resnet"
    context_length: int = peer_models.CONTEXT

    @property
    def config(self):
        return peer_models.config(self.tower)


def written(form: str, folder: Path) -> tuple[Peers, Path, torch.nn.Module]:
    """(the model, its file as a program writes it, that program's own model)."""
    file = folder / "theirs.pt"
    if form == "Hugging Face":
        theirs = peer_models.HuggingFaceLayout(seed=2)
        (folder / "config.json").write_text(json.dumps(theirs.configuration))
        save_file({name: value.contiguous() for name, value in theirs.tensors.items()}, folder / "model.safetensors")
        return Peers(tower="vit"), folder / "model.safetensors", theirs
    layout = peer_models.OpenAILayout("resnet", seed=1).eval()
    if form == "TorchScript":
        extra = {"input_resolution": peer_models.SIZE, "context_length": peer_models.CONTEXT, "vocab_size": peer_models.VOCABULARY}
        torch.jit.trace(Scripted(layout.half(), **extra), torch.zeros(1, 3, peer_models.SIZE, peer_models.SIZE).half()).save(file)
        return Peers(), file, layout.float()
    optimizer, state = torch.optim.AdamW(layout.parameters()), layout.state_dict()
    optimizer.param_groups[0]["lr"] = np.float64(1e-4)
    contents = {
        "plain": state,
        "compiled": {f"_orig_mod.{name}": value for name, value in state.items()},
        "compiled and wrapped": {"model": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        "CleanCLIP": {"epoch": 64, "name": "x", "state_dict": {f"module.{name}": value for name, value in state.items()},
                      "optimizer": optimizer.state_dict()},
    }  # fmt: skip
    torch.save(contents[form], file)
    return Peers(), file, layout


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["plain", "compiled", "compiled and wrapped", "CleanCLIP", "TorchScript", "Hugging Face"])
def test_every_form_is_judged_and_cleaned(form, tmp_path):
    model, file, theirs = written(form, tmp_path)
    base = replace(given(file, model=model), clean=replace(BASE.clean, epochs=1, warmup_steps=1))
    code, said, study = run_here(replace(SWEEP, base=base, space={}), tmp_path / "store")
    assert code == 0, said
    [source] = artefacts(tmp_path / "store", "pretrain").values()
    ours = peer_models.encoder(model.tower)
    load_weights(ours, source / "epoch_0000")
    assert_computes_the_same(ours, theirs)
    [trial] = study.trials
    assert list(study.gates) == [study.pretrains[0].fingerprint] and len(study.pretrains[0].metrics) == 1
    before = study.pretrains[0].metrics[0]["metrics"]
    assert trial.metrics[0]["metrics"]["asr/top1_count"] == before["asr/top1_count"] and [e["epoch"] for e in trial.metrics] == [0, 1]


def test_an_earlier_epoch_is_cleaned_and_stands_apart(tmp_path):
    sweep = replace(SWEEP, base=replace(BASE, clean=replace(BASE.clean, epochs=1, warmup_steps=1)))
    starts = ["last", "1", "most_accurate"]
    code, said, study = run_here(replace(sweep, space={"clean.start": {"grid_search": starts}}), tmp_path / "store")
    assert code == 0, said
    [source] = study.pretrains
    accuracy = {line["epoch"]: line["metrics"]["zeroshot/top1"] for line in source.metrics}
    most = 1 if accuracy[1] > accuracy[2] else 2
    for trial, epoch in zip(study.trials, (2, 1, most), strict=True):
        begun, model = trial.metrics[0]["metrics"], source.metrics[epoch]["metrics"]
        assert all(begun[name] == model[name] for name in ("zeroshot/top1_count", "asr/top1_count")), trial.overrides
    frame = study.frame()
    cleaned = frame[(frame["stage"] == "clean") & (frame["epoch"] == 1)]
    assert cleaned["method"].tolist() == ["CleanCLIP, start last", "CleanCLIP, start 1", "CleanCLIP, start most_accurate"]
    assert cleaned["start_accuracy"].tolist() == [accuracy[2], accuracy[1], accuracy[most]]
    before = stages(BASE)["clean"].fingerprint
    assert stages(override(BASE, "clean.start", "last"))["clean"].fingerprint == before
    assert stages(override(BASE, "clean.start", "1"))["clean"].fingerprint != before


@pytest.mark.parametrize(("start", "said"), [
    ("3", r"clean.start is 3; the pre-training has a checkpoint after the epochs 1 to 2\."),
    ("0", r"clean.start is 0; .* 1 to 2"), ("1" * 5000, "clean.start is .1{80}.; accepted"),
    ("best", "clean.start is 'best'; accepted: last, most_accurate, or the number"),
])  # fmt: skip
def test_an_epoch_that_will_not_be_there_is_told_before_anything_is_made(start, said, file):
    with pytest.raises(InputError, match=said):
        stages(override(BASE, "clean.start", start))
    with pytest.raises(InputError, match="a given model has no other"):
        stages(override(given(file), "clean.start", "1"))
