"""Checkpoints: a folder a time, complete or absent, tensors and JSON only.

    <folder>/epoch_0003/  open_clip_model.safetensors  weights under open_clip's names
                          open_clip_config.json        its model and preprocessing configuration
                          state.safetensors            AdamW's tensors, and a head's weights; in the newest checkpoint of
                                                       an unfinished training only
                          meta.json                    step, epoch, seconds, metric sums of the epoch under way, last report
    <folder>/step_00000250/  the same, within an epoch; removed by the next one

`open_clip.create_model_and_transforms(name, pretrained=".../open_clip_model.safetensors")` and `local-dir:<epoch folder>` load
the weights bit for bit.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from datasets.storage import sync
from trainers.model import WEIGHTS, Encoder, load_weights

FULL = 1 << 20
"""Bytes: with less room than this a file that could not be written is taken to have filled the disk."""
CONFIG, STATE, META = "open_clip_config.json", "state.safetensors", "meta.json"
NAME = re.compile(r"epoch_\d{4,}|step_\d{8,}")
Keep = str | Callable[["Progress"], Collection[int]]
"""Which epochs' weights stay beside the newest checkpoint: "all", "last" (none), or what the function names when one is written."""


@dataclass
class Progress:
    """How far a stage has come."""

    step: int = 0
    """steps done"""
    epoch: int = 0
    """epochs done"""
    seconds: float = 0.0
    """wall time spent so far, over all runs that took part"""
    sums: dict[str, float] = field(default_factory=dict)
    """metrics of the epoch under way, summed over its steps and over ranks"""
    line: dict[str, Any] | None = None
    """what was (or was about to be) reported at this checkpoint"""


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Where the checkpoint after that many epochs lies."""
    return folder / f"epoch_{epoch:04d}"


def newest(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    found = [p for p in folder.iterdir() if NAME.fullmatch(p.name) and (p / STATE).is_file()] if folder.is_dir() else []
    return max(found, key=lambda p: json.loads((p / META).read_text())["step"], default=None)


def export(folder: Path, encoder: Encoder) -> None:
    """Write weights and configuration into an existing folder, in open_clip's format."""
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    _save(weights, folder / WEIGHTS)
    config = {"model_cfg": encoder.config, "preprocess_cfg": encoder.preprocess}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def save(folder: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, progress: Progress, keep: Keep = "last") -> Path:
    """Write the checkpoint of this progress aside, flush it, rename it into place, then drop what it replaces.

    keep: "all" keeps the weights of every epoch, "last" of the newest checkpoint only, a function also those of the epochs it names.
    Returns the checkpoint's folder.
    """
    assert callable(keep) or keep in ("all", "last")
    whole_epoch = not progress.sums
    final = epoch_folder(folder, progress.epoch) if whole_epoch else folder / f"step_{progress.step:08d}"
    aside = folder / f".{final.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        export(aside, encoder)
        _save(_optimizer_tensors(encoder, optimizer), aside / STATE)
        (aside / META).write_text(json.dumps(asdict(progress), indent=1) + "\n")
        for path in [*aside.iterdir(), aside]:
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        sync(folder)
    except BaseException as error:
        full = shutil.disk_usage(folder).free < FULL
        shutil.rmtree(aside, ignore_errors=True)  # nothing half-written stays behind, on a full disk above all
        if isinstance(error, SafetensorError) and full:
            raise OSError(errno.ENOSPC, "No space left on device", str(aside)) from error
        raise
    kept = {epoch_folder(folder, epoch).name for epoch in keep(progress)} if callable(keep) else set()
    for other in folder.iterdir():
        if other == final or not NAME.fullmatch(other.name):
            continue
        if other.name.startswith("step_") or (keep != "all" and other.name not in kept):
            shutil.rmtree(other)
        else:
            (other / STATE).unlink(missing_ok=True)
    return final


def load(checkpoint: Path, encoder: Encoder, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights and optimiser back as they were saved; returns the progress."""
    load_weights(encoder, checkpoint)
    tensors = load_file(checkpoint / STATE)
    for name, parameter in parameters(encoder):
        if name.startswith("head."):
            parameter.data.copy_(tensors[f"value.{name}"])
        if f"step.{name}" not in tensors:  # no gradient has reached it yet
            continue
        moments = {key: torch.zeros_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device), **moments}
    return Progress(**json.loads((checkpoint / META).read_text()))


def clear(folder: Path) -> None:
    """Remove every checkpoint, to start anew."""
    for path in folder.iterdir() if folder.is_dir() else []:
        if NAME.fullmatch(path.name):
            shutil.rmtree(path)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors makes files that nobody else on a shared store can read


def _optimizer_tensors(encoder: Encoder, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": value.detach().cpu().contiguous()
        for name, parameter in parameters(encoder)
        for key, value in {**optimizer.state.get(parameter, {}), **({"value": parameter} if name.startswith("head.") else {})}.items()
    }


def parameters(encoder: Encoder) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The model's parameters by open_clip's names, then those of the head, `head.…`."""
    yield from encoder.model.named_parameters()
    if encoder.head is not None:
        yield from encoder.head.named_parameters(prefix="head")
