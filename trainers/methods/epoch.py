"""What a method decides at the start of an epoch: values for the pairs, their order, frozen parameters. It is saved, so that a resumed
epoch uses the same decisions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open

from datasets.errors import InputError
from datasets.storage import write_whole
from trainers import distributed
from trainers.distributed import World

if TYPE_CHECKING:
    from torch import nn

    from trainers.encoder import Encoder

FOLDER = "epochs"
"""Name of the folder for plans, in the stage's folder."""
TAKEN = ("step", "epoch", "row", "number", "key", "image", "caption", "poisoned", "image_aug", "caption_aug", "text", "text_aug")
"""Names that a batch uses already."""
ORDER = "order"
ABOUT = "about"
"""Name, in the file's header, of everything that is not an array."""


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """A method's decisions for one epoch. A pair's number is its place among the stage's pairs."""

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    """name → integers or floats, [pairs]. `batch[name]` then holds the values of the batch's pairs, for the objective"""
    order: np.ndarray | None = None
    """int64 [steps · batch size]: the numbers of the pairs that the epoch's steps take, in order. A pair may occur several times or not at
    all. None: the stage's order, each pair once"""
    anew: Iterable[nn.Parameter] = ()
    """parameters that were redrawn; the optimiser drops its state for them. Each rank passes its own"""
    frozen: tuple[str, ...] = ()
    """names of open_clip's parameters that do not change in this epoch: no gradient, momentum or decay moves them"""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """numbers for the epoch's line of metrics; names must contain a slash and not begin with train/"""

    def check(self, pairs: int, samples: int) -> None:
        """Raise InputError if the plan does not fit a stage with this number of pairs and `samples` samples per epoch."""
        for name, value in self.values.items():
            if name in TAKEN or name == ORDER:
                raise InputError(f"begin_epoch gives values called {name!r}, which a batch has already: choose another name.")
            if value.shape != (pairs,) or value.dtype.kind not in "iufb":
                raise InputError(f"begin_epoch gives {name!r} as {value.dtype} {list(value.shape)}; accepted is a number for each of "
                                 f"the {pairs} pairs, [{pairs}].")
        for name, number in self.metrics.items():
            if "/" not in name or name.startswith("train/") or not math.isfinite(number):
                raise InputError(f"begin_epoch gives the metric {name!r} as {number}; accepted are finite numbers under names such as "
                                 "method/share, which do not begin with train/.")
        order = self.order
        if order is None:
            return
        if order.shape != (samples,) or order.dtype.kind not in "iu":
            raise InputError(f"begin_epoch gives the order as {order.dtype} {list(order.shape)}; accepted are the numbers of the pairs of "
                             f"all steps of an epoch, integers [{samples}].")
        if len(order) and not 0 <= order.min() <= order.max() < pairs:
            raise InputError(f"begin_epoch orders pairs {order.min()} to {order.max()}; accepted are 0 to {pairs - 1}.")

    def write(self, file: Path) -> None:
        """Write the plan as safetensors; InputError if a value is not an array that safetensors can hold."""
        import torch
        from safetensors.torch import save

        arrays = {**self.values, **({} if self.order is None else {ORDER: self.order})}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {"frozen": list(self.frozen), "metrics": {name: float(number) for name, number in self.metrics.items()}}
        write_whole(file, save(tensors, {ABOUT: json.dumps(about)}))

    @staticmethod
    def read(file: Path) -> EpochPlan:
        """Read a file of `write`. `anew` is not stored."""
        from safetensors.torch import load_file

        arrays = {name: tensor.numpy() for name, tensor in load_file(file).items()}
        order = arrays.pop(ORDER, None)
        with safe_open(file, "np") as opened:
            about = json.loads((opened.metadata() or {}).get(ABOUT, "{}"))
        return EpochPlan(values=arrays, order=order, frozen=tuple(about.get("frozen", ())), metrics=about.get("metrics", {}))


BeginEpoch = Callable[["Encoder", int], EpochPlan]
"""(model, epochs of the stage so far) → the next epoch's plan. Called on every rank. Rank 0's plan counts, but each rank uses its own
`anew`."""


def begin(begin_epoch: BeginEpoch, encoder: Encoder, epoch: int, within: bool, folder: Path, world: World) -> EpochPlan:
    """This epoch's plan, the same on every rank. With `within` the epoch began in an earlier attempt, and its plan is read from the file.
    The plans of the two epochs before are kept, because training may have to go back to their checkpoints. InputError for an unknown name
    in `frozen`."""
    file = folder / FOLDER / f"epoch_{epoch:04d}.safetensors"
    anew: tuple[nn.Parameter, ...] = ()
    plan: EpochPlan | None = None
    if within:
        plan = EpochPlan.read(file) if world.main else None
    else:
        decided = begin_epoch(encoder, epoch)
        anew = tuple(decided.anew)
        if world.main:
            decided.write(file)
            plan = replace(decided, anew=())
            kept = {file.with_name(f"epoch_{epoch - back:04d}.safetensors") for back in range(3)}
            for other in set(file.parent.glob("epoch_*.safetensors")) - kept:
                other.unlink()
    plan = distributed.from_main(plan, world)
    assert plan is not None
    unknown = sorted(set(plan.frozen) - {name for name, _ in encoder.model.named_parameters()})
    if unknown:
        raise InputError(f"begin_epoch freezes {', '.join(unknown)}; accepted are names of the model's parameters, as in open_clip.")
    return replace(plan, anew=anew)
