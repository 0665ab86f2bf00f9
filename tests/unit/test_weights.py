"""Checkpoints in: what loads, under which names, to which features; what is refused, and in which words."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets.errors import InputError
from orchestrator.identity import weights_identity
from orchestrator.workers import measured_as
from tests.parity.peer_models import CONTEXT, SIZE, VOCABULARY, HuggingFaceLayout, OpenAILayout, as_encoder, encoder
from tests.parity.toys import resnet, vit
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.model import Encoder, Model, load_weights, twin

CLASSES = ("red", "green", "blue", "grey", "small", "large", "round", "flat", "cold", "warm")


def same_weights(one: Encoder, state: dict[str, torch.Tensor]) -> bool:
    own = one.model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def said_by(one: Encoder, path: Path, **kinds) -> list[str]:
    said: list[str] = []
    load_weights(one, path, say=said.append, **kinds)
    return said


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


# What other programs write, to the same numbers


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


# Wrappers and prefixes


PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "model.", "clip.module.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrapped_modules_are_stripped(tmp_path, prefix):
    state = resnet().model.state_dict()
    torch.save({"epoch": 1, "state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "c.pt")
    ours = resnet()
    with torch.no_grad():
        ours.model.logit_scale.add_(1)
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, state)


def test_a_compiled_or_wrapped_part_loads_and_two_of_a_name_are_refused(tmp_path):
    state = vit().model.state_dict()
    renamed = {name.replace("visual.", "visual._orig_mod.").replace("resblocks.0.", "resblocks.0.module."): v for name, v in state.items()}
    torch.save(renamed, tmp_path / "c.pt")
    ours = vit()
    with torch.no_grad():
        ours.model.logit_scale.add_(1)
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, state)
    torch.save({**state, "module.visual.proj": state["visual.proj"] + 1}, tmp_path / "twice.pt")
    with pytest.raises(InputError, match=r"visual.proj \(again\): the model has nothing"):
        load_weights(ours, tmp_path / "twice.pt")


@pytest.mark.parametrize("place", ["model", "model_state_dict", "state_dict", "net", "model state_dict", "state_dict module"])
def test_the_first_wrapper_that_holds_the_models_tensors_is_taken(tmp_path, place):
    state = {name: value + 1 for name, value in vit().model.state_dict().items()}
    held: dict = dict(state)
    for key in reversed(place.split()):
        held = {"epoch": 3, "model": {"name": "RN50"}, "net": {"logit_scale": torch.zeros(())}, key: held}
    torch.save(held, tmp_path / "c.pt")
    ours = vit()
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, state)


class Calls:
    """An object whose reading by pickle runs a command."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


class Schedule:
    """A learning-rate schedule, as programs leave it in their arguments."""

    def __init__(self) -> None:
        self.base_lr, self.last = 1e-3, np.float32(3)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_are_passed_over_and_never_made(tmp_path, zipped, protocol):
    state = {name: value + 1 for name, value in vit().model.state_dict().items()}
    arguments = argparse.Namespace(lr=np.float64(1e-3), scheduler=Schedule(), path=tmp_path, calls=Calls(tmp_path / "made"))
    held = {"args": arguments, "calls": [Calls(tmp_path / "made")], "best": np.float32(0.5), "odd": {1, frozenset("a")}}
    torch.save({**held, "state_dict": state}, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    ours = vit()
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, state) and not (tmp_path / "made").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_views_and_transposed_tensors_are_read_as_they_are(tmp_path, zipped):
    state = vit().model.state_dict()
    large = torch.randn(7, *state["visual.proj"].T.shape)
    odd = {"visual.proj": large[3].T, "text_projection": torch.nn.Parameter(torch.randn(16, 16)), "logit_scale": torch.tensor([2.5])}
    torch.save({**state, **odd}, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    ours = vit()
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, {**state, **{name: value.detach().reshape(state[name].shape) for name, value in odd.items()}})


# The activation


