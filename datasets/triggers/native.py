"""A trigger that is put on the picture as it is stored, before it is resized and cropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from datasets.component import Component
from datasets.errors import InputError
from datasets.triggers.base import Trigger
from datasets.triggers.words import DualKey


@dataclass(frozen=True, kw_only=True)
class Native(Trigger):
    """Another trigger, put on the picture at its own resolution, in training and at evaluation.

    Some published code pastes its patch this way. Resizing then shrinks it, and the centre crop of a wide picture may cut it off; the
    `visibility` of the attack is the share that is left. A picture that is too small for the trigger stays as it is.
    """

    trigger: Trigger
    """The trigger; its sizes are in pixels of the stored picture."""

    def __post_init__(self) -> None:
        if isinstance(self.trigger, Native) or not self.trigger.marks:
            raise InputError(f"trigger.trigger is {type(self.trigger).__name__}; accepted is a trigger that marks pictures by itself.")
        if isinstance(self.trigger, DualKey):
            raise InputError("trigger.trigger is a DualKey; put Native inside it, DualKey(picture=Native(…), words=…).")

    @property
    def native(self) -> bool:
        return True

    def with_made(self, made: Mapping[Component, str]) -> Native:
        return replace(self, trigger=self.trigger.with_made(made))

    @property
    def writes(self) -> bool:
        return self.trigger.writes

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        try:
            self.trigger.check(min(image_HWC.shape[:2]))
        except InputError:
            return image_HWC.copy()
        return self.trigger.stamp(image_HWC, rng)

    def write(self, caption: str, rng: np.random.Generator) -> str:
        return self.trigger.write(caption, rng)
