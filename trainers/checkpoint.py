"""Checkpoints: one folder for each, written whole or not at all, with tensors and JSON only.

    <folder>/epoch_0003/  open_clip_model.safetensors  weights under open_clip's names
                          open_clip_config.json        its model and preprocessing configuration
                          state.safetensors            AdamW's tensors, a head's weights and an objective's memory; only in the newest
                                                       checkpoint of an unfinished training
                          meta.json                    step, epoch, seconds, metric sums of the current epoch, lines reported so far,
                                                       the stage; CRC-32 of the other files, SHA-256 of itself
    <folder>/step_00000250/  the same, saved within an epoch; the next checkpoint removes it

A model that a cleaning method returned also gets an epoch folder, but without state: no training continues from it.

`open_clip.create_model_and_transforms(name, pretrained=".../open_clip_model.safetensors")` and `local-dir:<epoch folder>` load the weights
bit for bit.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from datasets.errors import InputError
from datasets.storage import crc32, sync
from trainers.weights.epoch_folder import CONFIG, META, STATE, WEIGHTS, digest, fault, read_meta

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainers.encoder import Encoder

PART = 1 << 20
"""Bytes that are written at once where it is tried why a file cannot be written."""
MEMORY = "memory."
"""Prefix, in STATE, of the names of an objective's buffers."""
NAME = re.compile(r"(epoch|step)_(\d{4,})")
LEFT_OVER = re.compile(r"\.(epoch|step)_\d+\.(partial|removed)")
Keep = str | Callable[[list[dict[str, Any]]], Collection[int]]
"""Which epochs keep their weights besides the newest one: "all", "last" (none), or a function that picks epochs from the lines so far."""


@dataclass
class Progress:
    """How far a stage has come."""

    step: int = 0
    """steps done"""
    epoch: int = 0
    """epochs done"""
    seconds: float = 0.0
    """wall time spent so far, over all attempts"""
    sums: dict[str, float] = field(default_factory=dict)
    """metrics of the current epoch, summed over its steps and over ranks"""
    line: dict[str, Any] | None = None
    """the line of metrics that is reported with this checkpoint"""
    before: list[dict[str, Any]] = field(default_factory=list)
    """the lines reported before `line`"""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines reported so far."""
        return self.before + ([] if self.line is None else [self.line])


def epoch_folder(folder: Path, epoch: int) -> Path:
    """The checkpoint folder of this epoch."""
    return folder / f"epoch_{epoch:04d}"


def newest(folder: Path) -> Path | None:
    """The undamaged checkpoint with the most steps, or None."""
    return next((path for path in _by_age(folder) if not fault(path)), None)


def reported(folder: Path) -> list[dict[str, Any]]:
    """The lines reported up to the newest checkpoint, read from it."""
    metas = [meta for path in _by_age(folder) if (meta := read_meta(path)) and not meta.get("returned")]
    return metas[0]["before"] + ([metas[0]["line"]] if metas[0]["line"] else []) if metas else []


def tidy(folder: Path, keep: Keep = "last", states: int = 1, note: Callable[[str], None] = lambda line: None) -> Path | None:
    """Remove leftovers of killed processes, returned models and damaged checkpoints; return the newest undamaged checkpoint, or None.

    If the newest checkpoint is damaged, the one before it is used; if there is none, training starts over. `note` gets a line that names
    the damaged file. Raises InputError, naming the file, if a checkpoint of an earlier epoch that must be kept is damaged: only training
    from the start could restore it.
    """
    for path in folder.iterdir() if folder.is_dir() else []:
        if LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path)
    folders = _by_age(folder)
    for path in [path for path in folders if read_meta(path).get("returned")]:
        folders.remove(path)
        remove(path)
    faults = [fault(path) for path in folders]
    at = next((number for number, wrong in enumerate(faults) if not wrong), len(folders))
    chosen = folders[at] if at < len(folders) else None
    on = f"the stage goes on from {chosen.name}" if chosen else "there is no other to go on from, so the stage begins anew"
    for number, wrong in enumerate(faults[:at]):
        if number == 0 or not wrong.endswith(f"{STATE} is missing"):  # earlier checkpoints have no state any more
            note(f"NOTE {wrong}; {on}.")
        remove(folders[number])
    if chosen is not None and keep != "last":
        wanted = _wanted(chosen, keep)
        for path in folders[at + 1 :]:
            kept = path.name.startswith("epoch_") and (keep == "all" or path.name in wanted)
            if kept and (wrong := fault(path, state=False)):
                raise InputError(
                    f"{wrong}, in a stage that has not finished: delete {path} to go on without this epoch's checkpoint, or {folder} "
                    "to begin the stage anew."
                )
    if chosen is not None:
        drop_superseded(folder, chosen, keep, states)
    return chosen


def _by_age(folder: Path) -> list[Path]:
    """The checkpoint folders, newest first. A step's folder whose epoch cannot be read comes before all others."""

    def age(path: Path) -> tuple[float, int]:
        kind, number = path.name.split("_")
        return (int(number), -1) if kind == "epoch" else (read_meta(path).get("epoch", float("inf")), int(number))

    folders = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(folders, key=age, reverse=True)


def export(folder: Path, encoder: Encoder) -> None:
    """Write weights and configuration into an existing folder, in open_clip's format."""
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    _save(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(about(encoder), indent=2) + "\n")


def about(encoder: Encoder) -> dict[str, Any]:
    """The configuration that open_clip needs besides the weights."""
    return {"model_cfg": encoder.config, "preprocess_cfg": encoder.preprocess}


