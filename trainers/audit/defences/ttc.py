"""TTC, a counter-attack at test time (Xing, Zhao and Sebe 2025, "CLIP is Strong Enough to Fight Back", CVPR).

Shape suffixes: B pictures, C channels, H and W height and width, D features, k steps including the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.component import Count, NotNegative
from trainers.audit.attacks.base import Radius
from trainers.audit.classifier import Classifier
from trainers.audit.defences.base import Defence


@dataclass(frozen=True, kw_only=True)
class TTC(Defence):
    """Moves a picture away from where it is if its features hardly change under noise, as those of attacked pictures do.

    δ_0 is uniform noise within ±eps. If ‖f(x + δ_0) − f(x)‖/‖f(x)‖ < tau, `steps` steps δ_{i+1} = δ_i + step·sign ∇_δ ‖f(x + δ_i) − f(x)‖²
    follow, each cut to ±eps and to pictures in 0 … 1, and the picture becomes x + Σ w_i·δ_i with w_i ∝ exp(beta·i). Otherwise it becomes
    x + δ_0, as in the authors' code. f are the image features before they are scaled to length 1, also as in the authors' code.

    Each picture costs steps + 1 encodings and the classification. Its gradient is the true one: the change is made of noise and of signs,
    whose derivative is 0, so the gradient is that at the changed picture. (A smooth stand-in for the sign, tanh, makes adaptive attacks
    weaker: on small CLIPs its part was 0.7 to 2.3 times as long as the true one, and differed much more from draw to draw.)
    """

    eps: Radius = 4 / 255
    step: Radius = 1 / 255
    steps: Count = 2
    tau: NotNegative = 0.2
    """smallest relative change of the features under noise that switches the counter-attack off"""
    beta: float = 2.0
    """how much more the later steps weigh"""
    random: ClassVar[bool] = True

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        """InputError if the classifier has no features."""
        noise_BCHW = np.stack([draw.uniform(-self.eps, self.eps, picture_BCHW.shape[1:]) for draw in draws])
        x_BCHW = picture_BCHW.detach()
        with torch.enable_grad():
            own_BD = classifier.features(x_BCHW).detach()
            change_BCHW = cut(x_BCHW, torch.from_numpy(noise_BCHW).to(x_BCHW))
            changes = [change_BCHW]
            for number in range(self.steps):
                at_BCHW = (x_BCHW + change_BCHW).requires_grad_()
                away_BD = classifier.features(at_BCHW) - own_BD
                if number == 0:
                    calm_B = (away_BD.norm(dim=1) / own_BD.norm(dim=1) < self.tau).detach()
                (slope_BCHW,) = torch.autograd.grad(away_BD.square().sum(), at_BCHW)
                change_BCHW = cut(x_BCHW, (change_BCHW + self.step * slope_BCHW.sign()).clamp(-self.eps, self.eps))
                changes.append(change_BCHW)
        weight_k = torch.softmax(self.beta * torch.arange(len(changes), dtype=x_BCHW.dtype, device=x_BCHW.device), 0)
        countered_BCHW = (weight_k[:, None, None, None, None] * torch.stack(changes)).sum(0)
        return (picture_BCHW + torch.where(calm_B[:, None, None, None], countered_BCHW, changes[0])).clamp(0, 1)


def cut(picture_BCHW: Tensor, change_BCHW: Tensor) -> Tensor:
    """The change, cut so that the changed picture lies in 0 … 1."""
    return (picture_BCHW + change_BCHW).clamp(0, 1) - picture_BCHW

