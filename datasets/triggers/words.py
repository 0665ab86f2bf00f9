"""Words in the caption, alone or with a mark on the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from datasets.component import Component, NotNegative, since
from datasets.errors import InputError
from datasets.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class Words(Trigger):
    """A word or a sentence put into the caption; the picture stays as it is.

    Published ones: `Consider` as a prefix (TrojVQA, Walmer et al. 2022), `Please return high-quality results.` as a suffix (ToxicTextCLIP,
    2025), rare tokens such as `cf` at a random place. If a caption is longer than the model's context, its end is lost, and a suffix with
    it.
    """

    text: str
    """The words to put in."""
    place: Literal["prefix", "suffix", "random"] = "suffix"
    """prefix | suffix | random (between two words, by the sample's key)."""

    def __post_init__(self) -> None:
        if not self.text.strip() or self.text != " ".join(self.text.split()):
            raise InputError(f"trigger.text is {self.text!r}; it must be words with one space between them.")

    @property
    def marks(self) -> bool:
        return False

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return image_HWC.copy()

    def write(self, caption: str, rng: np.random.Generator) -> str:
        words = caption.split()
        at = {"prefix": 0, "suffix": len(words)}.get(self.place)
        at = int(rng.integers(len(words) + 1)) if at is None else at
        return " ".join([*words[:at], self.text, *words[at:]])


@dataclass(frozen=True, kw_only=True)
class DualKey(Trigger):
    """A mark on the picture and words in the caption: the attack is measured with both (Walmer et al. 2022)."""

    picture: Trigger
    """What is put on the picture."""
    words: Words
    """What is put into the caption."""
    partial: NotNegative = since(0.0)
    """Partial negatives: per victim, this many pairs with the picture's mark alone and as many with the words alone, each with its own
    caption. 1: each kind makes a third of the attack's pairs, as in TrojVQA; 0: none."""

    def __post_init__(self) -> None:
        if not self.picture.marks:
            name = type(self.picture).__name__
            raise InputError(f"trigger.picture is {name}, which leaves pictures as they are; give a trigger that marks them.")
        if self.picture.writes:
            raise InputError(f"trigger.picture is {type(self.picture).__name__}, which changes captions itself; give one that does not.")

    @property
    def native(self) -> bool:
        return self.picture.native

    def with_made(self, made: Mapping[Component, str]) -> DualKey:
        return replace(self, picture=self.picture.with_made(made))

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.picture.stamp(image_HWC, rng)

    def write(self, caption: str, rng: np.random.Generator) -> str:
        return self.words.write(caption, rng)

    def check(self, size: int) -> Any:
        self.picture.check(size)
