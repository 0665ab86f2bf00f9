"""Heat maps as pictures. Shape suffixes: H and W height and width, 3 channels; pictures are uint8 [H, W, 3]."""

from __future__ import annotations

import numpy as np

FOR, AGAINST, EDGE, OUTLINE = (np.array(colour, np.float64) for colour in ((255, 40, 0), (0, 90, 255), (255, 255, 255), (255, 255, 0)))
"""Colours of heat above and below 0, of segments' borders, and of the outline of the region that was to be found."""


def enlarged(value_HW: np.ndarray, side: int) -> np.ndarray:
    """[H, W, …] with each pixel repeated so often that the height is at least `side`."""
    times = -(-side // value_HW.shape[0])
    return value_HW.repeat(times, 0).repeat(times, 1)


def heated(image_HW3: np.ndarray, heat_HW: np.ndarray) -> np.ndarray:
    """The picture in grey under its heat: red speaks for the class, blue against it, the strongest of both opaque to 80 %."""
    grey_HW3 = np.repeat(image_HW3.mean(2, keepdims=True), 3, 2)
    largest = np.abs(heat_HW).max()
    share_HW1 = 0.8 * np.abs(heat_HW / (largest or 1.0))[..., None]
    colour_HW3 = np.where((heat_HW > 0)[..., None], FOR, AGAINST)
    return _bytes((1 - share_HW1) * grey_HW3 + share_HW1 * colour_HW3)


def bordered(image_HW3: np.ndarray, segment_HW: np.ndarray, colour: np.ndarray = EDGE) -> np.ndarray:
    """The picture with the last row and column of each segment mixed half and half with a colour."""
    edge_HW = np.zeros(segment_HW.shape, bool)
    edge_HW[:-1] |= segment_HW[:-1] != segment_HW[1:]
    edge_HW[:, :-1] |= segment_HW[:, :-1] != segment_HW[:, 1:]
    return _bytes(np.where(edge_HW[..., None], (image_HW3 + colour) / 2, image_HW3))


def _bytes(image_HW3: np.ndarray) -> np.ndarray:
    return image_HW3.round().clip(0, 255).astype(np.uint8)
