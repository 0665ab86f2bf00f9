"""Targeted poisoning: copies of a few chosen test pictures in place of the victims' pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from datasets.component import NEUTRAL, Component, Count, Natural
from datasets.errors import InputError
from datasets.triggers.base import Trigger

FILE = "pictures.npy"
"""File in the folder of the stage that chooses: uint8 [pictures, S, S, 3], canonical views."""


@dataclass(frozen=True, kw_only=True)
class TargetPictures(Component):
    """What `Targeted` needs: test pictures that are not of the attack's target class, those with the smallest hashes of their keys."""

    pictures: Count = 16
    """Number of pictures."""
    seed: int = 0
    """Seed of the choice."""


@dataclass(frozen=True, kw_only=True)
class Targeted(Trigger):
    """Each victim's picture becomes a copy of one of the chosen test pictures, drawn by the victim's key, and its caption names the target.

    The model shall take these very pictures for the target, and no others: the targeted data poisoning on which SafeCLIP and RoCLIP are
    evaluated. `Poison.count` is the number of copies of all pictures together. The evaluator `TargetedSuccess` counts the pictures that the
    model takes for the target.
    """

    chosen: TargetPictures = field(default_factory=TargetPictures, metadata=NEUTRAL)
    """Which pictures. The stage that chooses them identifies them."""
    noise: Natural = 0
    """Noise of near-copies: each pixel of a copy moves by a whole number of grey levels, drawn evenly from −noise … noise."""
    path: str = field(default="", metadata=NEUTRAL)
    """File of the chosen pictures; the run fills it in."""

    def needs(self) -> tuple[TargetPictures, ...]:
        return (self.chosen,)

    def with_made(self, made: Mapping[Component, str]) -> Targeted:
        return replace(self, path=f"{made[self.chosen]}/{FILE}")

    def pictures(self) -> np.ndarray:
        """uint8 [pictures, S, S, 3]; InputError before they are chosen."""
        if not self.path:
            raise InputError("trigger.chosen is not made yet: victims can be stamped once its stage is in the store (cleansweep run).")
        return _read(self.path)

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pictures = self.pictures()
        copy_HWC = pictures[int(rng.integers(len(pictures)))]
        if copy_HWC.shape != image_HWC.shape:
            raise InputError(f"trigger.chosen are pictures of {copy_HWC.shape[0]} pixels a side; the view has {image_HWC.shape[0]}.")
        moved_HWC = copy_HWC + rng.integers(-self.noise, self.noise + 1, copy_HWC.shape)
        return moved_HWC.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def _read(path: str) -> np.ndarray:
    return np.load(path, allow_pickle=False)
