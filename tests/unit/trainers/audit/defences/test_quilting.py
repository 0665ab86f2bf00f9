"""Quilting: its neighbours and its seams against brute force, and the identity that own patches give."""

import itertools

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier, as_bytes, as_floats
from trainers.audit.defences.quilting import Quilting, behind_cut, places, quilted

BARE = Classifier(lambda x, _: x.flatten(1)[:, :2], 2)


def images(count: int, height: int = 11, width: int = 14, *, seed: int = 0) -> np.ndarray:
    return rng("images", seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def applied(defence: Quilting, image_BHWC: np.ndarray, seed: int = 0) -> np.ndarray:
    draws = [rng("draws", seed, i) for i in range(len(image_BHWC))]
    return as_bytes(defence.apply(as_floats(torch.from_numpy(image_BHWC)), draws, BARE)).numpy()


@pytest.mark.parametrize("size", [(11, 14), (12, 13), (5, 5), (7, 32)])
def test_own_patches_and_one_neighbour_give_the_picture_back(size):
    own = images(3, *size)
    defence = Quilting(neighbours=1).with_bank(np.concatenate([images(2, *size, seed=1), own]))
    np.testing.assert_array_equal(applied(defence, own), own)
    if size != (5, 5):
        assert (applied(Quilting(neighbours=5).with_bank(own), own) != own).any()


def test_foreign_patches_give_only_their_own_pixels():
    """The pictures have even values and the bank odd ones."""
    made = applied(Quilting(neighbours=4).with_bank(images(2) | 1), images(3, seed=1) & 254)
    assert (made % 2 == 1).all()


def test_neighbours_are_the_nearest_by_brute_force_and_each_is_drawn_equally_often():
    bank, seen = images(1, 9, 9), images(1, 5, 5, seed=1)
    defence = Quilting(neighbours=4).with_bank(bank)
    patches = np.stack([bank[0, i : i + 5, j : j + 5] for i in range(5) for j in range(5)])
    order = np.argsort(((patches.astype(int) - seen[0]) ** 2).sum((1, 2, 3)), kind="stable")
    drawn = applied(defence, np.repeat(seen, 2000, 0))
    counts = [(drawn == patches[i]).all((1, 2, 3)).sum() for i in order[:4]]
    assert sum(counts) == 2000 and min(counts) > 430  # 500 expected, sd 19.4


def test_equal_neighbours_are_taken_in_the_order_of_the_bank():
    bank = np.zeros((6, 5, 5, 3), np.uint8)
    bank[[1, 3, 4], 0, 0, 0] = 7, 7, 1
    near = Quilting(neighbours=6).with_bank(bank)._nearest(np.zeros((2, 75), np.uint8), torch.device("cpu"))
    np.testing.assert_array_equal(near, [[0, 2, 5, 4, 1, 3]] * 2)


@pytest.mark.parametrize(("length", "width"), [(5, 2), (4, 3), (1, 2), (5, 1), (3, 4)])
def test_the_cut_is_the_cheapest_of_all_paths(length, width):
    error = rng("error", length, width).integers(0, 10**6, (20, length, width))
    cut = behind_cut(error)
    paths = [p for p in itertools.product(range(width), repeat=length) if all(abs(a - b) <= 1 for a, b in itertools.pairwise(p))]
    for own, behind in zip(error, cut):
        best = min(paths, key=lambda path: sum(own[row, column] for row, column in enumerate(path)))
        np.testing.assert_array_equal(behind, np.arange(width) > np.array(best)[:, None])


def test_patches_meet_at_the_cut_in_both_directions():
    """Four patches of one colour each, whose overlaps of one pixel are cut on that pixel: the earlier patch keeps it."""
    colours = np.array([10, 20, 30, 40], np.uint8)
    patches = np.broadcast_to(colours[None, :, None, None, None], (1, 4, 3, 3, 3))
    made = quilted(patches, [0, 2], [0, 2], (5, 5))[0, ..., 0]
    expected = np.full((5, 5), 10)
    expected[:3, 3:], expected[3:, :3], expected[3:, 3:] = 20, 30, 40
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(("patch", "overlap", "size"), [(5, 2, (17, 15)), (5, 4, (9, 12)), (4, 3, (8, 9)), (3, 0, (7, 8)), (5, 2, (9, 10))])
def test_patches_placed_at_once_are_as_if_placed_one_after_the_other(patch, overlap, size):
    rows, columns = (places(side, patch, patch - overlap) for side in size)
    patches = rng("patches", patch, overlap).integers(0, 256, (2, len(rows) * len(columns), patch, patch, 3), dtype=np.uint8)
    found = quilted(patches, rows, columns, size)
    for own, made in zip(patches, found):
        expected = np.zeros((*size, 3), int)
        for number, (top, left) in enumerate(itertools.product(rows, columns)):
            there, new = expected[top : top + patch, left : left + patch], own[number].astype(int)
            error, keep = ((there - new) ** 2).sum(-1), np.zeros((patch, patch), bool)
            if left and (width := columns[columns.index(left) - 1] + patch - left):
                keep[:, :width] |= ~behind_cut(error[None, :, :width])[0]
            if top and (height := rows[rows.index(top) - 1] + patch - top):
                keep[:height] |= ~behind_cut(error[None, :height].swapaxes(1, 2))[0].T
            there[~keep] = new[~keep]
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(("side", "patch", "step"), [(32, 5, 3), (33, 5, 3), (34, 5, 3), (5, 5, 3), (6, 5, 3), (224, 5, 3), (9, 3, 3)])
def test_places_cover_the_side_without_gaps(side, patch, step):
    found = places(side, patch, step)
    assert found[0] == 0 and found[-1] == side - patch
    assert all(0 < after - before <= step for before, after in itertools.pairwise(found))


def test_the_bank_is_cut_by_the_seed_at_different_places():
    clean = (np.arange(3 * 10 * 12) % 256).astype(np.uint8).reshape(3, 10, 12, 1).repeat(3, 3)
    whole = Quilting(size=1000).with_bank(clean).bank_MV
    assert whole.shape == (3 * 6 * 8, 75)
    np.testing.assert_array_equal(whole[6 * 8 + 8 + 3].reshape(5, 5, 3), clean[1, 1:6, 3:8])
    part = Quilting(size=40).with_bank(clean).bank_MV
    assert part.shape == (40, 75)
    np.testing.assert_array_equal(part, Quilting(size=40).with_bank(clean).bank_MV)
    assert (part != Quilting(size=40, seed=1).with_bank(clean).bank_MV).any()
    noise = images(3, 10, 12)
    assert len(np.unique(Quilting(size=40).with_bank(noise).bank_MV, axis=0)) == 40
    assert Quilting().with_bank(clean) == Quilting() and Quilting.bank_MV is None


def test_mistakes_are_named():
    with pytest.raises(InputError, match="has no bank"):
        applied(Quilting(), images(1))
    with pytest.raises(InputError, match="overlap is 5; accepted: less than the patch's side, 5"):
        Quilting(overlap=5)
    with pytest.raises(InputError, match="size is 9; accepted: at least"):
        Quilting(size=9)
    with pytest.raises(InputError, match="4×9 pixels"):
        Quilting().with_bank(images(2, 4, 9))
    with pytest.raises(InputError, match="at most 6, the patches"):
        Quilting().with_bank(images(1, 6, 7))
    with pytest.raises(InputError, match="Quilting.patch is 5"):
        applied(Quilting().with_bank(images(1)), images(1, 4, 4))
