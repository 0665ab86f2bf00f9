"""The operations that cross ranks with a gradient, and the batch normalisation that uses them (see `distributed`).

Shape suffixes: B rows of this rank, N rows of all ranks (B times the world size), D features, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Gather(torch.autograd.Function):
    """[B, D] of each rank -> the rows of all ranks [N, D], in rank order."""

    @staticmethod
    def forward(ctx: Any, local_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(local_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return SumOfRows.apply(grads[0].contiguous())


class SumOfRows(torch.autograd.Function):
    """[N, D] of each rank -> this rank's rows [B, D] of their sum. A function of its own, so that a loss may hold a gradient."""

    @staticmethod
    def forward(ctx: Any, grad_ND: Tensor) -> Tensor:
        rows = grad_ND.shape[0] // dist.get_world_size()
        if dist.get_backend() == "nccl":
            grad_BD = grad_ND.new_empty((rows, *grad_ND.shape[1:]))
            dist.reduce_scatter_tensor(grad_BD, grad_ND)
            return grad_BD
        grad_ND = grad_ND.clone()  # gloo has no reduce_scatter, and autograd's own buffer must not be overwritten
        dist.all_reduce(grad_ND)
        first = dist.get_rank() * rows
        return grad_ND[first : first + rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return Gather.apply(grads[0].contiguous())


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all ranks, for processes joined by gloo, in any float type.

    It has the parameters, buffers and state-dict names of `nn.BatchNorm2d`, and computes what that computes on the whole batch, up to
    rounding. One gather collects the moments of all ranks. They are combined by Chan's rule, which uses means and squared deviations
    instead of sums of squares and so does not cancel for large means. The running statistics are equal on all ranks, bit for bit. Every
    rank must hold the same number of elements per channel. On GPUs torch's SyncBatchNorm does the same faster.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name is nn.BatchNorm2d's)
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        x_BCHW = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
        means_WC, vars_WC = Gather.apply(torch.stack([mean_C, var_C])[None].contiguous()).unbind(1)
        mean_C = means_WC.mean(0)
        var_C = vars_WC.mean(0) + (means_WC - mean_C).square().mean(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = x_BCHW.numel() // x_BCHW.shape[1] * dist.get_world_size()
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), momentum)
        scale_C = torch.rsqrt(var_C + self.eps)
        shift_C = -mean_C * scale_C
        if self.weight is not None:
            scale_C, shift_C = scale_C * self.weight, shift_C * self.weight + self.bias
        return (x_BCHW * scale_C[:, None, None] + shift_C[:, None, None]).to(input.dtype)
