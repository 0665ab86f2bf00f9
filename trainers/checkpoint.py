"""Checkpoints: a folder a time, complete or absent, tensors and JSON only.

    <folder>/epoch_0003/  open_clip_model.safetensors  weights under open_clip's names
                          open_clip_config.json        its model and preprocessing configuration
                          state.safetensors            AdamW's tensors, a head's weights, an objective's memory; in the newest checkpoint of
                                                       an unfinished training only
                          meta.json                    step, epoch, seconds, metric sums of the epoch under way, lines reported
                                                       so far, the stage; CRC-32 of the other files, SHA-256 of itself
    <folder>/step_00000250/  the same, within an epoch; removed by the next one

A model that a cleaning method returned has an epoch folder too, without a state: no training continues from it.

`open_clip.create_model_and_transforms(name, pretrained=".../open_clip_model.safetensors")` and `local-dir:<epoch folder>` load
the weights bit for bit.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from datasets.errors import InputError
from datasets.storage import crc32, sync
from trainers.encoder import Encoder
from trainers.weights.epoch_folder import CONFIG, META, STATE, WEIGHTS, digest, fault, read_meta
from trainers.weights.load import load_weights

FULL = 1 << 20
"""Bytes. If a file cannot be written and less room than this is left, the disk counts as full."""
MEMORY = "memory."
"""Prefix of the names of an objective's buffers in STATE."""
NAME = re.compile(r"(epoch|step)_(\d{4,})")
LEFT_OVER = re.compile(r"\.(epoch|step)_\d+\.(partial|removed)")
Keep = str | Callable[[list[dict[str, Any]]], Collection[int]]
"""Which epochs' weights are kept beside the newest: "all", "last" (none), or a function that picks epochs by the lines so far."""


@dataclass
class Progress:
    """The progress of a stage."""

    step: int = 0
    """steps done"""
    epoch: int = 0
    """epochs done"""
    seconds: float = 0.0
    """wall time spent so far, over all attempts"""
    sums: dict[str, float] = field(default_factory=dict)
    """metrics of the epoch under way, summed over its steps and over ranks"""
    line: dict[str, Any] | None = None
    """the line of metrics reported at this checkpoint, or about to be"""
    before: list[dict[str, Any]] = field(default_factory=list)
    """the lines reported before that one"""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines reported up to here."""
        return self.before + ([] if self.line is None else [self.line])


def epoch_folder(folder: Path, epoch: int) -> Path:
    """The folder of the checkpoint after that many epochs."""
    return folder / f"epoch_{epoch:04d}"


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    return next((path for path in _by_age(folder) if not fault(path)), None)


def reported(folder: Path) -> list[dict[str, Any]]:
    """The lines reported up to the newest checkpoint, as stored in it."""
    metas = [meta for path in _by_age(folder) if (meta := read_meta(path)) and not meta.get("returned")]
    return metas[0]["before"] + ([metas[0]["line"]] if metas[0]["line"] else []) if metas else []


def tidy(folder: Path, keep: Keep = "last", states: int = 1, note: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest whole checkpoint, or None. Remains of killed processes and damaged checkpoints are removed.

    If the newest one is damaged, the one before it is used; where there is none, training begins anew. `note` is told the damaged file.
    InputError names a damaged file of an earlier epoch that is to be kept, because only training from the start could make it again.
    """
    for path in folder.iterdir() if folder.is_dir() else []:
        if LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path)
    found = _by_age(folder)
    for path in [path for path in found if read_meta(path).get("returned")]:
        found.remove(path)
        remove(path)
    faults = [fault(path) for path in found]
    at = next((number for number, wrong in enumerate(faults) if not wrong), len(found))
    chosen = found[at] if at < len(found) else None
    on = f"the stage goes on from {chosen.name}" if chosen else "there is no other to go on from, so the stage begins anew"
    for number, wrong in enumerate(faults[:at]):
        if number == 0 or not wrong.endswith(f"{STATE} is missing"):  # of an earlier checkpoint it is removed later
            note(f"NOTE {wrong}; {on}.")
        remove(found[number])
    if chosen is not None and keep != "last":
        wanted = _wanted(chosen, keep)
        for path in found[at + 1 :]:
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
    """The folders with a checkpoint's name, newest first. That of a step within an epoch comes first if it does not state its epoch."""

    def age(path: Path) -> tuple[float, int]:
        kind, number = path.name.split("_")
        return (int(number), -1) if kind == "epoch" else (read_meta(path).get("epoch", float("inf")), int(number))

    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=age, reverse=True)


def export(folder: Path, encoder: Encoder) -> None:
    """Write weights and configuration into an existing folder, in open_clip's format."""
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.model.state_dict().items()}
    _save(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(about(encoder), indent=2) + "\n")


