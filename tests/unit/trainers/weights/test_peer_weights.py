"""Checkpoints of other programs, written from their documented layouts, give the features and the counts that those programs give."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets.errors import InputError
from orchestrator.experiment.identity import weights_identity
from orchestrator.training.job import measured_as
from tests.parity.peer_models import (
    CONTEXT,
    SIZE,
    VOCABULARY,
    HuggingFaceLayout,
    OpenAILayout,
    as_encoder,
    encoder,
    said_by,
    same_weights,
)
from trainers.encoder import Encoder
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.model import Model
from trainers.weights.load import load_weights

CLASSES = ("red", "green", "blue", "grey", "small", "large", "round", "flat", "cold", "warm")


def pictures(count: int = 240) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def counted(one: Encoder) -> dict[str, float]:
    """Zero-shot accuracy and attack success with their counts, on pictures of noise: what one wrong weight changes."""
    image, label = pictures(), np.arange(240) % len(CLASSES)
    batch = {"image": image, "image_triggered": 255 - image, "label": label, "key": np.array([str(i) for i in range(240)])}
    return ZeroShotASR(class_names=CLASSES, templates=("a {} thing", "{}"), target=3).measure(one, [batch])


def assert_computes_the_same(ours: Encoder, theirs: torch.nn.Module) -> None:
    peer = as_encoder(theirs)
    tokens = ours.tokenize([f"a {name} thing" for name in CLASSES])
    image = torch.from_numpy(pictures(16))
    ours.eval()
    with torch.no_grad():
        for one, other in (
            (ours.encode_image(image), peer.encode_image(image)),
            (ours.encode_text(tokens), peer.encode_text(tokens)),
            (ours.model.logit_scale, peer.model.logit_scale),
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert counted(ours) == counted(peer)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_a_checkpoint_of_attack_cleanclip_is_evaluated_to_the_same_numbers(tmp_path, tower, prefix):
    theirs = OpenAILayout(tower, seed=1).eval()
    optimizer = torch.optim.AdamW(theirs.parameters())
    optimizer.param_groups[0]["lr"] = np.float64(1e-4) * 0.5  # as their cosine schedule leaves it
    state = {f"{prefix}{name}": value for name, value in theirs.state_dict().items()}
    file = tmp_path / "epoch_64.pt"
    torch.save({"epoch": 64, "name": "nodefence", "state_dict": state, "optimizer": optimizer.state_dict()}, file)
    ours = encoder(tower)
    said = said_by(ours, file)
    assert len(said) == 1 and "QuickGELU is computed, as the order of its tensors" in said[0]
    assert_computes_the_same(ours, theirs)


@pytest.mark.parametrize("form", ["folder", "file", "parts", "index", "bin", "bin parts", "wrapped"])
def test_a_hugging_face_checkpoint_is_evaluated_to_the_same_numbers(tmp_path, form):
    theirs = HuggingFaceLayout(seed=2)
    (tmp_path / "config.json").write_text(json.dumps(theirs.configuration))
    ours = encoder("vit")
    assert said_by(ours, hugging_face(theirs.tensors, tmp_path, form)) == []
    assert_computes_the_same(ours, theirs)


def hugging_face(tensors: dict[str, torch.Tensor], folder: Path, form: str) -> Path:
    """The files of `save_pretrained`, and what of them a user may name."""
    write = torch.save if form.startswith("bin") else lambda state, path: save_file({k: v.contiguous() for k, v in state.items()}, path)
    whole, dot = ("pytorch_model", "bin") if form.startswith("bin") else ("model", "safetensors")
    if form in ("parts", "index", "bin parts"):
        names = sorted(tensors)
        places = {name: f"{whole}-0000{1 + i % 3}-of-00003.{dot}" for i, name in enumerate(names)}
        for place in set(places.values()):
            write({name: tensors[name] for name in names if places[name] == place}, folder / place)
        index = folder / f"{whole}.{dot}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return index if form == "index" else folder
    prefix = "clip." if form == "wrapped" else ""
    write({prefix + name: value for name, value in tensors.items()}, folder / f"{whole}.{dot}")
    return folder / f"{whole}.{dot}" if form in ("file", "wrapped") else folder


def test_a_hugging_face_checkpoint_tells_its_activation_heads_and_pixels(tmp_path):
    theirs = HuggingFaceLayout(seed=2, act="gelu")
    folder = hugging_face(theirs.tensors, tmp_path, "folder")
    about = theirs.configuration
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25]}))
    ours = encoder("vit", quick_gelu=False)
    load_weights(ours, folder)
    assert ours.preprocess["mean"] == (0.5, 0.25, 0.5) and ours.preprocess["std"] == (0.5, 0.5, 0.25)
    told = {"do_normalize": False, "resample": 2, "crop_size": {"height": 48, "width": 48}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    assert "for pictures with size 48, interpolation bilinear; here" in said_by(ours, folder)[0]
    assert ours.preprocess["mean"] == (0.0, 0.0, 0.0) and ours.preprocess["std"] == (1.0, 1.0, 1.0)
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}')
    with pytest.raises(InputError, match="do_rescale is false"):
        load_weights(ours, folder)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="is of a model without QuickGELU, the experiment's is one with; take the model 'RN50'"):
        load_weights(encoder("vit", twin="RN50"), folder)
    about["text_config"].pop("hidden_act")  # which leaves their default, quick_gelu
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="hidden_act is quick_gelu for texts and gelu for pictures"):
        load_weights(ours, folder)
    for tower, field, value, words in (
        ("text_config", "num_attention_heads", 4, "text_cfg.heads 4, the experiment's has 2"),
        ("vision_config", "num_attention_heads", 1, "vision_cfg.head_width 32, the experiment's has 16"),
        ("vision_config", "layer_norm_eps", 1e-6, "config.json: vision_config.layer_norm_eps is 1e-06"),
        ("text_config", "hidden_act", "gelu_new", "config.json: text_config.hidden_act is 'gelu_new'"),
        ("text_config", "hidden_size", "64", "config.json: text_config.hidden_size is '64'"),
    ):
        about = HuggingFaceLayout(seed=2, act="gelu").configuration
        about[tower][field] = value
        (tmp_path / "config.json").write_text(json.dumps(about))
        with pytest.raises(InputError, match=words):
            load_weights(ours, folder)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(InputError, match="config.json is of a model of type 'siglip'"):
        load_weights(ours, folder)
    (tmp_path / "config.json").unlink()
    attention = {f"text_model.encoder.layers.0.self_attn.{letter}_proj.bias": torch.tensor(1.0) for letter in "qkv"}
    torch.save({**theirs.tensors, **attention}, tmp_path / "scalars.pt")
    with pytest.raises(InputError, match=r"transformer.resblocks.0.attn.in_proj_bias: the model has \[96\], the file nothing"):
        load_weights(ours, tmp_path / "scalars.pt")
    assert "does not tell its activation: GELU is computed" in said_by(ours, folder)[0]


def test_parts_that_are_missing_or_alone_are_named(tmp_path):
    index = hugging_face(HuggingFaceLayout(seed=2).tensors, tmp_path, "index")
    with pytest.raises(InputError, match="is one of several parts: give their folder"):
        load_weights(encoder("vit"), tmp_path / "model-00002-of-00003.safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="index.json names model-00002-of-00003.safetensors, which is not beside it"):
        load_weights(encoder("vit"), tmp_path)
    for text in ("", "[]", "{}", '{"weight_map": {"logit_scale": "../x"}}', '{"weight_map": {"logit_scale": 3}}'):
        index.write_text(text)
        with pytest.raises(InputError, match="index.json"):
            load_weights(encoder("vit"), tmp_path)
    with pytest.raises(InputError, match="is a folder without weights; looked for: open_clip_model.safetensors"):
        load_weights(encoder("vit"), tmp_path.parent)


class Scripted(torch.nn.Module):
    """OpenAI's archive in small: fp16, with the three entries as buffers."""

    def __init__(self, model: torch.nn.Module, **extra: int) -> None:
        super().__init__()
        for name, part in [*model.named_children(), *model.named_parameters(recurse=False)]:
            setattr(self, name, part)
        for name, value in extra.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.visual.conv1(pixels_BCHW)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_openais_torchscript_archive_is_read_and_its_code_is_not(tmp_path, tower):
    theirs = OpenAILayout(tower, seed=3).half()
    archive = Scripted(theirs, input_resolution=SIZE, context_length=CONTEXT, vocab_size=VOCABULARY)
    torch.jit.trace(archive, torch.zeros(1, 3, SIZE, SIZE).half()).save(tmp_path / "RN50.pt")
    with zipfile.ZipFile(tmp_path / "RN50.pt") as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():  # the same without its code, which can so not have been run
            if "/code/" not in name:
                cut.writestr(name, whole.read(name))
    for name in ("RN50.pt", "cut.pt"):
        ours = encoder(tower)
        said = said_by(ours, tmp_path / name)
        assert "its entries input_resolution" in said[0] and "holds float16 weights" in said[1] and len(said) == 2
        assert same_weights(ours, {key: value.to(ours.model.state_dict()[key].dtype) for key, value in theirs.state_dict().items()})
        assert ours.model.logit_scale.dtype == torch.float32


