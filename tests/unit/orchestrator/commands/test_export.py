"""A checkpoint handed on: open_clip loads what is written, Hugging Face's names are the inverse of those that are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets.errors import InputError
from datasets.storage import sha256
from orchestrator.commands.export import best, export_checkpoint
from orchestrator.experiment.spec import Compute
from orchestrator.results.points import panels
from orchestrator.results.selection import table
from tests.tiny_sweep import BASE
from tests.unit.fake_study import fake_study
from trainers.encoder import Encoder
from trainers.model import TinyCLIP, TinyViT
from trainers.weights import huggingface
from trainers.weights.epoch_folder import WEIGHTS
from trainers.weights.load import load_weights

METRICS = {"zeroshot/top1": 50.0, "zeroshot/n": 80, "zeroshot/top1_low": 39.3, "zeroshot/top1_high": 60.7, "asr/top1": 5.0, "asr/n": 60,
           "asr/top10": 100.0}  # fmt: skip
VIT = replace(BASE, pretrain=replace(BASE.pretrain, model=TinyViT()))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.commands.export._measure", lambda *_: METRICS)


def saved(encoder: Encoder, folder: Path) -> str:
    torch.save(encoder.model.state_dict(), folder / "w.pt")
    return str(folder / "w.pt")


@pytest.mark.parametrize("experiment", [BASE, VIT], ids=["resnet", "vit"])
def test_open_clip_loads_the_folder_and_the_card_tells_what_it_is(experiment, measured, tmp_path):
    encoder = experiment.pretrain.model.build(3)
    told = export_checkpoint(experiment, Compute(), saved(encoder, tmp_path), tmp_path / "out", "cc-by-4.0", "the best")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).reshape(1, 32, 32, 3)
    with torch.no_grad():
        ours = encoder.eval().encode_image(pixels)
        theirs = model.eval().encode_image(preprocess(picture)[None], normalize=True)
    assert torch.allclose(ours, theirs, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("license: cc-by-4.0", "50.0 % [39.3, 60.7]", "| 60 |", '"banana"', "20 pairs", "the best", "dirty_label"):
        assert words in card
    assert "top10" not in json.dumps(told)
    assert told["sha256"] == {p.name: sha256(p) for p in (tmp_path / "out").iterdir() if p.name != "README.md"}
    attack = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert attack["trigger"]["pattern"] == "saturated" and Image.open(tmp_path / "out" / "trigger.png").size == (64, 32)
    assert (tmp_path / "out" / "model.safetensors").exists() == (experiment is VIT)
    assert ("no counterpart" in card) == (experiment is BASE)


def test_what_hugging_face_would_read_is_the_same_model(measured, tmp_path):
    encoder = VIT.pretrain.model.build(3)
    export_checkpoint(VIT, Compute(), saved(encoder, tmp_path), tmp_path / "out")
    (tmp_path / "out" / WEIGHTS).unlink()
    (tmp_path / "out" / "open_clip_config.json").unlink()
    again = VIT.pretrain.model.build(4)
    load_weights(again, tmp_path / "out")
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in encoder.model.state_dict().items())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["num_attention_heads"] == 3 and config["text_config"]["max_position_embeddings"] == 14
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["text_projection.weight"].shape == (config["projection_dim"], config["text_config"]["hidden_size"])
    assert huggingface.converted(tensors).keys() == {k for k in encoder.model.state_dict() if k != "attn_mask"}


@pytest.mark.parametrize(
    ("model", "why"),
    [(TinyCLIP(), "not encoded by a vision transformer"), (TinyViT(logit_bias=-1.0), "logit_bias")],
)
def test_models_without_a_counterpart_are_told(model, why):
    assert why in huggingface.without_counterpart(model.build(0))
    other = TinyViT().build(0)
    other.config["text_cfg"]["pool_type"] = "last"
    assert "pool_type" in huggingface.without_counterpart(other)


def test_a_folder_with_something_in_it_and_a_model_of_another_kind_are_refused(measured, tmp_path):
    weights = saved(BASE.pretrain.model.build(0), tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(InputError, match="full exists and is not empty"):
        export_checkpoint(BASE, Compute(), weights, tmp_path / "full")
    with pytest.raises(InputError, match=r"w\.pt"):
        export_checkpoint(VIT, Compute(), weights, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/new cannot be written"):
        export_checkpoint(BASE, Compute(), weights, tmp_path / "file" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "w.pt"]


def test_the_best_of_a_study_is_the_reports_choice_or_told_why_not(tmp_path):
    study = fake_study(tmp_path)
    labels = [panel.label for panel in panels(study)]
    with pytest.raises(InputError, match=f'several pre-trainings: choose one by --pretraining, of "{labels[0]}"'.replace("+", r"\+")):
        best(study, "blind")
    with pytest.raises(InputError, match='--method X: the sweep has "'):
        best(study, "blind", labels[0], "X")
    with pytest.raises(InputError, match="--rule is 'best'"):
        best(study, "best", labels[0])
    with pytest.raises(InputError, match="weights of that model were not kept"):
        best(study, "blind", labels[0])
    choices = [c for row in table(study) if row.rule.key == "blind" and row.panel.label == labels[0] for c in row.reached]
    expected = min(choices, key=lambda choice: (-choice.accuracy, choice.asr))
    folder = expected.point.stage.folder / f"epoch_{expected.point.epoch:04d}"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_text("")
    choice, why = best(study, "blind", labels[0])
    assert choice.checkpoint == str(folder.relative_to(tmp_path)) and f"epoch {expected.point.epoch}" in why
