"""Loads weights into an open_clip model from the files of several programs: this project, open_clip, OpenAI, programs that use OpenAI's
model class (CleanCLIP, attack-cleanclip, SafeCLIP), and Hugging Face.

Files are read as data, and nothing in them is run (see `torchfile`). Names and shapes must then be exactly the model's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datasets.errors import InputError, its_type
from datasets.text import read_json
from trainers.encoder import Encoder
from trainers.weights import huggingface
from trainers.weights.compare import OPENAI_EXTRA, check_configuration, check_numbers, check_preprocessing, fitting, say_activation
from trainers.weights.epoch_folder import CONFIG, META, WEIGHTS, fault
from trainers.weights.files import aside, parts, weights_file
from trainers.weights.torchfile import DAMAGE, Shell, Stored, TorchFile

WRAPPERS = ("model", "model_state_dict", "state_dict", "net", "network", "module", "weights")
"""Keys that may hold the state dict, also nested. The first one that holds the model's names is used."""
WRAPPING = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Name parts that DDP, torch.compile, FSDP and activation checkpointing insert into parameter names."""
BESIDE = {"position_ids", "attn_mask", "total_ops", "total_params"}
"""Last name parts of entries to ignore: buffers that follow from the sizes, and a profiler's counts."""
ACCEPTED = (
    "accepted are an epoch folder, a .safetensors file, a file or folder of Hugging Face's CLIPModel.save_pretrained, and a file of "
    f"torch.save or TorchScript that holds a state dict of tensors, alone or under {', '.join(WRAPPERS)}"
)
CONVERT = """Two lines convert it where the program that wrote it is installed:
    model = ...  # as that program loads it
    torch.save(model.state_dict(), "weights.pt")"""
_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (on the device meta)",
}
_TIMM = re.compile(r"(^|\.)blocks\.\d+\.attn\.qkv\.")
_OPEN_CLIP_NAME = re.compile(r"model_[\w.-]*-quickgelu\b")
_BLOCK = "transformer.resblocks.0."


def load_weights(encoder: Encoder, path: str | Path, *, say: Callable[[str], None] = aside, finite: bool = True) -> None:
    """Load weights from an epoch folder of this project, or from anything else that `ACCEPTED` lists.

    Names and shapes must be exactly the model's. So must settings that tensors do not show (activation, heads), if a configuration beside
    the weights or the file's form shows them. `say` gets a NOTE if no configuration states the activation, if pictures are to be resized
    differently, or if the weights have 16 bits. Raises InputError with the file and the problem: the first tensors that differ, an entry
    that is not a tensor, a value that is not finite (unless `finite` is False), or damage.
    """
    file = weights_file(path)
    if finite:  # otherwise training continues from a checkpoint that was checked already
        _check_sums(file)
    model_state = encoder.model.state_dict()
    state: dict[str, Tensor] = {}
    form = ""
    for part in parts(file) if file.suffix == ".json" else [file]:
        tensors, form = _read(part, model_state)
        if twice := next((name for name in tensors if name in state), None):
            raise InputError(f"checkpoint {file} holds {twice} twice")
        state |= tensors
    theirs = huggingface.is_theirs(state)
    if theirs:
        state = huggingface.converted(state)
    state = fitting(encoder, file, state)
    check_numbers(file, state, model_state, finite)
    about = _object(file.with_name(CONFIG))
    if about:
        settings = _object(file.with_name(CONFIG), "model_cfg")
        whole, settings = bool(settings), settings or encoder.config
        preprocess = _object(file.with_name(CONFIG), "preprocess_cfg")
    else:
        whole, settings = False, huggingface.configuration(file) if theirs else {}
        preprocess = huggingface.preprocessing(file) if theirs else {}
    if settings:
        check_configuration(encoder, file, settings, whole)
    else:
        say_activation(encoder, file, form, say)
    check_preprocessing(encoder, file, preprocess, say)
    short = {str(value.dtype).removeprefix("torch.") for value in state.values() if value.dtype in (torch.float16, torch.bfloat16)}
    if short:
        say(f"NOTE checkpoint {file} holds {' and '.join(sorted(short))} weights; the model has them in float32.")
    encoder.model.load_state_dict(state)
    if about or preprocess:  # a pretrained tag may normalise differently from the architecture's default
        encoder.normalise_by(**{name: preprocess[name] for name in ("mean", "std") if name in preprocess})


def _check_sums(file: Path) -> None:
    """Raise InputError if the weights lie in an epoch folder of this project (also a copied one) and have changed."""
    wrong = fault(file.parent, state=False) if file.name == WEIGHTS and file.with_name(META).is_file() else ""
    if wrong:
        raise InputError(f"checkpoint {file} is damaged: {wrong}. Take a whole copy of its folder.")


def _opened(file: Path, stack: ExitStack) -> tuple[Any, TorchFile | None]:
    """The file's content; for a file of torch.save or TorchScript also the reader of its tensors. InputError if it cannot be read."""
    try:
        with open(file, "rb") as handle:
            head = handle.read(64)
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"checkpoint {file} cannot be read: {error.strerror}") from None
    if not head:
        raise InputError(f"checkpoint {file} cannot be read: it is empty")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"checkpoint {file} cannot be read: it is a pointer of Git LFS; fetch the file itself with: git lfs pull")
    begins = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size
    if begins or (file.suffix == ".safetensors" and not head.startswith((b"PK\x03\x04", b"\x80"))):
        try:
            return load_file(file), None
        except (SafetensorError, *DAMAGE) as error:
            raise InputError(f"checkpoint {file} cannot be read: the file is damaged or cut short ({error})") from error
    opened = TorchFile(file, stack)
    return opened.root, opened


