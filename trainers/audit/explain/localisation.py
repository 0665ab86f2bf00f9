"""How well a heat map finds a region, such as a trigger.

Each function takes the heat float64 [H, W], above 0 where the picture speaks for the class, and the region as a mask, bool [H, W], which is
neither empty nor, for `lift`, the whole picture. `segment_HW` numbers the superpixels of the explanation; None: every pixel is one.
Shape suffixes: H and W height and width, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Found:
    """The measures of one heat map; shares in 0 … 1."""

    mass: float
    """share of the positive heat inside the region; NaN if no heat is above 0"""
    lift: float
    """mass over the region's share of the area: 1 for a heat that is everywhere the same; NaN like mass"""
    iou1: float
    """intersection over union of the region and the hottest segment; 0 if no heat is above 0"""
    iouk: float
    """the same of the union of the k hottest segments, as many as the region touches; segments whose heat is not above 0 are left out"""
    pointing: float
    """1 if the hottest segment touches the region, else 0; of equally hot ones, the share that does; 0 if no heat is above 0"""


@dataclass(frozen=True)
class Ceiling:
    """What no heat map over these segments can exceed; 0 … 1."""

    mass: float
    """all heat in the segment that lies inside the region to the largest share"""
    iou1: float
    """the best single segment"""
    iou: float
    """the best union of segments"""
    chance: float
    """share of the segments that touch the region: what pointing would be by chance"""


def found(heat_HW: np.ndarray, mask_HW: np.ndarray, segment_HW: np.ndarray | None = None) -> Found:
    """All measures of a heat map."""
    return Found(
        mass=mass(heat_HW, mask_HW),
        lift=mass(heat_HW, mask_HW) / float(mask_HW.mean()),
        iou1=iou(heat_HW, mask_HW, segment_HW, 1),
        iouk=iou(heat_HW, mask_HW, segment_HW, touched(mask_HW, segment_HW)),
        pointing=pointing(heat_HW, mask_HW, segment_HW),
    )


def mass(heat_HW: np.ndarray, mask_HW: np.ndarray) -> float:
    """Share of the positive heat that lies inside the region."""
    positive_HW = np.maximum(heat_HW, 0)
    whole = positive_HW.sum()
    return float(positive_HW[mask_HW].sum() / whole) if whole > 0 else float("nan")


def touched(mask_HW: np.ndarray, segment_HW: np.ndarray | None = None) -> int:
    """How many segments the region touches."""
    return int((_counts(mask_HW, segment_HW)[0] > 0).sum())


def iou(heat_HW: np.ndarray, mask_HW: np.ndarray, segment_HW: np.ndarray | None, top: int) -> float:
    """Intersection over union of the region and the `top` hottest segments whose heat is above 0; among equals the lower number."""
    inside_S, size_S = _counts(mask_HW, segment_HW)
    heat_S = _by_segment(heat_HW, segment_HW)
    best = [at for at in np.argsort(-heat_S, kind="stable")[:top] if heat_S[at] > 0]
    return float(inside_S[best].sum() / (mask_HW.sum() + size_S[best].sum() - inside_S[best].sum()))


def pointing(heat_HW: np.ndarray, mask_HW: np.ndarray, segment_HW: np.ndarray | None = None) -> float:
    """Whether the hottest segment touches the region; of equally hot ones, the share that does."""
    heat_S = _by_segment(heat_HW, segment_HW)
    if not heat_S.max() > 0:
        return 0.0
    inside_S, _ = _counts(mask_HW, segment_HW)
    return float((inside_S[heat_S == heat_S.max()] > 0).mean())


def ceiling(mask_HW: np.ndarray, segment_HW: np.ndarray | None = None) -> Ceiling:
    """What is possible with these segments.

    The best union consists of the segments with the largest shares inside the region: a segment with a pixels inside and b outside improves
    the ratio (Σa)/(area + Σb) exactly if a/b exceeds it.
    """
    inside_S, size_S = _counts(mask_HW, segment_HW)
    area = mask_HW.sum()
    order = np.argsort(-inside_S / size_S, kind="stable")
    unions = np.cumsum(inside_S[order]) / (area + np.cumsum((size_S - inside_S)[order]))
    return Ceiling(
        mass=float((inside_S / size_S).max()),
        iou1=float((inside_S / (area + size_S - inside_S)).max()),
        iou=float(unions.max()),
        chance=float((inside_S > 0).mean()),
    )


def _counts(mask_HW: np.ndarray, segment_HW: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(pixels inside the region, pixels) of each segment, float64 [S]."""
    if segment_HW is None:
        return mask_HW.ravel().astype(np.float64), np.ones(mask_HW.size)
    return np.bincount(segment_HW.ravel(), mask_HW.ravel()), np.bincount(segment_HW.ravel()).astype(np.float64)


def _by_segment(heat_HW: np.ndarray, segment_HW: np.ndarray | None) -> np.ndarray:
    """The hottest pixel of each segment, [S]."""
    if segment_HW is None:
        return heat_HW.ravel()
    heat_S = np.full(int(segment_HW.max()) + 1, -np.inf)
    np.maximum.at(heat_S, segment_HW.ravel(), heat_HW.ravel())
    return heat_S
