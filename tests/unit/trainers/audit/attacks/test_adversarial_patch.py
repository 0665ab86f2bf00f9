"""The adversarial patch: where it lies, what it leaves alone, and that it makes its class win wherever it lies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datasets.errors import InputError
from tests.unit.trainers.audit.attacks.cases import Network
from trainers.audit.attacks.patch import AdversarialPatch, Places
from trainers.audit.classifier import Classifier

DRAW = np.random.default_rng(0)
PICTURES = torch.from_numpy(DRAW.random((12, 3, 24, 20)))
KEYS = tuple(f"key{number}" for number in range(12))


def channel_means() -> Classifier:
    """Its classes are the channels: the patch that makes one win is known."""
    return Classifier(lambda picture_BCHW, _: 40 * picture_BCHW.mean((2, 3)), 3, dtype=torch.float64)


@pytest.mark.parametrize("settings", [{}, {"shape": "disc"}, {"fixed_area": True}])
def test_pixels_outside_stay_exactly_as_they_are(settings: dict[str, Any]) -> None:
    attack = AdversarialPatch(area=0.1, **settings)
    placed, mask = attack.apply(torch.full((3, 7, 7), 2.0), PICTURES, KEYS)
    assert torch.equal(placed.permute(0, 2, 3, 1)[~mask], PICTURES.permute(0, 2, 3, 1)[~mask])
    assert torch.allclose(placed.permute(0, 2, 3, 1)[mask], torch.tensor(2.0, dtype=torch.float64))
    share = mask.double().mean((1, 2))
    assert (share > 0.05).all() and (share < 0.16).all() and len({tuple(row.flatten().tolist()) for row in mask}) > 6
    again, _ = attack.apply(torch.full((3, 7, 7), 2.0), PICTURES[3:5], KEYS[3:5])
    assert torch.equal(again, placed[3:5])


def test_patches_of_fixed_area_are_copied_pixel_by_pixel() -> None:
    attack = AdversarialPatch(area=0.1, fixed_area=True)
    side = attack._side(PICTURES)
    patch = torch.from_numpy(DRAW.random((3, side, side)))
    placed, mask = attack.apply(patch, PICTURES, KEYS)
    assert side == round(math.sqrt(0.1 * 24 * 20)) and (mask.sum((1, 2)) == side**2).all()
    turned = [torch.rot90(patch, k, (1, 2)) for k in range(4)]
    for picture, covered in zip(placed, mask):
        rows, columns = covered.any(1), covered.any(0)
        window = picture[:, rows][:, :, columns]
        assert any(torch.allclose(window, one, rtol=0, atol=1e-6) for one in turned)


def test_a_turned_and_scaled_patch_lies_where_it_should() -> None:
    """A quarter turn anticlockwise takes the right edge to the top."""
    patch = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    patch[:, :, :, 4:] = 1
    place = Places(torch.tensor([[12.0, 10.0]]), torch.tensor([12.0]), torch.tensor([math.pi / 2], dtype=torch.float64))
    placed, mask = AdversarialPatch().lay(patch, torch.full((1, 3, 24, 20), 0.5, dtype=torch.float64), place)
    assert mask[0, 6:18, 4:16].all() and mask.sum() == 144
    assert (placed[0, :, 6:11, 4:16] == 1).all() and (placed[0, :, 13:18, 4:16] == 0).all()


@pytest.mark.parametrize("target", [0, 2])
def test_the_patch_is_the_one_that_is_known(target: int) -> None:
    attack = AdversarialPatch(area=0.15, steps=40, batch_size=4, lr=0.1)
    patch = attack.optimise(channel_means(), PICTURES, KEYS, target)
    assert patch.shape == (3, 8, 8) and patch.min() >= 0 and patch.max() <= 1
    others = [channel for channel in range(3) if channel != target]
    assert patch[target].mean() > 0.9 and patch[others].mean() < 0.1
    placed, _ = attack.apply(patch, PICTURES, KEYS)
    assert (channel_means().predict(placed, KEYS) == target).all()
    assert torch.equal(patch, attack.optimise(channel_means(), PICTURES, KEYS, target)), "the same on every call"


def test_a_trained_patch_beats_random_ones_on_other_pictures() -> None:
    case = Network(count=24)
    attack = AdversarialPatch(area=0.25, steps=80, fixed_area=True, lr=0.1)
    for target in (1, 4):
        classifier = case.classifier()
        patch = attack.optimise(classifier, case.pictures[:12], case.keys[:12], target)
        assert classifier.queries == 80 * 16
        losses = []
        for one in (patch, *torch.from_numpy(DRAW.random((20, 3, 3, 3)).round())):
            elsewhere = [replace(attack, seed=seed).apply(one, case.pictures[12:], case.keys[12:])[0] for seed in range(6)]
            losses.append(float(F.cross_entropy(classifier(torch.cat(elsewhere), 6 * case.keys[12:]), torch.full((72,), target))))
        assert losses[0] < min(losses[1:])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="0 … 2"):
        AdversarialPatch().optimise(channel_means(), PICTURES, KEYS, 3)
    with pytest.raises(InputError, match="at least 1"):
        AdversarialPatch().optimise(channel_means(), PICTURES[:0], (), 0)
    with pytest.raises(InputError, match="area"):
        AdversarialPatch(area=0.9).apply(torch.zeros(3, 5, 5), PICTURES, KEYS)
