"""Converts names and layout of CLIP's tensors between Hugging Face's `CLIPModel` and open_clip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.errors import InputError
from datasets.text import read_json

_PLACES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled like this in their code
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
_PARTS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
          "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ATTENTION = re.compile(r"self_attn\.([qkv])_proj")
_DEFAULTS = {
    "text_config": {"hidden_act": "quick_gelu", "num_attention_heads": 8, "hidden_size": 512, "layer_norm_eps": 1e-5},
    "vision_config": {"hidden_act": "quick_gelu", "num_attention_heads": 12, "hidden_size": 768, "layer_norm_eps": 1e-5},
}
"""Hugging Face's defaults for fields that a configuration leaves out."""


def knows(name: str) -> bool:
    """Whether this is a tensor name of `CLIPModel` or of another of Hugging Face's two-tower models."""
    return name in _PLACES or name.startswith(("text_model.", "vision_model."))


def is_theirs(state: dict[str, Any]) -> bool:
    """Whether the tensors have Hugging Face's names."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under open_clip's names. Tensors without a counterpart keep their names.

    Hugging Face stores projections transposed, and the weights of queries, keys and values as three tensors; open_clip has one, [3 D, D],
    in that order.
    """
    tensors: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        layer = _LAYER.fullmatch(name)
        if layer:
            tower, number, part, kind = layer.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            letter = _ATTENTION.fullmatch(part)
            if letter:
                attention.setdefault(f"{block}.attn.in_proj_{kind}", {})[letter[1]] = value
            else:
                tensors[f"{block}.{_PARTS.get(part, part)}.{kind}"] = value
        else:
            place = _PLACES.get(name, name)
            tensors[place] = value.T if name in ("text_projection.weight", "visual_projection.weight") and value.ndim == 2 else value
    for place, parts in attention.items():
        shapes = {value.shape for value in parts.values()}
        if len(parts) == 3 and len(shapes) == 1 and shapes != {torch.Size()}:
            tensors[place] = torch.cat([parts[letter] for letter in "qkv"])
        else:
            tensors |= {f"{place} ({letter})": value for letter, value in parts.items()}  # reported as of another architecture
    return tensors


