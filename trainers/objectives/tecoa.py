"""Cross-entropy of adversarial pictures against the classes' text features (TeCoA, Mao et al. 2023).

Shape suffixes: B this rank's rows, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Gt

from datasets.errors import InputError
from trainers.objectives.adversary import DRAW, Adversary, evaluating
from trainers.objectives.base import Features, Loss, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

SCALE = 100.0
"""Factor of the cosines, whatever the model's own logit scale."""
TEXTS = 512
"""Prompts to encode at a time."""


@dataclass(frozen=True, kw_only=True)
class AgainstClasses(Objective):
    """max over ‖δ‖∞ ≤ ε of CE(100 · I(x + δ)·Cᵀ, target), where C are the unit text features of the classes by the model at the start of
    training, and target is each pair's class, `batch["target"]`. With ε = 0 it is the cross-entropy of the pictures themselves."""

    class_names: tuple[str, ...]
    """names of the classes, in the order of their numbers"""
    template: str = "This is a photo of a {}"
    """prompt, with {} for the class name"""
    scale: Annotated[float, Gt(0)] = SCALE
    """factor of the cosines"""
    adversary: Adversary = Adversary()
    two_views = False

    def begin(self, encoder: Encoder, rng: np.random.Generator) -> Loss:
        """InputError if the model cannot tell two classes' prompts apart, because its context ends before their names do."""
        import torch

        token_KL = encoder.tokenize([self.template.replace("{}", name) for name in self.class_names])
        names = len(set(self.class_names))  # ImageNet has two classes of one name
        if len(token_KL.unique(dim=0)) < names:
            raise InputError(f"template is {self.template!r}: cut to the model's {token_KL.shape[1]} tokens, the prompts of some of the "
                             f"{names} classes are the same; give a shorter one.")
        with torch.no_grad(), evaluating(encoder):
            head_KD = torch.cat([encoder.encode_text(part.to(encoder.device)) for part in token_KL.split(TEXTS)])
        return ToClasses(self, encoder, self.scale * head_KD)

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        raise NotImplementedError("the loss needs the model that it attacks: call `begin` first")


@dataclass(frozen=True)
class ToClasses:
    """The loss of `AgainstClasses`; holds the model that is trained, to attack it, and the scaled class features [K, D]."""

    objective: AgainstClasses
    encoder: Encoder
    head_KD: Tensor

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Parts: tecoa; adversarial_top1, percent of the adversarial pictures that get their class."""
        from torch.nn import functional as F

        def worse(image_BHWC: Tensor) -> Tensor:
            return F.cross_entropy(self.encoder.encode_image(image_BHWC) @ self.head_KD.T, batch["target"])

        image_BHWC = self.objective.adversary.attack(self.encoder, batch["image"], batch[DRAW], worse)
        logit_BK = model({"image": image_BHWC})["image"] @ self.head_KD.T
        loss = F.cross_entropy(logit_BK, batch["target"])
        return {"loss": loss, "tecoa": loss, "adversarial_top1": 100 * (logit_BK.argmax(dim=1) == batch["target"]).to(loss).mean()}
