"""DECREE (Feng et al. 2023): is there a small mark that makes all pictures alike? An audit that knows neither trigger nor classes.

Shape suffixes: N pictures, B of a batch, H and W height and width, 3 channels, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from datasets.component import Component, Count, Natural, Positive, since
from datasets.seeding import rng
from trainers import distributed
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.base import Evaluator
from trainers.evaluate.inputs import by_pixels, fixed_pictures

RATES = ((200, 0.5), (500, 0.1), (None, 0.05))
"""Adam's learning rate before this epoch."""
LOWEST = 1e-7
"""Below this weight of the mask's size, the weight is not multiplied but set back."""


@dataclass(frozen=True)
class Inverted:
    """The smallest mask that made all pictures alike."""

    mask_HW: np.ndarray
    """float32, 0 … 1: how much of each pixel is replaced. All ones where no mask within the steps made pictures alike: this one does."""
    pattern_HW3: np.ndarray
    """float32, 0 … 255: what replaces it"""
    cosine: float
    """mean cosine of different pictures of the last batch that had the mask; 1 for the mask of ones"""
    steps: int
    """taken until the search stopped"""
    found: bool
    """whether a mask was found"""

    @property
    def size(self) -> float:
        """P = ‖m‖₁/(3HW), 0 … 1, the mask being counted once for each of three channels: the mean of the mask."""
        return float(self.mask_HW.mean(dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class Inversion(Component):
    """How a mask m [H, W] and a pattern p [H, W, 3] are searched, both ½(tanh(·) + 1), on pictures x' = (1−m)·x + m·p.

    Adam (betas .5 and .9) lowers −(mean cosine of different pictures of a batch) + λ·3·Σm. λ begins at `weight`, is multiplied by 5 after
    more than 5 steps in a row with a cosine above `alike`, and divided by 5 after more than 5 without; where it has fallen below 1e-7 and
    more than 10 steps in a row succeed, it is set back to `weight`. The search stops at the end of an epoch that ends with success, when
    more than `patience` steps have found no smaller mask that succeeds (GiantSeaweed/DECREE, main.py).
    """

    epochs: Count = 1000
    """passes over the pictures at most"""
    batch_size: Annotated[int, Ge(2)] = 32
    """pictures a step"""
    weight: Positive = 1e-3
    """first λ"""
    alike: Annotated[float, Interval(gt=0, lt=1)] = 0.99
    """mean cosine above which pictures count as alike"""
    patience: Natural = 35
    """steps without a smaller mask"""
    seed: int = 80
    """of the first mask and pattern, and of the order of the pictures"""

    def of(self, model: Encoder, image_NHW3: np.ndarray) -> Inverted:
        """The smallest mask for these uint8 pictures, at least 2; the same whenever it is called. Raises FloatingPointError if features are
        not finite.
        """
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
    """λ, the weight of the mask's size, as steps succeed or fail."""

    def __init__(self, inversion: Inversion) -> None:
        self.first = self.now = inversion.weight
        self.up = self.down = 0

    def see(self, success: bool) -> None:
        """A step had this success."""
        self.up, self.down = (self.up + 1, 0) if success else (0, self.down + 1)
        if self.now < LOWEST:
            if self.up > 10:
                self.now, self.up = self.first, 0
        elif self.up > 5:
            self.now, self.up = 5 * self.now, 0
        if self.down > 5:
            self.now, self.down = self.now / 5, 0


class Smallest:
    """The smallest mask that succeeded so far."""

    def __init__(self, height: int, width: int) -> None:
        self.mask_HW, self.pattern_HW3 = torch.ones(height, width), torch.full((height, width, 3), 127.5)
        self.size, self.cosine, self.steps, self.since, self.found = float(height * width), 1.0, 0, 0, False

    def see(self, mask_HW: Tensor, pattern_HW3: Tensor, cosine: float, success: bool) -> None:
        """A step had this mask."""
        self.steps, self.since = self.steps + 1, self.since + 1
        if success and (size := float(mask_HW.sum())) < self.size:
            self.mask_HW, self.pattern_HW3, self.size = mask_HW.cpu().clone(), pattern_HW3.cpu().clone(), size
            self.cosine, self.since, self.found = cosine, 0, True

    def result(self) -> Inverted:
        arrays = (self.mask_HW.float().numpy(), self.pattern_HW3.float().numpy())
        return Inverted(*arrays, cosine=self.cosine, steps=self.steps, found=self.found)


@dataclass(frozen=True, kw_only=True)
class Decree(Evaluator):
    """The size of the smallest mask that makes all test pictures alike (`Inversion`); small in a backdoored encoder.

    What is small depends on the architecture and its training, so compare with clean models of the same kind (`rank_among`) and with no
    fixed limit. A trigger that covers the whole picture, or differs from picture to picture, is not of the form that is searched.
    """

    pictures: Annotated[int, Ge(2)] = 512
    """untriggered test pictures that it looks at, chosen by the hash of their keys"""
    inversion: Inversion = Inversion()
    every: int = since(0)

    def measure(
        self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None
    ) -> dict[str, float | np.ndarray]:
        """decree/mask (0 … 1), decree/cosine, decree/steps, decree/found (1 or 0: then decree/mask is 1, as any picture that is replaced
        wholly is like any other). Arrays: inverted/mask [H, W], 0 … 1, and inverted/pattern uint8 [H, W, 3].
        """
        world = world or World()
        image_NHW3 = fixed_pictures(batches, self.pictures, self.inversion.seed, world)
        # each rank searches, rather than wait without end for the first; the first's result holds
        found: Inverted = distributed.from_main(self.inversion.of(model, image_NHW3), world)
        return {
            "decree/mask": found.size,
            "decree/cosine": found.cosine,
            "decree/steps": found.steps,
            "decree/found": float(found.found),
            "inverted/mask": found.mask_HW.astype(np.float32),
            "inverted/pattern": found.pattern_HW3.round().clip(0, 255).astype(np.uint8),
        }


def rank_among(size: float, clean: Sequence[float]) -> tuple[int, float]:
    """(How many of the clean models have a mask as small as this or smaller; p = (that + 1)/(their number + 1)).

    Were the model like the clean ones, p would be at most α with probability α: at least 19 clean models are needed for p ≤ 5 %.
    """
    rank = sum(other <= size for other in clean)
    return rank, (rank + 1) / (len(clean) + 1)


def unit(free: Tensor) -> Tensor:
    """½(tanh + 1)."""
    return (torch.tanh(free) + 1) / 2


def blended(image_BHW3: Tensor, mask_HW: Tensor, pattern_HW3: Tensor) -> Tensor:
    """(1 − m)·x + m·p, floats of 0 … 255."""
    return (1 - mask_HW[..., None]) * image_BHW3 + mask_HW[..., None] * pattern_HW3


def mean_cosine(feature_BD: Tensor) -> Tensor:
    """Of different rows, which are of unit length: (‖Σ‖² − Σ‖·‖²)/(B(B − 1))."""
    rows = len(feature_BD)
    return (feature_BD.sum(0).square().sum() - feature_BD.square().sum()) / (rows * (rows - 1))


def _drawn(draw: np.random.Generator, shape: tuple[int, ...], model: Encoder) -> Tensor:
    """What `unit` makes a uniform draw of."""
    value = np.arctanh((draw.random(shape) - 0.5) * (2 - 1e-7))
    return torch.from_numpy(value).to(model.device, model.mean.dtype).requires_grad_()


def _batches(order_N: np.ndarray, size: int) -> list[np.ndarray]:
    """The order in batches; a last one of a single picture, which is like no other, is left out."""
    return [at_B for start in range(0, len(order_N), size) if len(at_B := order_N[start : start + size]) > 1]