def configuration(file: Path) -> dict[str, Any]:
    """`config.json` beside the weights, in open_clip's form; empty if there is none.

    InputError, naming the file, if it is not a CLIP configuration, or one that open_clip's classes cannot compute.
    """
    path = file.with_name("config.json")
    if not path.is_file():
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is no object, and so not the configuration of a model, which has text_config and vision_config")
    if config.get("model_type", "clip") != "clip":
        raise InputError(f"{path} is of a model of type {config['model_type']!r}; of Hugging Face's, only clip (CLIPModel) is read")
    towers = {}
    for tower, defaults in _DEFAULTS.items():
        sources: Any = [config.get(tower) or {}, config.get(f"{tower}_dict") or {}]
        if not all(isinstance(part, dict) for part in sources):
            raise InputError(f"{path}: {tower} is not an object")
        towers[tower] = tower_config = defaults | sources[0] | sources[1]
        for field, kind in (("num_attention_heads", int), ("hidden_size", int), ("layer_norm_eps", float), ("hidden_act", str)):
            if not isinstance(tower_config[field], kind) or (kind is int and tower_config[field] < 1):
                raise InputError(f"{path}: {tower}.{field} is {tower_config[field]!r}")
        if tower_config["hidden_act"] not in ("quick_gelu", "gelu"):
            raise InputError(f"{path}: {tower}.hidden_act is {tower_config['hidden_act']!r}; open_clip's CLIP has quick_gelu or gelu")
        if tower_config["layer_norm_eps"] != 1e-5:
            raise InputError(f"{path}: {tower}.layer_norm_eps is {tower_config['layer_norm_eps']}; open_clip's CLIP has 1e-5")
    text, vision = towers["text_config"], towers["vision_config"]
    if text["hidden_act"] != vision["hidden_act"]:
        acts = f"{text['hidden_act']} for texts and {vision['hidden_act']} for pictures"
        raise InputError(f"{path}: hidden_act is {acts}; open_clip's CLIP has one for both")
    return {
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "text_cfg": {"heads": text["num_attention_heads"]},
        "vision_cfg": {"head_width": vision["hidden_size"] // vision["num_attention_heads"]},
    }


def preprocessing(file: Path) -> dict[str, Any]:
    """`preprocessor_config.json` beside the weights, in open_clip's terms: mean, std, interpolation, size; empty if there is none.
    InputError if it is not an object, or for models whose pixels are not in 0 … 1."""
    path = file.with_name("preprocessor_config.json")
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise InputError(f"{path} is not an object")
    if config.get("do_rescale", True) is False:
        raise InputError(f"{path}: do_rescale is false; only models of pixels in 0 … 1 are read")
    settings = {ours: config[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in config}
    if config.get("do_normalize", True) is False:
        settings = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    if isinstance(resample := config.get("resample"), int):  # a number of Pillow's
        settings["interpolation"] = _RESAMPLE.get(resample, str(resample))
    crop = config.get("crop_size")
    side = crop.get("height") if isinstance(crop, dict) else crop
    if isinstance(side, int) and config.get("do_center_crop", True):
        settings["size"] = side
    return settings


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


# ---- from open_clip to Hugging Face ----------------------------------------------------------------------------------

_SIZES = {
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"},
}
"""Fields of open_clip's towers that Hugging Face's configuration can express."""
_OWN_PARTS = {ours: theirs for theirs, ours in _PARTS.items()}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def without_counterpart(encoder: Any) -> str:
    """Why `CLIPModel` cannot compute this model; "" if it can."""
    from trainers.encoder import TOWERS, tower_defaults

    config = encoder.config
    if not isinstance(config.get("vision_cfg", {}).get("layers"), int):
        return "its pictures are not encoded by a vision transformer"
    if encoder.model.logit_bias is not None:
        return "it has a logit_bias"
    for tower in TOWERS:
        defaults = tower_defaults(tower)
        for field, value in config.get(tower, {}).items():
            if field not in _SIZES[tower] and value != defaults.get(field):
                return f"its {tower} has {field} = {value!r}"
    if not isinstance(encoder.model.visual.image_size, int) and len(set(encoder.model.visual.image_size)) > 1:
        return "its pictures are not square"
    return ""


def write(folder: Path, encoder: Any) -> None:
    """Write the files that `CLIPModel.from_pretrained` and `CLIPImageProcessor.from_pretrained` read, into an existing folder.

    The model must have a counterpart (`without_counterpart`).
    """
    import json

    from safetensors.torch import save_file

    assert not without_counterpart(encoder)
    tensors = {name: value.float().contiguous() for name, value in renamed(encoder.model.state_dict()).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    side, preprocess = encoder.image_size, encoder.preprocess
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": side},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(preprocess["mean"]), "image_std": list(preprocess["std"]),
    }  # fmt: skip
    for name, content in (("config.json", _their_configuration(encoder)), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under `CLIPModel`'s names: the inverse of `converted`."""
    places = {ours: theirs for theirs, ours in _PLACES.items()}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        value = value.detach().cpu()
        block = _BLOCK.fullmatch(name)
        if block:
            tower, number, part, kind = block.groups()
            layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                tensors |= {f"{layer}.self_attn.{letter}_proj.{kind}": third.clone() for letter, third in zip("qkv", value.chunk(3))}
            else:
                tensors[f"{layer}.{_OWN_PARTS[part]}.{kind}"] = value
        elif name in places:
            tensors[places[name]] = value.T if name in ("text_projection", "visual.proj") else value
    return tensors


def _their_configuration(encoder: Any) -> dict[str, Any]:
    config = encoder.config
    text, vision = config["text_cfg"], config["vision_cfg"]
    act = "quick_gelu" if config.get("quick_gelu", False) else "gelu"
    common = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": config["embed_dim"], "attention_dropout": 0.0}
    vocabulary = text.get("vocab_size", 49408)

    def sizes(tower: dict[str, Any], width: int) -> dict[str, Any]:
        return {"hidden_size": width, "intermediate_size": int(width * tower.get("mlp_ratio", 4.0)),
                "num_hidden_layers": tower.get("layers", 12)}  # fmt: skip

    text_width, width = text.get("width", 512), vision.get("width", 768)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "torch_dtype": "float32",
        "text_config": {
            **common, **sizes(text, text_width), "num_attention_heads": text.get("heads", 8), "vocab_size": vocabulary,
            "max_position_embeddings": text.get("context_length", 77), "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
        "vision_config": {
            **common, **sizes(vision, width), "num_attention_heads": width // vision.get("head_width", 64),
            "patch_size": vision.get("patch_size", 16), "image_size": encoder.image_size,
        },
    }  # fmt: skip
