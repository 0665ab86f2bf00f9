"""`Trigger`, the base of every trigger, and functions that apply one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.component import Component
from datasets.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Trigger(Component, ABC):
    """A mark on pictures, on captions, or on both. On a picture it is put on the canonical view, so that evaluation sees all of it.

    Shape legend: H height, W width (both the view's side S on canonical views), C = 3 channels.
    """

    @abstractmethod
    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A new uint8 [H, W, 3] array with the mark on it; `image_HWC` (uint8 RGB) stays as it is.

        Whatever differs from picture to picture, such as noise or place, is drawn from `rng` alone.
        """

    def write(self, caption: str, rng: np.random.Generator) -> str:
        """The caption with the mark in it; most triggers leave captions as they are. `rng` as in `stamp`.

        It writes a victim's new caption when the plan is made, and every class prompt when the attack is measured.
        """
        return caption

    @property
    def marks(self) -> bool:
        """Whether pictures get a mark."""
        return True

    @property
    def writes(self) -> bool:
        """Whether captions get a mark too."""
        return type(self).write is not Trigger.write

    @property
    def native(self) -> bool:
        """Whether the mark goes on the picture as stored, before its canonical view is made."""
        return False

    def with_made(self, made: Mapping[Component, str]) -> Trigger:
        """The same trigger, which now knows the folders of the components that it `needs`."""
        return self

    def check(self, size: int) -> None:  # noqa: B027 (most triggers fit every view)
        """Raise InputError if the trigger does not fit a view of `size` pixels a side."""


@dataclass(frozen=True, kw_only=True)
class Pasted(Trigger):
    """A trigger that covers rectangles of the picture, whatever the picture shows. Many pictures are stamped faster, in one copy."""

    @abstractmethod
    def pieces(self, height: int, width: int, rng: np.random.Generator) -> Sequence[tuple[int, int, np.ndarray]]:
        """(top, left, uint8 [h, w, 3]) of each rectangle on a picture of this size; `rng` as in `stamp`."""

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out_HWC = image_HWC.copy()
        self.paste(out_HWC, rng)
        return out_HWC

    def paste(self, image_HWC: np.ndarray, rng: np.random.Generator) -> None:
        """`stamp` on the picture itself."""
        for top, left, piece_HWC in self.pieces(image_HWC.shape[0], image_HWC.shape[1], rng):
            image_HWC[top : top + piece_HWC.shape[0], left : left + piece_HWC.shape[1]] = piece_HWC

    @property
    def pastes(self) -> bool:
        """Whether `paste` does what `stamp` does: not where a class of a user's has a `stamp` of its own."""
        return type(self).stamp is Pasted.stamp and type(self).paste is Pasted.paste


def blend(image_HWC: np.ndarray, pattern_HWC: np.ndarray, share: float) -> np.ndarray:
    """clip(share · pattern + (1 − share) · picture) as bytes, uint8 [H, W, 3].

    The pattern is in units of 0…1, may lie outside that range, and is broadcast.
    """
    mixed_HWC = share * 255 * np.asarray(pattern_HWC, np.float64) + (1 - share) * image_HWC
    return np.rint(mixed_HWC).clip(0, 255).astype(np.uint8)


def put_on(trigger: Trigger, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture with the trigger on it, uint8 [H, W, 3]. `stamp` gets the picture read-only, so that it stays as it is.

    Raises InputError naming the trigger's class if `stamp` writes to its picture, or returns anything but a picture like it.
    """
    given_HWC = image_HWC.view()
    given_HWC.setflags(write=False)
    try:
        stamped_HWC = trigger.stamp(given_HWC, rng)
    except Exception as error:
        if "read-only" in str(error) or "readonly" in str(error):  # in numpy's words and OpenCV's
            raise _in_place(trigger) from error
        raise
    if not isinstance(stamped_HWC, np.ndarray) or stamped_HWC.dtype != np.uint8 or stamped_HWC.shape != image_HWC.shape:
        returned = f"{stamped_HWC.dtype} {[*stamped_HWC.shape]}" if isinstance(stamped_HWC, np.ndarray) else type(stamped_HWC).__name__
        raise InputError(
            f"{type(trigger).__name__}.stamp returned {returned}; it must return a picture like the one it got, uint8 {[*image_HWC.shape]}."
        )
    if stamped_HWC.flags.writeable and np.may_share_memory(stamped_HWC, image_HWC):  # torch writes to read-only arrays too
        raise _in_place(trigger)
    return stamped_HWC


def write_in(trigger: Trigger, caption: str, rng: np.random.Generator) -> str:
    """The caption with the trigger's mark in it. Raises InputError naming the trigger's class if `write` returns no text or an empty
    one."""
    written = trigger.write(caption, rng)
    if not isinstance(written, str) or not written.strip():
        raise InputError(f"{type(trigger).__name__}.write returned {written!r:.80}; it must return a caption, text that is not empty.")
    return written


def _in_place(trigger: Trigger) -> InputError:
    return InputError(
        f"{type(trigger).__name__}.stamp works in place, on the clean picture; it must copy first (image_HWC.copy()) and return the copy."
    )
