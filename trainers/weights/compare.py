"""Checks whether a file's tensors fit a model: names, shapes, values, and settings that tensors do not show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.encoder import TOWERS, Encoder, tower_defaults

OPENAI_EXTRA = ("input_resolution", "context_length", "vocab_size")
"""Entries that OpenAI's state dicts hold besides the weights."""
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fitting(encoder: Encoder, file: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the model's form. InputError for OpenAI's entries of another model, and for names or shapes that differ."""
    model_state = encoder.model.state_dict()
    sizes = {"input_resolution": encoder.image_size, "context_length": getattr(encoder.model, "context_length", None),
             "vocab_size": getattr(encoder.model, "vocab_size", None)}  # fmt: skip
    for name in OPENAI_EXTRA:
        if name in state and name not in model_state:
            value = state.pop(name)
            if value.numel() != 1 or value.is_complex() or (sizes[name] is not None and value.item() != sizes[name]):
                held = value.item() if value.numel() == 1 else _shape(value)
                raise InputError(f"checkpoint {file} is of another architecture: its {name} is {held}, the model's {sizes[name]}")
    for scalar in ("logit_scale", "logit_bias"):  # some versions save it with shape [1], others as a scalar
        if scalar in state and scalar in model_state and state[scalar].numel() == model_state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(model_state[scalar].shape)
    counts = {name: value for name, value in model_state.items() if name.endswith("num_batches_tracked")}  # nothing is computed from these
    state = {**counts, **state}
    differences = [f"{name}: the model has {_shape(model_state.get(name))}, the file {_shape(state.get(name))}"
                   for name in [*model_state, *(name for name in state if name not in model_state)]
                   if _shape(model_state.get(name)) != _shape(state.get(name))]  # fmt: skip
    if differences:
        raise InputError(f"checkpoint {file} is of another architecture; {len(differences)} tensors differ, first "
                         + "; ".join(differences[:3]))  # fmt: skip
    return state


def check_numbers(file: Path, state: dict[str, Tensor], own: Mapping[str, Tensor], finite: bool) -> None:
    """Raise InputError for a weight that is not a plain floating-point tensor and, with `finite`, for a value that is not finite."""
    for name, value in state.items():
        if not own[name].is_floating_point():
            continue
        if value.dtype not in _FLOATS or value.layout is not torch.strided:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"checkpoint {file} holds {kind} numbers in {name}; accepted are float64, float32, float16 and bfloat16")
        if finite and not torch.isfinite(value.to(own[name].dtype)).all():
            raise InputError(f"checkpoint {file}: {name} holds NaN or infinite numbers: the training diverged, or the file is damaged")


def check_configuration(encoder: Encoder, file: Path, told: dict[str, Any], whole: bool) -> None:
    """Raise InputError if the configuration beside the weights belongs to a model that computes something else with tensors of the same
    shapes. In a `whole` configuration a missing field has open_clip's default; otherwise it is unknown and not compared."""
    quick, own_quick = (bool(config.get("quick_gelu")) for config in (told, encoder.config))
    if quick != own_quick:
        raise InputError(f"checkpoint {file} is of a model with{'' if quick else 'out'} QuickGELU, the experiment's is one "
                         f"with{'' if own_quick else 'out'}; {_fitting_name(encoder)}")  # fmt: skip
    for tower in TOWERS:
        theirs, ours = (config.get(tower) or {} for config in (told, encoder.config))
        if not isinstance(theirs, dict):
            raise InputError(f"checkpoint {file}: {tower} of the configuration beside it is not an object")
        for field, default in tower_defaults(tower).items() if theirs else ():
            if field in _OF_NO_ACCOUNT or not (whole or field in theirs):
                continue
            one, other = (config.get(field, default) for config in (theirs, ours))
            if _plain(one) != _plain(other):
                raise InputError(f"checkpoint {file} is of a model with {tower}.{field} {one}, the experiment's has {other}")


_OF_NO_ACCOUNT = (
    "patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_model_pretrained",
    "layers", "width", "mlp_ratio", "patch_size", "image_size", "context_length", "vocab_size",
)  # fmt: skip
"""Fields of a tower that do not change what a trained model computes, or that follow from the tensors' names and shapes."""


def _plain(value: Any) -> Any:
    """A setting in a comparable form: a tuple becomes a list, two equal sides become one number."""
    value = list(value) if isinstance(value, (tuple, list)) else value
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def say_activation(encoder: Encoder, file: Path, form: str, say: Callable[[str], None]) -> None:
    """Report which activation the model computes if no configuration states it. InputError if the file's form shows that it is the wrong
    one and a fitting model is known."""
    activation = "QuickGELU" if encoder.config.get("quick_gelu") else "GELU"
    if form and activation == "GELU" and encoder.twin:
        raise InputError(f"checkpoint {file} is of a model with QuickGELU, as {form}, tells; the experiment's is one without: "
                         + _fitting_name(encoder))  # fmt: skip
    if form and activation == "GELU":
        say(f"NOTE checkpoint {file} is of a model with QuickGELU, as {form}, tells; here GELU is computed, and features will differ.")
    elif form:
        say(f"NOTE checkpoint {file} has no configuration beside it: QuickGELU is computed, as {form}, tells.")
    else:
        other = f" For {'GELU' if activation == 'QuickGELU' else 'QuickGELU'} take the model {encoder.twin!r}." if encoder.twin else ""
        say(f"NOTE checkpoint {file} does not tell its activation: {activation} is computed, which is the model's.{other}")


def _fitting_name(encoder: Encoder) -> str:
    return f"take the model {encoder.twin!r}" if encoder.twin else "open_clip's names of the former end in -quickgelu"


def check_preprocessing(encoder: Encoder, file: Path, preprocess: dict[str, Any], say: Callable[[str], None]) -> None:
    """Raise InputError for an invalid mean or standard deviation; report with a NOTE if the weights expect pictures that are resized
    differently."""
    for name in ("mean", "std"):
        value = preprocess.get(name, [1, 1, 1])
        three = isinstance(value, list) and len(value) == 3 and all(type(number) in (int, float) for number in value)
        if not three or not all((name == "mean" or number > 0) and abs(number) < 1e6 for number in value):
            raise InputError(f"checkpoint {file}: {name} in the configuration beside it is {str(value)[:80]}; it must be three numbers"
                             + (" above 0" if name == "std" else ""))  # fmt: skip
    ours = {"size": encoder.image_size, "mode": "RGB", **{name: encoder.preprocess[name] for name in ("interpolation", "resize_mode")}}
    other = [f"{name} {preprocess[name]}" for name in ours if name in preprocess and _plain(preprocess[name]) != ours[name]]
    if other:
        here = ", ".join(f"{name} {value}" for name, value in ours.items())
        say(f"NOTE checkpoint {file} is for pictures with {', '.join(other)}; here they are given with {here}, and features will differ.")


def _shape(value: Tensor | None) -> str:
    return "nothing" if value is None else str(list(value.shape))