def test_a_bare_checkpoint_says_which_activation_it_took(tmp_path, capsys):
    torch.save(vit().model.state_dict(), tmp_path / "c.pt")
    load_weights(vit(), tmp_path / "c.pt")
    assert "c.pt does not tell its activation: GELU is computed" in capsys.readouterr().err
    torch.save(encoder("vit").model.state_dict(), tmp_path / "c.pt")
    (note,) = said_by(encoder("vit", twin="RN50"), tmp_path / "c.pt")
    assert note.endswith("QuickGELU is computed, which is the model's. For GELU take the model 'RN50'.")
    assert twin("RN50") == "RN50-quickgelu" and twin("RN50-quickgelu") == "RN50" and twin("ViT-S-32-alt") == ""


def test_openais_model_class_is_not_run_without_its_activation(tmp_path):
    state = OpenAILayout("vit", seed=1).state_dict()
    torch.save({"state_dict": state}, tmp_path / "theirs.pt")
    torch.save({"name": "2024_01_02-model_RN50-quickgelu-lr_0.001", "state_dict": encoder("vit").model.state_dict()}, tmp_path / "named.pt")
    for name, why in (("theirs.pt", "the order of its tensors"), ("named.pt", "its name '2024_01_02")):
        words = f"with QuickGELU, as {why}.*tells; the experiment's is one without: take the model 'x-quickgelu'"
        with pytest.raises(InputError, match=words):
            load_weights(encoder("vit", quick_gelu=False, twin="x-quickgelu"), tmp_path / name)
        (note,) = said_by(encoder("vit", quick_gelu=False), tmp_path / name)
        assert "here GELU is computed, and features will differ" in note
    torch.save({"epoch": 1, "name": "default", "state_dict": {name: state[name] for name in sorted(state)}}, tmp_path / "sorted.pt")
    (note,) = said_by(encoder("vit", quick_gelu=False, twin="x-quickgelu"), tmp_path / "sorted.pt")
    assert "does not tell" in note, "an order that is nobody's proves nothing"


@pytest.mark.parametrize(("text", "words"), [
    (b'{"model_cfg": {', "is not JSON: line 1"), (b"", "is not JSON: line 1"), (b"[]", "is not an object"), (b"\xff\xff", "is not text"),
    (b'{"model_cfg": 3}', "model_cfg is not an object"), (b"[" * 100_000, "is not JSON|nested too deep"),
    (b'{"preprocess_cfg": {"mean": [0, 0]}}', "mean in the configuration beside it is"),
    (b'{"preprocess_cfg": {"std": [1, 0, 1]}}', "std in the configuration beside it is .* above 0"),
    (b'{"preprocess_cfg": {"mean": [NaN, 0, 0]}}', "mean in the configuration"),
    (b'{"model_cfg": {"text_cfg": {"heads": 16}}}', "text_cfg.heads 16, the experiment's has 2"),
    (b'{"model_cfg": {"text_cfg": []}, "x": 1}', None), (b'\xef\xbb\xbf{"model_cfg": {}}', None), (b"{}", None),
])  # fmt: skip
def test_a_broken_configuration_beside_the_weights_is_named(tmp_path, text, words):
    state = {name: value + 1 for name, value in vit().model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_bytes(text)
    ours = vit()
    if words is None:
        load_weights(ours, tmp_path)
        assert same_weights(ours, state)
    else:
        with pytest.raises(InputError, match=words) as error:
            load_weights(ours, tmp_path)
        assert str(tmp_path) in str(error.value)


# Refusals


def spoilt(kind: str, value: torch.Tensor) -> object:
    return {
        "sparse": lambda: value.to_sparse(), "meta": lambda: value.to("meta"), "complex": lambda: value.to(torch.complex64),
        "int8": lambda: value.to(torch.int8), "bool": lambda: value > 0, "number": lambda: 3.0, "object": Schedule,
        "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "nan": lambda: value * torch.nan,
        "infinite": lambda: value.double() * 1e300, "scalar": lambda: value.sum(), "array": lambda: value.numpy(),
        "float8": lambda: value.to(torch.float8_e4m3fn),
    }[kind]()  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "words"), [
    ("sparse", "holds a sparse tensor at visual.proj"), ("meta", r"holds a tensor without values \(on the device meta\) at visual.proj"),
    ("quantized", "holds a quantized tensor at visual.proj"), ("complex", "holds complex64 numbers in visual.proj"),
    ("int8", "holds int8 numbers in visual.proj"), ("bool", "holds bool numbers in visual.proj"), ("number", "a float at visual.proj"),
    ("object", "an object of .*Schedule at visual.proj"), ("array", "an object of numpy.*_reconstruct at visual.proj"),
    ("nan", "visual.proj holds NaN"), ("infinite", "visual.proj holds NaN or infinite"), ("float8", "float8_e4m3fn numbers in visual.proj"),
    ("scalar", r"visual.proj: the model has \[16, 16\], the file \[\]"),
])  # fmt: skip
def test_what_is_no_plain_tensor_is_named(tmp_path, kind, words):
    state = vit().model.state_dict()
    torch.save({"state_dict": {**state, "visual.proj": spoilt(kind, state["visual.proj"])}}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=words) as error:
        load_weights(vit(), tmp_path / "c.pt")
    assert "c.pt" in str(error.value)
    if words.startswith("holds a ") or " at " in words:
        lines = str(error.value).split("Two lines convert it")[1].splitlines()
        assert len(lines) == 3 and "torch.save(model.state_dict()" in lines[2]


