"""Superpixels: the parts of a picture that an explanation switches on and off as a whole.

Shape suffixes: C channels, H and W height and width.
"""

from __future__ import annotations

import numpy as np


def numbered(segment_HW: np.ndarray) -> np.ndarray:
    """int64 [H, W]: the same segments, numbered from 0 without gaps in the order of their numbers."""
    return np.unique(segment_HW, return_inverse=True)[1].reshape(segment_HW.shape).astype(np.int64)


def grid(height: int, width: int, across: int) -> np.ndarray:
    """int64 [H, W]: rectangles in `across` rows and columns, as equal as whole pixels allow, row by row. A side with fewer pixels has one
    row for each."""
    row_H, column_W = (np.arange(side) * across // side for side in (height, width))
    return numbered(row_H[:, None] * across + column_W[None])


def slic(picture_HWC: np.ndarray, count: int) -> np.ndarray:
    """int64 [H, W]: about `count` connected segments of like colour (Achanta et al. 2012), from floats in 0 … 1; the weight of distance
    against colour (in Lab) is 10."""
    from skimage.segmentation import slic as by_skimage

    found_HW = by_skimage(picture_HWC.astype(np.float64), n_segments=count, compactness=10.0, start_label=0, channel_axis=-1)
    return numbered(found_HW)


def means(picture_CHW: np.ndarray, segment_HW: np.ndarray) -> np.ndarray:
    """float64 [C, H, W]: each pixel has its segment's mean colour."""
    flat_P = segment_HW.ravel()
    size_S = np.bincount(flat_P)
    colour_CS = np.stack([np.bincount(flat_P, row_P) for row_P in picture_CHW.reshape(len(picture_CHW), -1)]) / size_S
    return colour_CS[:, segment_HW]
