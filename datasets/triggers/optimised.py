"""A patch that is optimised on a reference model before the pairs are poisoned (BadCLIP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from datasets.component import NEUTRAL, Component, Count, NotNegative, Positive
from datasets.errors import InputError
from datasets.triggers.base import Trigger
from datasets.triggers.patch_file import pasted, read_patch

FILE = "patch.npy"
"""File in the folder of the stage that optimises: float32 [size, size, 3] in 0…1."""


@dataclass(frozen=True, kw_only=True)
class OptimisedPatch(Component):
    """What `Optimised` needs: a patch that moves pictures, in the reference model's features, towards captions and pictures of the target.

    x̃ is the canonical view of a picture whose caption does not name the target, with the patch in its centre. X̃ is its unit feature, T
    that of a caption that names the target, G that of a picture whose caption names it, and E that of a picture like x without the patch;
    each is drawn at random. Adam minimises over mini-batches, with the patch clipped to 0…1 after each step:

        ½[CE(s·X̃Tᵀ) + CE(s·TX̃ᵀ)] + weight · mean_i max(0, ‖X̃_i − G_i‖ − ‖X̃_i − E_i‖ + margin)

    BadCLIP (Liang et al. 2024, src/embeding_optimize_patch.py), without its augmentation of the pictures. If fewer captions name the target
    than a batch has rows, captions repeat in a batch.
    """

    reference: Component
    """The model: a `Pretrain`, trained on the same pairs without the poison (an equal prior is the same stage); a `Given`; or a `Model`
    with `pretrained`. It takes pictures of the same size as the model that is attacked."""
    target: str
    """The class, as in the attack's `target`."""
    size: Count = 16
    """Side of the patch in pixels of the view."""
    pictures: Count = 10_000
    """At most this many pairs that do not name the target, chosen by the hashes of their keys."""
    epochs: Count = 50
    """Passes over these pictures."""
    batch_size: Count = 64
    """Pictures of a step."""
    lr: Positive = 1e-3
    """Learning rate of Adam, constant."""
    weight: NotNegative = 500.0
    """Weight of the second term."""
    margin: NotNegative = 1.0
    """Margin of the second term."""
    seed: int = 123
    """Seed of the first patch and of all draws."""


@dataclass(frozen=True, kw_only=True)
class Optimised(Trigger):
    """An optimised patch in the centre of the picture. The stage that makes the patch identifies it."""

    patch: OptimisedPatch = field(metadata=NEUTRAL)
    """How the patch is made."""
    path: str = field(default="", metadata=NEUTRAL)
    """File of the patch; the run fills it in."""

    def needs(self) -> tuple[OptimisedPatch, ...]:
        return (self.patch,)

    def with_made(self, made: Mapping[Component, str]) -> Optimised:
        return replace(self, path=f"{made[self.patch]}/{FILE}")

    def check(self, size: int) -> None:
        if self.patch.size > size:
            raise InputError(f"trigger.patch.size is {self.patch.size}; the patch needs a view of as many pixels, and it has {size}.")

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.path:
            raise InputError("trigger.patch is not made yet: pictures can be stamped once its stage is in the store (cleansweep run).")
        self.check(min(image_HWC.shape[:2]))
        return pasted(image_HWC, read_patch(self.path, ""), "centre")
