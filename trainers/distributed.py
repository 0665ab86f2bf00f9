"""Training on several processes with exactly the gradient of one.

Three rules make it exact: every operation that crosses ranks sums its gradient over ranks in the backward pass; each rank's loss is the
mean over its own rows; DistributedDataParallel averages the parameters' gradients over ranks. Then the averaged gradient is the gradient of
the whole batch's mean loss, for any number of ranks. This also holds for parameters used after the gather, such as the logit scale.

Shape suffixes: B rows of this rank, N rows of all ranks (B times the world size), D features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among the processes that train together."""

    rank: int = 0
    """0 to size - 1; rank 0 writes files and reports"""
    size: int = 1
    """processes that train together"""
    device: torch.device = field(default_factory=_cpu)
    """where this process's model lies"""

    @property
    def main(self) -> bool:
        """True on the rank that writes and reports."""
        return self.rank == 0

    @staticmethod
    def current() -> World:
        """The world of the initialised process group; without one, this process alone. The device is the GPU with the number LOCAL_RANK
        (default 0), or the CPU if there is no GPU or the group uses gloo."""
        import torch
        import torch.distributed as dist

        if torch.cuda.is_available() and (size() == 1 or dist.get_backend() == "nccl"):
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        else:
            device = torch.device("cpu")
        return World(rank=rank(), size=size(), device=device)


def size() -> int:
    """Processes in the default group; 1 when none is initialised."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 when none is initialised."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(local_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, [N, ...]. The gradient of a row is the sum of the gradients that all ranks send back.

    Every rank must hold the same number of rows. With one rank, returns its input.
    """
    from trainers.collectives import Gather

    return local_BD if size() == 1 else Gather.apply(local_BD.contiguous())


def synchronise_batchnorm(module: nn.Module, world: World) -> nn.Module:
    """Make every 2-d batch normalisation in `module` use the batches of all ranks, in place. With one rank, nothing changes."""
    from torch import nn

    from trainers.collectives import GlobalBatchNorm

    if world.size == 1:
        return module
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm  # only `forward` differs, so parameters and hooks stay as they are
    return module


def wrap(module: nn.Module, world: World, broadcast_buffers: bool = False) -> nn.Module:
    """`module` wrapped in DistributedDataParallel, which averages gradients over ranks. With one rank, `module` itself."""
    from torch import nn

    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=devices, broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True
    )


def sum_over_ranks(values: Mapping[str, float], world: World) -> dict[str, float]:
    """Each value summed over ranks, in float64 (integers are exact up to 2^53)."""
    import torch
    import torch.distributed as dist

    if world.size == 1:
        return dict(values)
    names = sorted(values)
    total = torch.tensor([values[name] for name in names], dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist()))


def from_main(value: Any, world: World) -> Any:
    """Rank 0's `value` on every rank; any picklable object."""
    import torch.distributed as dist

    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device if world.device.type == "cuda" else None)
    return box[0]


def gather_lists(values: list[Any], world: World) -> list[Any]:
    """The lists of all ranks, joined in rank order, on every rank."""
    import torch.distributed as dist

    if world.size == 1:
        return values
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def share_buffers(module: nn.Module, world: World) -> None:
    """Copy rank 0's buffers to every rank, so that all ranks measure and save the same model even if their batch statistics differ."""
    import torch.distributed as dist

    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
