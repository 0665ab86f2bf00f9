"""Checkpoints in: names, wrappers and objects that load; what is refused, and in which words."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from datasets.errors import InputError
from tests.parity.peer_models import OpenAILayout, encoder, said_by, same_weights
from tests.parity.toys import resnet, vit
from trainers.encoder import twin
from trainers.weights.load import load_weights

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


def test_an_archive_that_was_saved_without_checksums_is_read(tmp_path):
    state = {name: value + 1 for name, value in vit().model.state_dict().items()}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "c.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    ours = vit()
    load_weights(ours, tmp_path / "c.pt")
    assert same_weights(ours, state)


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


@pytest.mark.parametrize(("tower", "field", "value"), [
    ("vision_cfg", "pool_type", "avg"), ("vision_cfg", "final_ln_after_pool", True), ("text_cfg", "no_causal_mask", True),
    ("text_cfg", "pool_type", "first"), ("text_cfg", "act_kwargs", {"approximate": "tanh"}), ("text_cfg", "heads", 4),
])  # fmt: skip
def test_a_model_that_computes_otherwise_with_the_same_tensors_is_refused(tmp_path, tower, field, value):
    ours = vit()
    save_file(ours.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    about = {"model_cfg": {**ours.config, tower: {**ours.config[tower], field: value}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=f"is of a model with {tower}.{field} {re.escape(str(value))}, the experiment's has"):
        load_weights(ours, tmp_path)


@pytest.mark.parametrize(("field", "value"), [("resize_mode", "squash"), ("interpolation", "bilinear"), ("size", 64), ("size", [64, 64])])
def test_pictures_made_smaller_otherwise_are_noted(tmp_path, field, value):
    ours = vit()
    save_file(ours.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    usual = {"size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"}
    for preprocess, expected in ((usual, 0), ({**usual, field: value}, 1)):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": ours.config, "preprocess_cfg": preprocess}))
        said: list[str] = []
        load_weights(ours, tmp_path, say=said.append)
        assert len(said) == expected and all(f"for pictures with {field} {value}; here" in line for line in said)


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
        ({"args": argparse.Namespace(a=1), "model": vit()}, "argparse.Namespace at args; an object of trainers.encoder.Encoder at model"),
        (vit(), "it holds an object of trainers.encoder.Encoder"),
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
