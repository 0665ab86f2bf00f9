"""Measures of a heat map against loops over pixels and over all choices of segments."""

import itertools

import numpy as np
import pytest

from datasets.seeding import rng
from trainers.audit.explain.localisation import ceiling, found, iou, mass, pointing, touched


def case(seed: int, segments: int = 7, side: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(heat that is constant on segments, region, segments)"""
    draw = rng("case", seed)
    segment_HW = draw.integers(0, segments, (side, side))
    segment_HW.flat[:segments] = np.arange(segments)
    mask_HW = draw.random((side, side)) < 0.25
    mask_HW[2:4, 1:4] = True
    return draw.integers(-4, 6, segments)[segment_HW] / 4, mask_HW, segment_HW


def ratio(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("by_pixels", [False, True])
def test_measures_pixel_by_pixel(seed: int, by_pixels: bool) -> None:
    heat_HW, mask_HW, segment_HW = case(seed)
    number_HW = np.arange(36).reshape(6, 6) if by_pixels else segment_HW
    pixels = list(itertools.product(range(6), range(6)))
    region = {at for at in pixels if mask_HW[at]}
    groups = [{at for at in pixels if number_HW[at] == number} for number in range(number_HW.max() + 1)]
    heats = [heat_HW[next(iter(group))] for group in groups]
    whole = sum(max(heat_HW[at], 0) for at in pixels)
    known_mass = sum(max(heat_HW[at], 0) for at in region) / whole
    order = sorted(range(len(groups)), key=lambda number: (-heats[number], number))
    touching = [number for number, group in enumerate(groups) if group & region]
    best = [number for number in order[: len(touching)] if heats[number] > 0]
    hottest = [number for number in range(len(groups)) if heats[number] == max(heats)]
    result = found(heat_HW, mask_HW, None if by_pixels else segment_HW)
    assert result.mass == pytest.approx(known_mass) and result.lift == pytest.approx(known_mass / (len(region) / 36))
    assert result.iou1 == pytest.approx(ratio(groups[order[0]], region))
    assert result.iouk == pytest.approx(ratio(set().union(*(groups[number] for number in best)), region))
    assert result.pointing == pytest.approx(np.mean([number in touching for number in hottest]))


@pytest.mark.parametrize("seed", range(12))
def test_the_ceiling_is_the_best_of_all_choices(seed: int) -> None:
    _, mask_HW, segment_HW = case(seed)
    region, groups = set(np.flatnonzero(mask_HW)), [set(np.flatnonzero(segment_HW == number)) for number in range(7)]
    unions = [set().union(*chosen) for size in range(1, 8) for chosen in itertools.combinations(groups, size)]
    found_here = ceiling(mask_HW, segment_HW)
    assert found_here.iou == pytest.approx(max(ratio(union, region) for union in unions))
    assert found_here.iou1 == pytest.approx(max(ratio(group, region) for group in groups))
    assert found_here.mass == pytest.approx(max(len(union & region) / len(union) for union in unions))
    assert found_here.chance == pytest.approx(sum(bool(group & region) for group in groups) / 7)
    draw = rng("heats", seed)
    for _ in range(50):
        result = found(draw.standard_normal(7)[segment_HW], mask_HW, segment_HW)
        assert result.iou1 <= found_here.iou1 + 1e-12 and result.iouk <= found_here.iou + 1e-12
        assert not result.mass > found_here.mass + 1e-12


def test_the_ends_of_the_scale() -> None:
    mask_HW = np.zeros((8, 8), bool)
    mask_HW[2:4, 2:4] = True
    perfect = found(mask_HW.astype(float), mask_HW)
    assert (perfect.mass, perfect.lift, perfect.iouk, perfect.pointing) == (1, 16, 1, 1) and perfect.iou1 == 1 / 4
    even = found(np.ones((8, 8)), mask_HW)
    assert even.mass == 4 / 64 and even.lift == 1 and even.pointing == 4 / 64
    opposite = found(1.0 - mask_HW, mask_HW)
    assert (opposite.mass, opposite.lift, opposite.iou1, opposite.iouk, opposite.pointing) == (0, 0, 0, 0, 0)
    for empty in (np.zeros((8, 8)), -mask_HW.astype(float)):
        nothing = found(empty, mask_HW)
        assert np.isnan(nothing.mass) and np.isnan(nothing.lift) and (nothing.iou1, nothing.iouk, nothing.pointing) == (0, 0, 0)
    by_pixels = ceiling(mask_HW)
    assert (by_pixels.mass, by_pixels.iou, by_pixels.iou1, by_pixels.chance) == (1, 1, 1 / 4, 4 / 64)


def test_a_trigger_across_segments() -> None:
    """2 × 2 pixels in the middle of four segments of 2 × 2: a quarter of each."""
    segment_HW = np.arange(4).reshape(2, 2).repeat(2, 0).repeat(2, 1)
    mask_HW = np.zeros((4, 4), bool)
    mask_HW[1:3, 1:3] = True
    heat_HW = np.array([3.0, 1.0, -1.0, 0.0])[segment_HW]
    assert touched(mask_HW, segment_HW) == 4 and mass(heat_HW, mask_HW) == 1 / 4 and pointing(heat_HW, mask_HW, segment_HW) == 1
    assert iou(heat_HW, mask_HW, segment_HW, 1) == pytest.approx(1 / 7)
    assert iou(heat_HW, mask_HW, segment_HW, 4) == pytest.approx(2 / 10), "segments 0 and 1: the others are not above 0"
    best = ceiling(mask_HW, segment_HW)
    assert (best.mass, best.iou1, best.iou) == (1 / 4, pytest.approx(1 / 7), pytest.approx(1 / 4))