def about(encoder: Encoder) -> dict[str, Any]:
    """What open_clip needs to know about a model beside its weights."""
    return {"model_cfg": encoder.config, "preprocess_cfg": encoder.preprocess}


def save(
    folder: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, progress: Progress, keep: Keep = "last", states: int = 1,
    memory: nn.Module | None = None,
) -> Path:
    """Write the checkpoint of this progress aside, flush it, rename it into place, then drop what it replaces.

    keep: "all" keeps the weights of every epoch, "last" of the newest checkpoint only, a function also those of the epochs it picks.
    states: for how many checkpoints the optimiser's state is kept, with the objective's `memory`. Returns the new checkpoint's folder.
    """
    assert callable(keep) or keep in ("all", "last")
    folder.mkdir(parents=True, exist_ok=True)
    whole_epoch = not progress.sums
    final = epoch_folder(folder, progress.epoch) if whole_epoch else folder / f"step_{progress.step:08d}"
    _write(final, encoder, {**asdict(progress), "beside": _beside(folder)}, optimizer, memory)
    drop_superseded(folder, final, keep, states)
    return final


def _beside(folder: Path) -> dict[str, str]:
    """Checksums of the files that training keeps in other folders beside its checkpoints, such as the arrays of evaluators."""
    others = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and not NAME.fullmatch(path.name)]
    files = [path for other in sorted(others) for path in sorted(other.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): crc32(path) for path in files}


def save_returned(folder: Path, encoder: Encoder, epoch: int) -> Path:
    """Write the model that a cleaning method returned, as the checkpoint of that epoch; no training continues from it."""
    final = epoch_folder(folder, epoch)
    _write(final, encoder, {"returned": True, "epoch": epoch}, None)
    return final


def _write(
    final: Path, encoder: Encoder, meta: dict[str, Any], optimizer: torch.optim.Optimizer | None, memory: nn.Module | None = None
) -> None:
    """Write a checkpoint aside, flush it, rename it into place."""
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
    except BaseException as error:
        full = shutil.disk_usage(final.parent).free < FULL
        shutil.rmtree(aside, ignore_errors=True)  # leave no incomplete file, above all on a full disk
        if isinstance(error, SafetensorError) and full:
            raise OSError(errno.ENOSPC, "No space left on device", str(aside)) from error
        raise


def drop_superseded(folder: Path, newest: Path, keep: Keep, states: int = 1) -> None:
    """Remove the checkpoints that the newest one replaces: whole folders or, where the epoch is kept, only the optimiser's state."""
    older = [path for path in _by_age(folder) if path != newest]
    wanted = _wanted(newest, keep)
    for other in older:
        if other.name.startswith("step_") or (keep != "all" and other.name not in wanted):
            remove(other)
    for other in [path for path in older if path.is_dir()][states - 1 :]:
        (other / STATE).unlink(missing_ok=True)


def _wanted(newest: Path, keep: Keep) -> set[str]:
    """Names of the folders that a `keep` function keeps, given the lines reported up to the newest checkpoint."""
    meta = read_meta(newest) if callable(keep) else {}
    lines = meta.get("before", []) + ([meta["line"]] if meta.get("line") else [])
    return {epoch_folder(newest.parent, epoch).name for epoch in keep(lines)} if callable(keep) else set()


def remove(checkpoint: Path) -> None:
    """Remove a whole checkpoint. It is renamed first, so that a kill meanwhile leaves nothing that looks like a checkpoint."""
    aside = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def progress_of(checkpoint: Path) -> Progress:
    """The progress that is stored in it."""
    meta = json.loads((checkpoint / META).read_text())
    return Progress(**{known.name: meta[known.name] for known in fields(Progress)})


def load(checkpoint: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, memory: nn.Module | None = None) -> None:
    """Load weights, optimiser and the objective's memory as they were saved."""
    load_weights(encoder, checkpoint, finite=False)  # a model that diverged fails in training, with its own message
    tensors = load_file(checkpoint / STATE)
    for name, parameter in parameters(encoder):
        if name.startswith("head."):
            parameter.data.copy_(tensors[f"value.{name}"])
        if f"step.{name}" not in tensors:  # it has had no gradient yet
            continue
        moments = {key: torch.zeros_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": tensors[f"step.{name}"].to(parameter.device), **moments}
    for name, buffer in memory.named_buffers() if memory is not None else ():
        buffer.copy_(tensors[f"{MEMORY}{name}"])


def clear(folder: Path) -> None:
    """Remove every checkpoint, to start anew."""
    for path in _by_age(folder):
        remove(path)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors makes files readable by their owner only, but the store may be shared


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
