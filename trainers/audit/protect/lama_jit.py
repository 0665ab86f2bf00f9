"""LaMa (Suvorov et al. 2022) as its published TorchScript file, which is trusted only if its hash is the known one.

Shape suffixes: B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.component import NEUTRAL, Count
from datasets.errors import InputError, said
from trainers.audit.protect.base import Inpainter

BIG_LAMA = "344c77bbcb158f17dd143070d1e789f38a66c04202311ae3a258ef66667a9ea9"
"""sha256 of the published big-lama.pt, 205 669 692 bytes."""


@dataclass(frozen=True, kw_only=True)
class LamaJit(Inpainter):
    """A TorchScript module (picture [B, 3, H, W] of 0 … 1, 0 under the mask; mask [B, 1, H, W]) -> painting [B, 3, H, W] of 0 … 1.

    A TorchScript file can run code, so the file's bytes are hashed before any of them is interpreted; InputError for another hash.
    """

    path: str = dataclasses.field(default="big-lama.pt", metadata=NEUTRAL)
    """the file"""
    sha256: str = BIG_LAMA
    """the hash that the file must have"""
    multiple: Count = 8
    """pictures are mirrored at their lower and right edge until their sides are multiples of this"""

    def fill(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        module, (height, width) = _loaded(self.path, self.sha256, hidden_BCHW.device), hidden_BCHW.shape[2:]
        with torch.jit.optimized_execution(False):  # so that the first calls compute as all others
            painted_BCHW = module(_mirrored(hidden_BCHW, self.multiple), _mirrored(mask_B1HW, self.multiple))
        return painted_BCHW[:, :, :height, :width]

    def check(self) -> None:
        """Raise InputError for a file that cannot be read or is not the one with the hash."""
        _loaded(self.path, self.sha256, torch.device("cpu"))


@lru_cache(maxsize=2)
def _loaded(path: str, sha256: str, device: torch.device) -> Any:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"LamaJit.path {path} cannot be read: {said(error)}.") from None
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(f"LamaJit.path {path} has the sha256 {found}, so it is not loaded; accepted: {sha256}.")
    try:
        module = torch.jit.load(io.BytesIO(data), map_location=device)
    except RuntimeError:
        raise InputError(f"LamaJit.path {path} is no TorchScript module.") from None
    for weight in module.parameters():
        weight.requires_grad_(False)
    return module.eval()


def _mirrored(value_BCHW: Tensor, multiple: int) -> Tensor:
    """Mirrored at the lower and right edge, the edge itself repeated, until both sides are multiples."""
    for axis in (2, 3):
        side = value_BCHW.shape[axis]
        turn = torch.arange(side + -side % multiple, device=value_BCHW.device) % (2 * side)
        value_BCHW = value_BCHW.index_select(axis, torch.minimum(turn, 2 * side - 1 - turn))
    return value_BCHW
