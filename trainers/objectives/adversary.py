"""The inner attack of adversarial training: pictures near the given ones on which a loss is larger.

Shape suffixes: B this rank's pictures, H and W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Interval

from datasets import seeding
from datasets.component import Component, Count, Share
from datasets.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.encoder import Encoder

DRAW = "draw"
"""Name of the batch's whole numbers [B] that the random starts are drawn from, one for each pair and epoch."""


@dataclass(frozen=True, kw_only=True)
class Adversary(Component):
    """Projected gradient descent in L∞ (Madry et al. 2018): x ← x + step · sign(v), cut to within ε of the picture and to 0 … 255.

    v ← sign(momentum · v + sign(∇ loss)), as in chs20/RobustVLM. There the sign is taken after the momentum is added, so that the momentum
    (published: 0.9) decides only where a gradient is exactly 0. The defaults are those of FARE² and TeCoA².

    The model is in evaluation mode while it is attacked and runs at its own precision. Its weights, buffers and modes stay as they are.
    """

    eps: Share = 2 / 255
    """ε, the largest change of a value, as a share of the full range; 0: the picture itself"""
    step: Share = 1 / 255
    """length of a step, as a share of the full range"""
    steps: Count = 10
    """number of steps, each one pass through the image tower and back"""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """how much the last step's direction counts beside the gradient's sign"""
    start: Literal["random", "picture"] = "random"
    """random: a uniform draw from −ε … ε for each value, by the stage's seed, the pair and the epoch | picture: the picture itself"""

    def must_leave(self, what: str) -> None:
        """Raise InputError if the attack begins at the picture itself, for a loss that has no gradient there."""
        if self.start == "picture":
            raise InputError(f"adversary.start is 'picture', where {what} is smallest and has no gradient; accepted: random.")

    def attack(self, encoder: Encoder, image_BHWC: Tensor, draw_B: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Floats [B, H, W, C] in 0 … 255, within 255 ε of these (uint8 or floats), without a gradient.

        `loss`: such pictures -> the scalar that is to grow, by this encoder. Only gradients' signs count, so a sum and a mean are alike.
        """
        import torch

        clean_BHWC = image_BHWC.to(encoder.mean.dtype)
        if self.eps == 0:
            return clean_BHWC
        low_BHWC, high_BHWC = ((clean_BHWC + side * 255 * self.eps).clamp(0, 255) for side in (-1, 1))
        found_BHWC = clean_BHWC
        if self.start == "random":
            found_BHWC = (clean_BHWC + 255 * self.eps * noise(draw_B, clean_BHWC)).clamp(low_BHWC, high_BHWC)
        velocity_BHWC = torch.zeros_like(clean_BHWC)
        with evaluating(encoder), torch.enable_grad():
            for _ in range(self.steps):
                found_BHWC = found_BHWC.detach().requires_grad_()
                (gradient_BHWC,) = torch.autograd.grad(loss(found_BHWC), found_BHWC)
                velocity_BHWC = (self.momentum * velocity_BHWC + gradient_BHWC.sign()).sign()
                found_BHWC = (found_BHWC.detach() + 255 * self.step * velocity_BHWC).clamp(low_BHWC, high_BHWC)
        return found_BHWC.detach()


def noise(draw_B: Tensor, like_BHWC: Tensor) -> Tensor:
    """Uniform in −1 … 1, a function of each picture's own draw; shape, type and device of `like`."""
    import torch

    unit = [seeding.rng(draw, "start").random(tuple(like_BHWC.shape[1:]), np.float32) for draw in draw_B.tolist()]
    return 2 * torch.from_numpy(np.stack(unit)).to(like_BHWC) - 1


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block all modules are in evaluation mode; afterwards each has its own mode again."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
