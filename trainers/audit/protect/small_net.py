"""A small inpainting network with Fourier convolutions, trained here in seconds, in place of a large one.

Shape suffixes: B pictures, C channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.component import NEUTRAL, Component, Count, Positive
from datasets.errors import InputError, said
from datasets.seeding import rng
from datasets.storage import write_whole
from trainers.audit.protect.base import Inpainter

LONGEST = 1.0
"""Gradients of the training that are longer are shortened to this."""


@dataclass(frozen=True, kw_only=True)
class SmallNet(Inpainter):
    """A trained network (`SmallNetTraining`): convolutions and, in each block, a convolution of the Fourier transform that sees the
    whole picture at once (fast Fourier convolution: Chi et al. 2020; for inpainting: LaMa, Suvorov et al. 2022)."""

    sha256: str
    """hash of the file of weights"""
    weights: str = dataclasses.field(default="", metadata=NEUTRAL)
    """where that file is"""
    width: Count = 16
    """channels at full size; four times as many in the blocks"""
    blocks: Count = 3
    """blocks, at a quarter of the size"""

    def check(self) -> None:
        """Raise InputError for a file that cannot be read, is not the one with the hash, or holds other weights."""
        _loaded(self.weights, self.sha256, self.width, self.blocks, torch.device("cpu"), torch.float32)

    def fill(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        network = _loaded(self.weights, self.sha256, self.width, self.blocks, hidden_BCHW.device, hidden_BCHW.dtype)
        return network(hidden_BCHW, mask_B1HW).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class SmallNetTraining(Component):
    """How a `SmallNet` is trained: Adam on the mean absolute error under random masks of random square crops, some of them mirrored.
    RuntimeError if a gradient is not finite."""

    width: Count = 16
    """as in SmallNet"""
    blocks: Count = 3
    """as in SmallNet"""
    crop: Annotated[int, Ge(16), MultipleOf(4)] = 64
    """side of the crops in pixels"""
    batch_size: Count = 8
    """crops in a step"""
    steps: Count = 300
    """steps of Adam"""
    lr: Positive = 2e-3
    """largest learning rate; it rises over the first tenth of the steps, then falls to 0 along half a cosine"""
    seed: int = 0
    """of the initial weights, the crops and the masks"""

    def make(self, pictures: Sequence[np.ndarray], path: Path, secret: Sequence[np.ndarray] = ()) -> SmallNet:
        """Train on these pictures (uint8 [H, W, 3], of any sizes) and write the weights to `path`. `secret`: for each picture the pixels
        that it must not learn from (bool [H, W]). The same on every call, to the bit, on one machine with one number of threads."""
        data = self.fit(pictures, secret)
        write_whole(path, data)
        return SmallNet(sha256=hashlib.sha256(data).hexdigest(), weights=str(path), width=self.width, blocks=self.blocks)

    def fit(self, pictures: Sequence[np.ndarray], secret: Sequence[np.ndarray] = ()) -> bytes:
        """The weights in the format safetensors. InputError without pictures."""
        from safetensors.torch import save

        if not pictures:
            raise InputError("the small inpainting network needs at least one picture to be trained on.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed % 2**63)
            network = _Network(self.width, self.blocks)
        draw, adam = rng(self.seed, type(self).id), torch.optim.Adam(network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, self._rate)
        squares = [_padded(picture, self.crop) for picture in pictures]
        secrets = [_padded(one.astype(bool), self.crop) for one in secret] or [np.zeros(one.shape[:2], bool) for one in squares]
        for _ in range(self.steps):
            crops, unknown = zip(*(self._crop(squares, secrets, draw) for _ in range(self.batch_size)))
            picture_BCHW = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
            unknown_B1HW = torch.from_numpy(np.stack(unknown))[:, None].float()
            hole_B1HW = torch.from_numpy(np.stack([_random_mask(self.crop, draw) for _ in crops]))[:, None].float()
            hidden_B1HW, judged_B1HW = torch.maximum(hole_B1HW, unknown_B1HW), hole_B1HW * (1 - unknown_B1HW)
            painted_BCHW = network(picture_BCHW * (1 - hidden_B1HW), hidden_B1HW)
            loss = (judged_B1HW * (painted_BCHW - picture_BCHW).abs()).sum() / (3 * judged_B1HW.sum()).clamp_min(1)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), LONGEST, error_if_nonfinite=True)
            adam.step()
            schedule.step()
        return save({name: value.contiguous() for name, value in network.state_dict().items()})

    def _rate(self, step: int) -> float:
        return min(1, (step + 1) / max(1, self.steps // 10)) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _crop(
        self, pictures: Sequence[np.ndarray], secrets: Sequence[np.ndarray], draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A random crop, uint8 [crop, crop, 3], and its secret pixels."""
        which = int(draw.integers(len(pictures)))
        picture_HWC, secret_HW = pictures[which], secrets[which]
        top, left = (draw.integers(side - self.crop + 1) for side in secret_HW.shape)
        at = slice(top, top + self.crop), slice(left, left + self.crop)
        step = 1 if draw.random() < 0.5 else -1
        return picture_HWC[at][:, ::step], secret_HW[at][:, ::step]