@pytest.mark.parametrize("number", [torch.tensor, int])
def test_openais_extra_entries_are_checked_and_dropped(tmp_path, number):
    state = OpenAILayout("vit", seed=3).state_dict()
    extra = {"input_resolution": SIZE, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    for name in ("", *extra):
        held = {key: number(value + (key == name)) for key, value in extra.items()}
        torch.save({**state, **held}, tmp_path / "openai.pt")
        ours = encoder("vit")
        if name:
            with pytest.raises(InputError, match=f"its {name} is {extra[name] + 1}, the model's {extra[name]}"):
                load_weights(ours, tmp_path / "openai.pt")
        else:
            load_weights(ours, tmp_path / "openai.pt")
            assert same_weights(ours, state)


@pytest.mark.parametrize("place", ["token_embedding.weight", "visual.conv1.weight"])
def test_finite_weights_with_features_that_are_not_are_no_result(place):
    ours = encoder("vit").eval()
    dict(ours.model.named_parameters())[place].data.fill_(3e38)
    with pytest.raises(InputError, match="checkpoint large.pt cannot be measured: .*not finite"), measured_as("large.pt"):
        counted(ours)


def test_what_identifies_a_checkpoint_covers_all_its_files(tmp_path):
    theirs = HuggingFaceLayout(seed=2)
    folder = hugging_face(theirs.tensors, tmp_path, "parts")
    (tmp_path / "config.json").write_text(json.dumps(theirs.configuration))
    model = Model(name="ViT-B-32", pretrained=str(folder))
    before = weights_identity(model)
    assert sorted(before["beside"]) == ["config.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))]
    for name in before["beside"]:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + b" ")
        assert weights_identity(model) != before, name
        (tmp_path / name).write_bytes(data)
    assert weights_identity(model) == before
    (tmp_path / "alone").mkdir()
    torch.save({}, tmp_path / "alone" / "c.pt")
    assert sorted(weights_identity(Model(name="ViT-B-32", pretrained=str(tmp_path / "alone" / "c.pt")))) == ["sha256", "size"]
    with pytest.raises(InputError, match="is a folder without weights"):
        weights_identity(Model(name="ViT-B-32", pretrained=str(tmp_path.parent)))
