"""Training on several processes with exactly the gradient of one.

Three rules make it exact: every operation that crosses ranks sums its gradient over ranks in the backward pass; each rank's loss is the
mean over its own rows; DistributedDataParallel averages the parameters' gradients over ranks. Then the averaged gradient is the gradient of
the whole batch's mean loss, for any number of ranks. This also holds for parameters used after the gather, such as the logit scale.

Shape suffixes: B rows of this rank, N rows of all ranks (B times the world size), D features, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among the processes that train together."""

    rank: int = 0
    """0 to size - 1; rank 0 writes files and reports"""
    size: int = 1
    """processes that train together"""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """where this process's model lies"""

    @property
    def main(self) -> bool:
        """True on the rank that writes and reports."""
        return self.rank == 0

    @staticmethod
    def current() -> World:
        """The world of the initialised process group; without one, this process alone. The device is the GPU with the number LOCAL_RANK
        (default 0), or the CPU if there is no GPU or the group uses gloo."""
        if torch.cuda.is_available() and (size() == 1 or dist.get_backend() == "nccl"):
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        else:
            device = torch.device("cpu")
        return World(rank=rank(), size=size(), device=device)


def size() -> int:
    """Processes in the default group; 1 when none is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 when none is initialised."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(local_BD) for _ in range(size())]
        dist.all_gather(parts, local_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SumOfRows.apply(grads[0].contiguous())


class _SumOfRows(torch.autograd.Function):
    """[N, D] of each rank -> this rank's rows [B, D] of their sum. A function of its own, so that a loss may hold a gradient."""

    @staticmethod
    def forward(ctx: Any, grad_ND: Tensor) -> Tensor:
        rows = grad_ND.shape[0] // size()
        if dist.get_backend() == "nccl":
            grad_BD = grad_ND.new_empty((rows, *grad_ND.shape[1:]))
            dist.reduce_scatter_tensor(grad_BD, grad_ND)
            return grad_BD
        grad_ND = grad_ND.clone()  # gloo has no reduce_scatter, and autograd's own buffer must not be overwritten
        dist.all_reduce(grad_ND)
        return grad_ND[rank() * rows : (rank() + 1) * rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Gather.apply(grads[0].contiguous())


def gather_rows(local_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, [N, ...]. The gradient of a row is the sum of the gradients that all ranks send back.

    Every rank must hold the same number of rows. With one rank, returns its input.
    """
    return local_BD if size() == 1 else _Gather.apply(local_BD.contiguous())


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all ranks, for processes joined by gloo, in any float type.

    It has the parameters, buffers and state-dict names of `nn.BatchNorm2d`, and computes what that computes on the whole batch, up to
    rounding. One gather collects the moments of all ranks. They are combined by Chan's rule, which uses means and squared deviations
    instead of sums of squares and so does not cancel for large means. The running statistics are equal on all ranks, bit for bit. Every
    rank must hold the same number of elements per channel. On GPUs torch's SyncBatchNorm does the same faster.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name is nn.BatchNorm2d's)
        if not self.training or size() == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        x_BCHW = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
        means_WC, vars_WC = gather_rows(torch.stack([mean_C, var_C])[None]).unbind(1)
        mean_C = means_WC.mean(0)
        var_C = vars_WC.mean(0) + (means_WC - mean_C).square().mean(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = x_BCHW.numel() // x_BCHW.shape[1] * size()
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), momentum)
        scale_C = torch.rsqrt(var_C + self.eps)
        shift_C = -mean_C * scale_C
        if self.weight is not None:
            scale_C, shift_C = scale_C * self.weight, shift_C * self.weight + self.bias
        return (x_BCHW * scale_C[:, None, None] + shift_C[:, None, None]).to(input.dtype)


def synchronise_batchnorm(module: nn.Module, world: World) -> nn.Module:
    """Make every 2-d batch normalisation in `module` use the batches of all ranks, in place. With one rank, nothing changes."""
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
    if world.size == 1:
        return module
    devices = [world.device] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=devices, broadcast_buffers=broadcast_buffers, gradient_as_bucket_view=True
    )


def sum_over_ranks(values: Mapping[str, float], world: World) -> dict[str, float]:
    """Each value summed over ranks, in float64 (integers are exact up to 2^53)."""
    if world.size == 1:
        return dict(values)
    names = sorted(values)
    total = torch.tensor([values[name] for name in names], dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return dict(zip(names, total.tolist()))


def from_main(value: Any, world: World) -> Any:
    """Rank 0's `value` on every rank; any picklable object."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device if world.device.type == "cuda" else None)
    return box[0]


def gather_lists(values: list[Any], world: World) -> list[Any]:
    """The lists of all ranks, joined in rank order, on every rank."""
    if world.size == 1:
        return values
    parts: list[Any] = [None] * world.size
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def share_buffers(module: nn.Module, world: World) -> None:
    """Copy rank 0's buffers to every rank, so that all ranks measure and save the same model even if their batch statistics differ."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