def test_the_object_in_the_way_is_named(tmp_path):
    timm = {"visual.blocks.0.attn.qkv.weight": torch.zeros(3, 3), "logit_scale": torch.zeros(()), "visual.cls_token": torch.zeros(1)}
    for held, words in (
        ({"args": argparse.Namespace(a=1), "model": vit()}, "argparse.Namespace at args; an object of trainers.model.Encoder at model"),
        (vit(), "it holds an object of trainers.model.Encoder"),
        ([1, 2], "it holds a list"),
        ({"fc.weight": torch.zeros(3)}, r"1 tensors of other names \(first: fc.weight\)"),
        ({"encoder": {"a": 1, "b": 2}}, r"a dictionary of 2 at encoder \(first: a, b\)"),
        ({}, r"a dictionary without tensors \(empty\)"),
        (timm, "holds a vision transformer of timm"),
    ):
        torch.save(held, tmp_path / "c.pt")
        with pytest.raises(InputError, match=words):
            load_weights(vit(), tmp_path / "c.pt")


def test_files_of_other_kinds_are_told_from_damaged_ones(tmp_path):
    state = vit().model.state_dict()
    torch.save(state, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pt").read_bytes()
    place = data.index(state["visual.proj"].numpy().tobytes())
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    for name, held, words in (
        ("empty.pt", b"", "it is empty"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git lfs pull"),
        ("page.pt", b"<html>not found</html>", "neither a file of torch.save nor"),
        ("arrays.pt", (tmp_path / "arrays.npz").read_bytes(), "none of torch.save or TorchScript"),
        ("cut.pt", data[: len(data) // 2], "damaged or cut short"),
        ("old cut.pt", old[:-9], "damaged or cut short"),
        ("flipped.pt", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "damaged or cut short .*CRC"),
        ("renamed.safetensors", data[:-9], "damaged or cut short"),
        ("short.safetensors", b"\x10" + bytes(7) + b"{", "damaged or cut short"),
    ):
        (tmp_path / name).write_bytes(held)
        with pytest.raises(InputError, match=words) as error:
            load_weights(vit(), tmp_path / name)
        assert name in str(error.value)
    for name in ("x" * 300, "x/" * 3000 + "y"):
        with pytest.raises(InputError, match="does not exist"):
            load_weights(vit(), name)
    save_file(state, tmp_path / "tensors.bin")
    (tmp_path / "torch.safetensors").write_bytes(data)
    for name in ("tensors.bin", "torch.safetensors"):
        load_weights(vit(), tmp_path / name)  # known by what it holds


# Weights that diverged


def test_weights_that_are_not_finite_are_refused_unless_a_training_goes_on_from_them(tmp_path):
    state = vit().model.state_dict()
    state["visual.conv1.weight"].view(-1)[5] = torch.inf
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(InputError, match="c.pt: visual.conv1.weight holds NaN or infinite"):
        load_weights(vit(), tmp_path / "c.pt")
    ours = vit()
    load_weights(ours, tmp_path / "c.pt", finite=False)
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
