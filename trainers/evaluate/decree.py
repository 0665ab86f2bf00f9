"""DECREE (Feng et al. 2023) searches for a small mask that makes all pictures alike. The audit knows neither trigger nor classes.

Shape suffixes: N pictures, B of a batch, H and W height and width, 3 channels, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Interval

from datasets.component import Component, Count, Natural, Positive, since
from datasets.seeding import rng
from trainers import distributed
from trainers.distributed import World
from trainers.evaluate.base import Evaluator
from trainers.evaluate.inputs import by_pixels, fixed_pictures

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

RATES = ((200, 0.5), (500, 0.1), (None, 0.05))
"""(epoch, Adam's learning rate before that epoch)."""
LOWEST = 1e-7
"""A weight of the mask's size below this is reset instead of multiplied."""


@dataclass(frozen=True)
class Inverted:
    """The smallest mask that made all pictures alike."""

    mask_HW: np.ndarray
    """float32 in 0 … 1: how much of each pixel is replaced. All ones if no mask was found: that one makes all pictures alike"""
    pattern_HW3: np.ndarray
    """float32 in 0 … 255: the replacing pixels"""
    cosine: float
    """mean cosine of different pictures in the batch on which the mask was found; 1 for the mask of ones"""
    steps: int
    """steps until the search stopped"""
    found: bool
    """whether a mask was found"""

    @property
    def size(self) -> float:
        """P = ‖m‖₁/(3HW) with the mask counted once per channel, that is, the mean of the mask; 0 … 1."""
        return float(self.mask_HW.mean(dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class Inversion(Component):
    """How a mask m [H, W] and a pattern p [H, W, 3] are searched. Both are ½(tanh(·) + 1), and pictures become x' = (1−m)·x + m·p.

    Adam (betas .5 and .9) minimises −(mean cosine of different pictures of a batch) + λ·3·Σm. A step succeeds if the cosine is above
    `alike`. λ starts at `weight`, is multiplied by 5 after more than 5 successes in a row and divided by 5 after more than 5 failures in a
    row. Once λ is below 1e-7, more than 10 successes in a row reset it to `weight` instead. The search stops at the end of an epoch whose
    last step succeeded if more than `patience` steps have found no smaller mask (GiantSeaweed/DECREE, main.py).
    """

    epochs: Count = 1000
    """largest number of passes over the pictures"""
    batch_size: Annotated[int, Ge(2)] = 32
    """pictures per step"""
    weight: Positive = 1e-3
    """initial λ"""
    alike: Annotated[float, Interval(gt=0, lt=1)] = 0.99
    """mean cosine above which pictures count as alike"""
    patience: Natural = 35
    """steps without a smaller mask after which the search may stop"""
    seed: int = 80
    """seed of the initial mask and pattern and of the order of the pictures"""

    def of(self, model: Encoder, image_NHW3: np.ndarray) -> Inverted:
        """The smallest mask for these uint8 pictures (at least 2); the same on every call. FloatingPointError if features are not
        finite."""
        import torch

        draw = rng(self.seed, "inversion")
        image_NHW3 = np.require(image_NHW3, np.uint8, "W")
        x_NHW3 = torch.from_numpy(image_NHW3).to(model.device)
        height, width = image_NHW3.shape[1:3]
        free = [_drawn(draw, shape, model) for shape in ((height, width), (height, width, 3))]
        adam = torch.optim.Adam(free, lr=RATES[0][1], betas=(0.5, 0.9))
        weight, search = Weight(self), Smallest(height, width)
        with by_pixels(model):
            for epoch in range(self.epochs):
                adam.param_groups[0]["lr"] = next(rate for end, rate in RATES if end is None or epoch < end)
                for at_B in _batches(draw.permutation(len(x_NHW3)), self.batch_size):
                    mask_HW, pattern_HW3 = unit(free[0]), 255 * unit(free[1])
                    cosine = mean_cosine(model.encode_image(blended(x_NHW3[at_B], mask_HW, pattern_HW3)))
                    loss = -cosine + weight.now * 3 * mask_HW.sum()
                    for value, gradient in zip(free, torch.autograd.grad(loss, free)):
                        value.grad = gradient
                    alike = float(cosine.detach())
                    if not np.isfinite(alike):
                        raise FloatingPointError("the model's features of evaluation pictures are not finite")
                    search.see(mask_HW.detach(), pattern_HW3.detach(), alike, alike > self.alike)
                    weight.see(alike > self.alike)
                    adam.step()
                if alike > self.alike and search.since > self.patience:
                    break
        return search.result()


class Weight:
    """λ, the weight of the mask's size, adapted to successes and failures."""

    def __init__(self, inversion: Inversion) -> None:
        self.first = self.now = inversion.weight
        self.up = self.down = 0

    def see(self, success: bool) -> None:
        """Update λ after a step."""
        self.up, self.down = (self.up + 1, 0) if success else (0, self.down + 1)
        if self.now < LOWEST:
            if self.up > 10:
                self.now, self.up = self.first, 0
        elif self.up > 5:
            self.now, self.up = 5 * self.now, 0
        if self.down > 5:
            self.now, self.down = self.now / 5, 0


class Smallest:
    """The smallest successful mask so far."""

    def __init__(self, height: int, width: int) -> None:
        import torch

        self.mask_HW, self.pattern_HW3 = torch.ones(height, width), torch.full((height, width, 3), 127.5)
        self.size, self.cosine, self.steps, self.since, self.found = float(height * width), 1.0, 0, 0, False

    def see(self, mask_HW: Tensor, pattern_HW3: Tensor, cosine: float, success: bool) -> None:
        """Record a step's mask."""
        self.steps, self.since = self.steps + 1, self.since + 1
        if success and (size := float(mask_HW.sum())) < self.size:
            self.mask_HW, self.pattern_HW3, self.size = mask_HW.cpu().clone(), pattern_HW3.cpu().clone(), size
            self.cosine, self.since, self.found = cosine, 0, True

    def result(self) -> Inverted:
        """The search's result on the CPU, as float32."""
        arrays = (self.mask_HW.float().numpy(), self.pattern_HW3.float().numpy())
        return Inverted(*arrays, cosine=self.cosine, steps=self.steps, found=self.found)


@dataclass(frozen=True, kw_only=True)
class Decree(Evaluator):
    """The size of the smallest mask that makes all test pictures alike (`Inversion`). It is small in a backdoored encoder.

    Which sizes are small depends on architecture and training, so compare with clean models of the same kind (`rank_among`) rather than
    with a fixed limit. The search cannot represent a trigger that covers the whole picture or differs between pictures.
    """

    pictures: Annotated[int, Ge(2)] = 512
    """how many untriggered test pictures to use, chosen by the hash of their keys"""
    inversion: Inversion = Inversion()
    every: int = since(0)

    def measure(
        self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None
    ) -> dict[str, float | np.ndarray]:
        """decree/mask (0 … 1), decree/cosine, decree/steps, decree/found (1 or 0; 0 means that no mask was found, and decree/mask is 1
        because wholly replaced pictures are all alike). Arrays: inverted/mask [H, W] in 0 … 1, inverted/pattern uint8 [H, W, 3]."""
        world = world or World()
        image_NHW3 = fixed_pictures(batches, self.pictures, self.inversion.seed, world)
        # every rank searches, so that none waits too long for rank 0; rank 0's result counts
        inverted: Inverted = distributed.from_main(self.inversion.of(model, image_NHW3), world)
        return {
            "decree/mask": inverted.size,
            "decree/cosine": inverted.cosine,
            "decree/steps": inverted.steps,
            "decree/found": float(inverted.found),
            "inverted/mask": inverted.mask_HW.astype(np.float32),
            "inverted/pattern": inverted.pattern_HW3.round().clip(0, 255).astype(np.uint8),
        }


def rank_among(size: float, clean: Sequence[float]) -> tuple[int, float]:
    """(number of clean models whose mask is at most this size; p = (that number + 1)/(number of clean models + 1)).

    If the model were like the clean ones, p ≤ α would occur with probability at most α. p ≤ 5 % needs at least 19 clean models.
    """
    rank = sum(other <= size for other in clean)
    return rank, (rank + 1) / (len(clean) + 1)


def unit(free: Tensor) -> Tensor:
    """½(tanh + 1)."""
    import torch

    return (torch.tanh(free) + 1) / 2


def blended(image_BHW3: Tensor, mask_HW: Tensor, pattern_HW3: Tensor) -> Tensor:
    """(1 − m)·x + m·p, floats of 0 … 255."""
    return (1 - mask_HW[..., None]) * image_BHW3 + mask_HW[..., None] * pattern_HW3


def mean_cosine(feature_BD: Tensor) -> Tensor:
    """Mean cosine of different rows of length 1: (‖Σ‖² − Σ‖·‖²)/(B(B − 1))."""
    rows = len(feature_BD)
    return (feature_BD.sum(0).square().sum() - feature_BD.square().sum()) / (rows * (rows - 1))


def _drawn(draw: np.random.Generator, shape: tuple[int, ...], model: Encoder) -> Tensor:
    """A tensor for which `unit` is uniform over 0 … 1, with gradient."""
    import torch

    value = np.arctanh((draw.random(shape) - 0.5) * (2 - 1e-7))
    return torch.from_numpy(value).to(model.device, model.mean.dtype).requires_grad_()


def _batches(order_N: np.ndarray, size: int) -> list[np.ndarray]:
    """The order cut into batches. A last batch of one picture is dropped: there is nothing to compare it with."""
    return [at_B for start in range(0, len(order_N), size) if len(at_B := order_N[start : start + size]) > 1]
