"""Models that others trained, as the start of cleanings."""

from dataclasses import replace

import pytest
import torch

from datasets.errors import InputError
from orchestrator.override import override
from orchestrator.spec import Given
from orchestrator.stages.given import Brought
from orchestrator.stages.graph import stages
from tests.inprocess import run_here
from tests.tiny_sweep import BASE, SWEEP
from trainers.model import Model, TinyCLIP


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


def test_it_is_measured_and_cleaned_without_any_training(tmp_path, file):
    sweep = replace(SWEEP, base=given(file))
    code, said, study = run_here(sweep, tmp_path / "store")
    assert code == 0, said
    assert [len(result.metrics) for result in study.pretrains] == [1] and len(study.trials) == 4
    first = study.pretrains[0].metrics[0]["metrics"]
    assert all(trial.metrics[0]["metrics"]["zeroshot/top1"] == first["zeroshot/top1"] for trial in study.trials)
    assert list(study.gates) == [study.pretrains[0].fingerprint]


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
