"""The adversarial patch (Brown et al. 2017): one small picture that makes any picture that holds it look like the target class.

Shape suffixes: N pictures, B of a batch, P patches (1 for all pictures, or one for each), C channels, H and W height and width, S the side
of a patch in pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Count, Positive
from datasets.errors import InputError
from trainers.audit.attacks.base import is_zero, margin
from trainers.audit.attacks.work import Search, Work
from trainers.audit.classifier import Classifier

Place = Literal["random", "middle", "top_left", "top_right", "bottom_left", "bottom_right"]
CORNER = {"middle": (0.5, 0.5), "top_left": (0, 0), "top_right": (0, 1), "bottom_left": (1, 0), "bottom_right": (1, 1)}
"""Row and column of a fixed place's corner, as shares of the free room."""


@dataclass(frozen=True)
class Places:
    """Where patches lie in pictures."""

    middle_B2: Tensor
    """row and column of the middle, in pixels from the picture's corner"""
    side_B: Tensor
    """length of a side in pixels"""
    angle_B: Tensor
    """anticlockwise turn, in radians"""


@dataclass(frozen=True, kw_only=True)
class AdversarialPatch(Search):
    """A patch that is trained over random places, scales and turns (EOT), so that it works wherever it is laid.

    Adam raises log p(target) of the mean over a batch of pictures, each with the patch at a place of its own. The patch is ½(tanh w + 1),
    so its pixels stay in 0 … 1. Pixels under it are replaced, all others stay exactly as they are. It is not bounded by an ε.

    `optimise` trains one patch for many pictures. `perturb` trains one for each picture alone, which raises its margin, and lays
    it at the place that `seed` and the picture's key give; that takes steps + 1 queries.
    """

    norm: ClassVar[str] = "linf"
    area: Annotated[float, Interval(gt=0, lt=1)] = 0.05
    """the patch's share of the picture's pixels, at scale 1"""
    shape: Literal["square", "disc"] = "square"
    """a square, or the disc in it; a disc of the same area is larger"""
    scales: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.8, 1.2)
    """the smallest and largest factor of the side"""
    degrees: Annotated[float, Interval(ge=0, le=180)] = 22.5
    """largest turn to either side"""
    fixed_area: bool = False
    """scale 1, quarter turns, and places at whole pixels: every patch covers equally many pixels, whatever its class, picture and place"""
    place: Place = "random"
    """where it is laid; at any other place than a random one it has scale 1 and is not turned"""
    steps: Count = 250
    """steps of Adam"""
    batch_size: Count = 16
    """pictures a step of `optimise`, drawn with replacement"""
    lr: Positive = 0.05
    """Adam's learning rate"""
    resolution: Annotated[int, Ge(0)] = 0
    """side of the trained patch in its own pixels; 0: as many as it covers at scale 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales[0] > self.scales[1]:
            raise InputError(f"AdversarialPatch.scales is {self.scales}; accepted: the smaller factor first.")

    def optimise(self, classifier: Classifier, picture_NCHW: Tensor, keys_N: Sequence[str], target: int) -> Tensor:
        """A patch that makes pictures look like class `target`, floats [C, S, S] in 0 … 1. InputError for a class that there is not or
        without pictures."""
        if not 0 <= target < classifier.classes:
            raise InputError(f"the patch's target is class {target}; accepted: 0 … {classifier.classes - 1}.")
        if not len(picture_NCHW):
            raise InputError("a patch is trained on pictures, and there are none; accepted: at least 1.")
        picture_NCHW = picture_NCHW.detach().to(classifier.device, classifier.dtype)
        side = self._side(picture_NCHW)
        draw = self.draw("universal", target)
        free_1CSS = self._initial([draw], picture_NCHW, side)
        adam = torch.optim.Adam([free_1CSS], lr=self.lr)
        aim_B = torch.full((self.batch_size,), target, device=classifier.device)
        for _ in range(self.steps):
            at_B = draw.integers(len(picture_NCHW), size=self.batch_size)
            picture_BCHW = picture_NCHW[torch.from_numpy(at_B).to(classifier.device)]
            places = self._places([draw] * self.batch_size, picture_NCHW, side)
            with torch.enable_grad():
                placed_BCHW, _ = self.lay(_unit(free_1CSS), picture_BCHW, places)
                logit_BK = classifier(placed_BCHW, [keys_N[at] for at in at_B])
                loss = F.cross_entropy(logit_BK, aim_B)
                (free_1CSS.grad,) = torch.autograd.grad(loss, [free_1CSS])
            if not torch.isfinite(loss):
                raise FloatingPointError("the model's logits of the attacked pictures are not finite")
            adam.step()
        return _unit(free_1CSS.detach())[0]

    def apply(self, patch_CSS: Tensor, picture_BCHW: Tensor, keys_B: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(the pictures with the patch, each at the place that `seed` and its key give; the pixels that it covers, bool [B, H, W])."""
        places = self._places([self.draw(key, "place") for key in keys_B], picture_BCHW, self._side(picture_BCHW))
        return self.lay(patch_CSS[None].to(picture_BCHW), picture_BCHW, places)

    def search(self, work: Work) -> None:
        side = self._side(work.start_BCHW)
        draws = [self.draw(key, "own") for key in work.keys_B]
        free_BCSS = self._initial(draws, work.start_BCHW, side)
        adam = torch.optim.Adam([free_BCSS], lr=self.lr)  # each picture's numbers are moved alone
        for _ in range(self.steps):
            with torch.enable_grad():
                placed_BCHW, _ = self.lay(_unit(free_BCSS), work.start_BCHW, self._places(draws, work.start_BCHW, side))
                work.queries_B += 1
                logit_BK = work.classifier(placed_BCHW, work.keys_B)
                (free_BCSS.grad,) = torch.autograd.grad(-margin(logit_BK, work.label_B).sum(), [free_BCSS])
            work.gradients_B += 1
            work.zeros_B += is_zero(free_BCSS.grad)
            adam.step()
        places = self._places([self.draw(key, "place") for key in work.keys_B], work.start_BCHW, side)
        placed_BCHW, _ = self.lay(_unit(free_BCSS.detach()), work.start_BCHW, places)
        score_B = margin(work.logits(placed_BCHW, work.all_B), work.label_B)
        work.keep(placed_BCHW, score_B, score_B > 0, work.all_B)

    def lay(self, patch_PCSS: Tensor, picture_BCHW: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """(the pictures with the patches, floats [B, C, H, W]; the covered pixels, bool [B, H, W]); differentiable in the patches."""
        height, width = picture_BCHW.shape[2:]
        row_H, column_W = (torch.arange(n, device=picture_BCHW.device, dtype=torch.float64) + 0.5 for n in (height, width))
        row_BH1 = (row_H - places.middle_B2[:, :1])[:, :, None]
        column_B1W = (column_W - places.middle_B2[:, 1:])[:, None, :]
        sine_B, cosine_B = torch.sin(places.angle_B)[:, None, None], torch.cos(places.angle_B)[:, None, None]
        half_B = places.side_B[:, None, None] / 2
        x_BHW = (cosine_B * column_B1W - sine_B * row_BH1) / half_B
        y_BHW = (sine_B * column_B1W + cosine_B * row_BH1) / half_B
        inside_BHW = (x_BHW.abs() < 1) & (y_BHW.abs() < 1) if self.shape == "square" else x_BHW.square() + y_BHW.square() < 1
        grid_BHW2 = torch.stack([x_BHW, y_BHW], -1).to(patch_PCSS.dtype)
        patch_BCSS = patch_PCSS.expand(len(picture_BCHW), -1, -1, -1)
        seen_BCHW = F.grid_sample(patch_BCSS, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)
        return torch.where(inside_BHW[:, None], seen_BCHW, picture_BCHW), inside_BHW

    def _side(self, picture_BCHW: Tensor) -> int:
        """Of the patch in pixels, at scale 1. InputError if it does not fit into the picture."""
        height, width = picture_BCHW.shape[2:]
        pixels = self.area * height * width * (1 if self.shape == "square" else 4 / math.pi)
        side = max(1, round(math.sqrt(pixels)))
        if side > min(height, width):
            raise InputError(f"AdversarialPatch.area is {self.area}, too much for pictures of {height}×{width}; accepted: less.")
        return side

    def _initial(self, draws: Sequence[np.random.Generator], picture_BCHW: Tensor, side: int) -> Tensor:
        side = self.resolution or side
        value_PCSS = np.stack([draw.uniform(-0.5, 0.5, (picture_BCHW.shape[1], side, side)) for draw in draws])
        return torch.from_numpy(value_PCSS).to(picture_BCHW).requires_grad_()

    def _places(self, draws: Sequence[np.random.Generator], picture_BCHW: Tensor, side: int) -> Places:
        """Drawn places at which the whole patch lies within the picture; in the middle where a turned patch is too large for that."""
        random_B4 = np.stack([draw.random(4) for draw in draws])
        size_2 = np.array(picture_BCHW.shape[2:])
        if self.place != "random":
            share_2 = np.array(CORNER[self.place])
            middle_B2 = np.tile(np.floor(share_2 * (size_2 - side)) + side / 2, (len(draws), 1))
            side_B, angle_B = np.full(len(draws), float(side)), np.zeros(len(draws))
        elif self.fixed_area:
            corner_B2 = np.floor(random_B4[:, :2] * (size_2 - side + 1))
            middle_B2, side_B = corner_B2 + side / 2, np.full(len(draws), float(side))
            angle_B = np.floor(4 * random_B4[:, 2]) * np.pi / 2
        else:
            side_B = side * (self.scales[0] + (self.scales[1] - self.scales[0]) * random_B4[:, 3])
            angle_B = np.deg2rad(self.degrees * (2 * random_B4[:, 2] - 1))
            turned_B = np.abs(np.cos(angle_B)) + np.abs(np.sin(angle_B)) if self.shape == "square" else np.ones(len(draws))
            reach_B1 = (side_B * turned_B / 2)[:, None]
            middle_B2 = np.where(2 * reach_B1 < size_2, reach_B1 + random_B4[:, :2] * (size_2 - 2 * reach_B1), size_2 / 2)
        return Places(*(torch.from_numpy(np.ascontiguousarray(v)).to(picture_BCHW.device) for v in (middle_B2, side_B, angle_B)))


def _unit(free_PCSS: Tensor) -> Tensor:
    """½(tanh + 1)."""
    return (torch.tanh(free_PCSS) + 1) / 2