def _read(file: Path, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors in one file that may be the model's, with wrappers' parts removed from their names; and the evidence that the model has
    QuickGELU, or ""."""
    with ExitStack() as stack:
        root, opened = _opened(file, stack)
        states = [_stripped(state, own) for state in _states(root, set())]
        fits = [sum(_known(name, own) for name in state) for state in states]
        best = next((number for number, fit in enumerate(fits) if fit and 2 * fit >= max(fits)), None)
        if best is None:
            held = _described(root)
            raise InputError(f"checkpoint {file} cannot be read as weights of this model: it holds {held}; {ACCEPTED}. {CONVERT}")
        state, tensors = states[best], dict[str, Tensor]()
        if any(_TIMM.search(name) for name in state) and not any(_TIMM.search(name) for name in own):
            raise InputError(f"checkpoint {file} holds a vision transformer of timm, which is another architecture than open_clip's: "
                             "it cannot be loaded into this model")  # fmt: skip
        for name, value in state.items():
            if isinstance(value, Stored) and opened:
                value = opened.tensor(value) if _known(name, own) else torch.empty(value.size, device="meta")
            if name in OPENAI_EXTRA and type(value) is int and abs(value) < 2**31:
                value = torch.tensor(value)
            if isinstance(value, Tensor):
                tensors[name] = value
            elif _known(name, own):
                held = _described(value)
                raise InputError(f"checkpoint {file} cannot be read: it holds {held} at {name}, where a tensor should be. {CONVERT}")
    return tensors, _openai(root, list(tensors)) if opened else ""


def _states(root: Any, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The dictionaries that may be the state dict, most likely first."""
    if isinstance(root, Shell):  # a module in a TorchScript archive
        root = _entries(root)
    if not isinstance(root, dict) or id(root) in seen:
        return
    seen.add(id(root))
    yield {str(name): value for name, value in root.items()}
    for key in WRAPPERS:
        if key in root:
            yield from _states(root[key], seen)


def _entries(module: Shell) -> dict[str, Any]:
    """Tensors and integers of a scripted module and its submodules, by dotted name."""
    entries: dict[str, Any] = {}
    todo: list[tuple[str, Any]] = [("", module)]
    for _ in range(100_000):
        if not todo:
            return entries
        name, value = todo.pop()
        if isinstance(value, Shell) and isinstance(value.state, dict) and name.count(".") < 64:
            todo += [(f"{name}.{key}".removeprefix("."), part) for key, part in reversed(value.state.items())]
        elif isinstance(value, Stored | int):
            entries[name] = value
    return {}


def _stripped(state: dict[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict without the name parts that wrappers insert, and without a prefix common to all names."""
    kept: dict[str, Any] = {}
    for name, value in state.items():
        name = name if name in own else ".".join(part for part in name.split(".") if part not in WRAPPING)
        if name in own or name.rpartition(".")[2] not in BESIDE:
            kept[f"{name} (again)" if name in kept else name] = value
    scales = [name.removesuffix("logit_scale") for name in kept if name.endswith(".logit_scale")]
    if len(scales) == 1 and all(name.startswith(scales[0]) for name in kept):
        return {name.removeprefix(scales[0]): value for name, value in kept.items()}
    return kept


def _known(name: str, own: Mapping[str, Tensor]) -> bool:
    return name in own or name in OPENAI_EXTRA or huggingface.knows(name)


def _openai(root: Any, names: list[str]) -> str:
    """The evidence that the weights belong to OpenAI's model class or to another model with QuickGELU; "" if there is none.

    OpenAI's blocks register attention before the first normalisation, open_clip's after it, and a state dict keeps that order.
    """
    if all(extra in names for extra in OPENAI_EXTRA):
        return f"its entries {', '.join(OPENAI_EXTRA)}, which are OpenAI's"
    first, second = f"{_BLOCK}attn.in_proj_weight", f"{_BLOCK}ln_1.weight"
    if first in names and second in names and names.index(first) < names.index(second) and names != sorted(names):
        return "the order of its tensors, which is that of OpenAI's model class"
    name = root.get("name") if isinstance(root, dict) else None
    return f"its name {name[:80]!r}" if isinstance(name, str) and _OPEN_CLIP_NAME.search(name) else ""


def _described(value: Any) -> str:
    """Describes, for messages, a value found in place of weights."""
    if isinstance(value, Shell):
        return _TENSORS.get(value.name, f"an object of {value.name[:100]}")
    if not isinstance(value, dict):
        return its_type(value)
    parts = []
    for key, inner in list(value.items())[:2000]:
        if isinstance(inner, Shell):
            parts.append(f"{_described(inner)} at {str(key)[:60]}")
        elif isinstance(inner, dict) and inner:
            first = ", ".join(str(name)[:60] for name in list(inner)[:2])
            parts.append(f"a dictionary of {len(inner)} at {str(key)[:60]} (first: {first})")
    tensors = [str(key)[:60] for key, inner in value.items() if isinstance(inner, Tensor | Stored)]
    if tensors:
        parts.append(f"{len(tensors)} tensors of other names (first: {', '.join(tensors[:3])})")
    return "; ".join(parts[:5]) or f"a dictionary without tensors ({', '.join(str(key)[:60] for key in list(value)[:5]) or 'empty'})"


def _object(path: Path, field: str = "") -> dict[str, Any]:
    """The object in a JSON file, or in one of its fields; empty if there is none. InputError if the value is not an object."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if field and isinstance(value, dict):
        value = value.get(field, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}{': ' + field if field else ''} is not an object; it must have model_cfg and preprocess_cfg, as "
                         "open_clip writes them")  # fmt: skip
    return value