def save(
    folder: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, progress: Progress, keep: Keep = "last", states: int = 1,
    memory: nn.Module | None = None,
) -> Path:
    """Save a checkpoint: write it under a temporary name, flush it, rename it, then remove the checkpoints it replaces. Return its folder.

    keep: "all" keeps the weights of every epoch, "last" only those of the newest checkpoint; a function also keeps the epochs it picks.
    states: how many checkpoints keep the optimiser's state and the objective's `memory`.
    """
    assert callable(keep) or keep in ("all", "last")
    folder.mkdir(parents=True, exist_ok=True)
    whole_epoch = not progress.sums
    final = epoch_folder(folder, progress.epoch) if whole_epoch else folder / f"step_{progress.step:08d}"
    _write(final, encoder, {**asdict(progress), "beside": _beside(folder)}, optimizer, memory)
    drop_superseded(folder, final, keep, states)
    return final


def _beside(folder: Path) -> dict[str, str]:
    """CRC-32 of the files in the stage's other folders, such as the evaluators' arrays."""
    others = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and not NAME.fullmatch(path.name)]
    files = [path for other in sorted(others) for path in sorted(other.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): crc32(path) for path in files}


def save_returned(folder: Path, encoder: Encoder, epoch: int) -> Path:
    """Save the model that a cleaning method returned as the checkpoint of this epoch. No training continues from it."""
    final = epoch_folder(folder, epoch)
    _write(final, encoder, {"returned": True, "epoch": epoch}, None)
    return final


def _write(
    final: Path, encoder: Encoder, meta: dict[str, Any], optimizer: torch.optim.Optimizer | None, memory: nn.Module | None = None
) -> None:
    """Write a checkpoint under a temporary name, flush it, then rename it."""
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        export(aside, encoder)
        if optimizer is not None:
            buffers = {} if memory is None else dict(memory.named_buffers())
            held = {f"{MEMORY}{name}": buffer.detach().cpu().contiguous() for name, buffer in buffers.items()}
            _save(_optimizer_tensors(encoder, optimizer) | held, aside / STATE)
        files = {path.name: crc32(path) for path in sorted(aside.iterdir())}
        meta = json.loads(json.dumps({**meta, "stage": final.parent.name, "files": files}))
        (aside / META).write_text(json.dumps({**meta, "digest": digest(meta)}, indent=1) + "\n")
        for path in [*aside.iterdir(), aside]:
            sync(path)
        if final.exists():
            remove(final)
        aside.rename(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # an incomplete file would take space on a full disk
        raise


def drop_superseded(folder: Path, newest: Path, keep: Keep, states: int = 1) -> None:
    """Remove the checkpoints that `newest` replaces. An epoch that is kept loses only its optimiser state."""
    older = [path for path in _by_age(folder) if path != newest]
    wanted = _wanted(newest, keep)
    for other in older:
        if other.name.startswith("step_") or (keep != "all" and other.name not in wanted):
            remove(other)
    for other in [path for path in older if path.is_dir()][states - 1 :]:
        (other / STATE).unlink(missing_ok=True)


def _wanted(newest: Path, keep: Keep) -> set[str]:
    """Names of the folders that a `keep` function picks, from the lines reported up to the newest checkpoint."""
    meta = read_meta(newest) if callable(keep) else {}
    lines = meta.get("before", []) + ([meta["line"]] if meta.get("line") else [])
    return {epoch_folder(newest.parent, epoch).name for epoch in keep(lines)} if callable(keep) else set()


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that after a kill no half-deleted folder looks like a checkpoint."""
    aside = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def progress_of(checkpoint: Path) -> Progress:
    """The progress stored in a checkpoint."""
    meta = json.loads((checkpoint / META).read_text())
    return Progress(**{known.name: meta[known.name] for known in fields(Progress)})


def load(checkpoint: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, memory: nn.Module | None = None) -> None:
    """Load the weights, the optimiser's state and the objective's memory."""
    import torch
    from safetensors.torch import load_file

    from trainers.weights.load import load_weights

    load_weights(encoder, checkpoint, finite=False)  # a diverged model fails in training, with its own message
    tensors = load_file(checkpoint / STATE)
    for name, parameter in parameters(encoder):
        if name.startswith("head."):
            parameter.data.copy_(tensors[f"value.{name}"])
        if f"step.{name}" not in tensors:  # this parameter has had no gradient yet
            continue
        moments = {key: torch.zeros_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device), **moments}
    for name, buffer in memory.named_buffers() if memory is not None else ():
        buffer.copy_(tensors[f"{MEMORY}{name}"])


def clear(folder: Path) -> None:
    """Remove all checkpoints, to train from the start."""
    for path in _by_age(folder):
        remove(path)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
    except SafetensorError:
        _reserve(path, sum(tensor.nbytes for tensor in tensors.values()))
        raise
    path.chmod(0o644)  # safetensors makes files readable by their owner only; the store may be shared


def _reserve(path: Path, size: int) -> None:
    """Raise the OSError that names why a file of this many bytes cannot be written: a full disk, no inode left, a read-only file system.

    safetensors tells it in the words of its error only.
    """
    try:
        with path.open("wb") as file:
            for start in range(0, size, PART):
                file.write(bytes(min(PART, size - start)))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _optimizer_tensors(encoder: Encoder, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{key}.{name}": value.detach().cpu().contiguous()
        for name, parameter in parameters(encoder)
        for key, value in {**optimizer.state.get(parameter, {}), **({"value": parameter} if name.startswith("head.") else {})}.items()
    }


def parameters(encoder: Encoder) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The model's parameters under open_clip's names, then the head's under `head.…`."""
    yield from encoder.model.named_parameters()
    if encoder.head is not None:
        yield from encoder.head.named_parameters(prefix="head")