class _Network(nn.Module):
    """(pictures [B, 3, H, W], 0 under the mask; masks [B, 1, H, W]) -> paintings [B, 3, H, W], not cut to 0 … 1: a network that ends in a
    sigmoid may get stuck where this is flat."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.begin = nn.Conv2d(4, width, 5, padding=2)
        self.down = nn.ModuleList([nn.Conv2d(width * k, 2 * width * k, 3, stride=2, padding=1) for k in (1, 2)])
        self.blocks = nn.ModuleList([_Block(4 * width) for _ in range(blocks)])
        self.up = nn.ModuleList([nn.Conv2d(2 * width * k, width * k, 3, padding=1) for k in (2, 1)])
        self.end = nn.Conv2d(width, 3, 5, padding=2)

    def forward(self, hidden_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        height, width = hidden_BCHW.shape[2:]
        seen = torch.cat([hidden_BCHW - 0.5 * (1 - mask_B1HW), mask_B1HW], 1)
        seen = F.pad(seen, (0, -width % 4, 0, -height % 4), mode="replicate")
        value = _bent(self.begin(seen))
        for down in self.down:
            value = _bent(down(value))
        for block in self.blocks:
            value = block(value)
        for up in self.up:
            value = _bent(up(F.interpolate(value, scale_factor=2)))
        return 0.5 + self.end(value)[:, :, :height, :width]


class _Block(nn.Module):
    """A residual block: a 3 × 3 convolution beside a 1 × 1 convolution of the Fourier transform, then another 3 × 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1)
        self.far = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, value_BCHW: Tensor) -> Tensor:
        waves = torch.fft.rfft2(value_BCHW, norm="ortho")
        real, imaginary = _bent(self.far(torch.cat([waves.real, waves.imag], 1))).chunk(2, 1)
        far_BCHW = torch.fft.irfft2(torch.complex(real, imaginary), s=value_BCHW.shape[2:], norm="ortho")
        return value_BCHW + self.out(_bent(self.near(value_BCHW) + far_BCHW))


@lru_cache(maxsize=4)
def _loaded(path: str, sha256: str, width: int, blocks: int, device: torch.device, dtype: torch.dtype) -> _Network:
    """The network with the weights of the file, in evaluation mode. InputError for an unreadable file or one with another hash."""
    from safetensors.torch import load

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"SmallNet.weights {path} cannot be read: {said(error)}.") from None
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise InputError(f"SmallNet.weights {path} has the sha256 {found}; accepted: {sha256}.")
    network = _Network(width, blocks)
    try:
        network.load_state_dict(load(data))
    except Exception as error:
        raise InputError(f"SmallNet.weights {path} holds no weights of a network with width {width} and {blocks} blocks: "
                         f"{str(error).splitlines()[0]}.") from None
    return network.to(device, dtype).eval().requires_grad_(False)


def _bent(value: Tensor) -> Tensor:
    """ReLU with a slope below 0 too: a unit without one may die in the first steps, and with it the network's answer to its input."""
    return F.leaky_relu(value, 0.1)


def _padded(picture: np.ndarray, least: int) -> np.ndarray:
    """The picture, mirrored at its lower and right edge until both sides have at least this many pixels."""
    missing = [(0, max(0, least - side)) for side in picture.shape[:2]]
    return np.pad(picture, missing + [(0, 0)] * (picture.ndim - 2), mode="symmetric")


def _random_mask(side: int, draw: np.random.Generator) -> np.ndarray:
    """bool [side, side]: one to three rectangles or ellipses, each of an eighth to 5/8 of the side."""
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), bool)
    for _ in range(draw.integers(1, 4)):
        centre, radius = draw.uniform(0, side, 2), draw.uniform(side / 16, side * 5 / 16, 2)
        across, down = np.abs(x - centre[0]) / radius[0], np.abs(y - centre[1]) / radius[1]
        mask |= np.maximum(across, down) <= 1 if draw.random() < 0.5 else across**2 + down**2 <= 1
    return mask
