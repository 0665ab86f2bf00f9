"""JPEG, bit depth, crops and total variation: each against a formula or another library, and what all defences have in common."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from skimage.restoration import denoise_tv_chambolle
from torch.nn import functional as F

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation, smoothest
from trainers.audit.defences.ttc import TTC

SIDE, CLASSES, COUNT = 16, 3, 7
KEYS = tuple(f"picture {i}" for i in range(COUNT))


def pictures(count: int = COUNT, side: int = SIDE) -> torch.Tensor:
    """Smooth pictures of bytes, with noise, floats [N, 3, S, S]."""
    coarse = torch.from_numpy(rng("coarse", count, side).random((count, 3, 4, 4), np.float32))
    smooth = F.interpolate(coarse, (side, side), mode="bilinear")
    noise = torch.from_numpy(rng("noise", count, side).random(smooth.shape, np.float32))
    return (255 * (0.8 * smooth + 0.2 * noise)).round() / 255


def linear() -> Classifier:
    weight = torch.from_numpy(rng("weight").standard_normal((CLASSES, 3 * SIDE * SIDE)).astype(np.float32))
    return Classifier(lambda x, _: x.flatten(1) @ weight.T, CLASSES, features=lambda x: torch.sin(x.flatten(1) @ weight.T))


def bank() -> np.ndarray:
    return rng("bank").integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


ALL = [JPEG(), BitDepth(), Crops(crops=3), TotalVariation(steps=20), Quilting(neighbours=3), TTC(tau=100.0)]
ids = lambda defence: defence.label


def draws(count: int = COUNT, seed: int = 0) -> list[np.random.Generator]:
    return [rng("draws", seed, i) for i in range(count)]


@pytest.mark.parametrize("quality", [75, 20, 100])
def test_jpeg_gives_pillows_bytes(tmp_path, quality):
    x = pictures()
    out = JPEG(quality=quality).apply(x, draws(), linear())
    for i, picture in enumerate(x):
        image = np.rint(255 * picture.permute(1, 2, 0).numpy().astype(np.float64)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "one.jpg", quality=quality)
        decoded = np.asarray(Image.open(tmp_path / "one.jpg"))
        np.testing.assert_array_equal(np.rint(255 * out[i].permute(1, 2, 0).numpy()), decoded)
        assert quality == 100 or (decoded != image).any()


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_rounds_to_the_nearest_level_and_does_it_once(bits):
    x = torch.linspace(0, 1, 3 * 400).reshape(1, 3, 20, 20)
    once = BitDepth(bits=bits).apply(x, draws(1), linear())
    assert torch.equal(once, BitDepth(bits=bits).apply(once, draws(1), linear()))
    levels = np.linspace(0, 1, 2**bits)
    assert len(once.unique()) == 2**bits
    nearest = np.abs(x.numpy()[..., None] - levels).min(-1)
    np.testing.assert_allclose(np.abs(once - x), nearest, atol=1e-6)


def test_a_crop_is_the_part_that_was_drawn_scaled_back():
    x, defence = pictures(), Crops(share=0.75)
    out = defence.apply(x, draws(), linear())
    for i, draw in enumerate(draws()):
        top, left = draw.integers(SIDE - 12, endpoint=True), draw.integers(SIDE - 12, endpoint=True)
        expected = F.interpolate(x[i : i + 1, :, top : top + 12, left : left + 12], (SIDE, SIDE), mode="bilinear")[0]
        torch.testing.assert_close(out[i], expected)
    tops = {int(draw.integers(SIDE - 12, endpoint=True)) for draw in draws(200)}
    assert tops == set(range(5))
    assert torch.equal(Crops(share=1).apply(x, draws(), linear()), x)


def test_crops_average_the_logits_of_different_crops():
    x, defence, bare = pictures(), Crops(crops=4), linear()
    own = draws()
    expected = torch.stack([bare(defence.apply(x, own, bare), KEYS) for _ in range(4)])
    assert (expected[0] != expected[1]).any()
    torch.testing.assert_close(defence.classify(bare, x, KEYS, draws()), expected.mean(0))


@pytest.mark.parametrize("defence", [Crops(), TotalVariation()], ids=ids)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_picture_of_one_colour_stays_as_it_is(defence, value):
    x = torch.full((2, 3, SIDE, SIDE), value)
    x[:, 1] = 1 - value
    torch.testing.assert_close(defence.apply(x, draws(2), linear()), x, atol=1e-6, rtol=0)


def test_total_variation_without_losses_is_skimages():
    x = pictures(2)[:, :1, :8, :8].double()
    found = smoothest(x, torch.ones_like(x), 0.1, 6000)
    for picture, own in zip(x, found):
        for channel, own_HW in zip(picture.numpy(), own.numpy()):
            expected = denoise_tv_chambolle(channel, weight=0.1, eps=1e-14, max_num_iter=20000)
            np.testing.assert_allclose(own_HW, expected, atol=2e-4)


def objective(z: np.ndarray, x: np.ndarray, kept: np.ndarray, weight: float, soft: float = 0.0) -> float:
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:-1], right[:, :-1] = z[1:] - z[:-1], z[:, 1:] - z[:, :-1]
    return 0.5 * (kept * (z - x) ** 2).sum() + weight * np.sqrt(down**2 + right**2 + soft**2).sum()


def test_total_variation_finds_the_minimum_that_scipy_finds():
    x, kept = rng("tv").random((6, 6)), rng("kept").random((6, 6)) < 0.5
    best = minimize(lambda flat: objective(flat.reshape(6, 6), x, kept, 0.03, 1e-4), np.full(36, 0.5), method="L-BFGS-B",
                    options={"maxiter": 5000, "maxfun": 10**6, "ftol": 1e-15, "gtol": 1e-9})  # fmt: skip
    wanted = objective(best.x.reshape(6, 6), x, kept, 0.03)
    four = [torch.from_numpy(value).double()[None, None] for value in (x, kept)]
    found = objective(smoothest(*four, 0.03, 3000)[0, 0].numpy(), x, kept, 0.03)
    assert found == pytest.approx(wanted, rel=1e-3)
    default = objective(smoothest(*four, 0.03, TotalVariation().steps)[0, 0].numpy(), x, kept, 0.03)
    assert default == pytest.approx(wanted, rel=1e-2)


def test_total_variation_of_three_pixels_is_known():
    x = torch.tensor([0.2, 0.9, 0.6], dtype=torch.float64).reshape(1, 1, 1, 3)
    kept = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    left, middle, right = smoothest(x, kept, 0.05, 2000).flatten().tolist()
    assert left == pytest.approx(0.25, abs=1e-4) and right == pytest.approx(0.55, abs=1e-4) and left - 1e-4 <= middle <= right + 1e-4
    left, middle, right = smoothest(x, torch.ones_like(x), 0.05, 2000).flatten().tolist()
    assert (left, middle, right) == (pytest.approx(0.25, abs=1e-4), pytest.approx(0.8, abs=1e-4), pytest.approx(0.65, abs=1e-4))


def test_forgotten_values_are_half_and_have_no_influence():
    x, defence = pictures(), TotalVariation()
    kept = torch.from_numpy(np.stack([draw.random((3, SIDE, SIDE)) >= 0.5 for draw in draws()]))
    assert 0.45 < kept.float().mean() < 0.55
    other = torch.where(kept, x, 1 - x)
    assert torch.equal(defence.apply(x, draws(), linear()), defence.apply(other, draws(), linear()))
    assert not torch.equal(defence.apply(x, draws(), linear()), defence.apply(x, draws(seed=1), linear()))


@pytest.mark.parametrize("defence", ALL, ids=ids)
def test_a_batch_changes_nothing(defence):
    defence, x = defence.ready(bank()), pictures()
    whole = defence.apply(x, draws(), linear())
    one_by_one = torch.cat([defence.apply(x[i : i + 1], draws()[i : i + 1], linear()) for i in range(COUNT)])
    torch.testing.assert_close(whole, one_by_one, atol=2e-7, rtol=0)
    assert whole.dtype == x.dtype and whole.shape == x.shape and whole.min() >= 0 and whole.max() <= 1 + 1e-6
    assert not whole.requires_grad
    guarded, alone = defence.guard(linear()), defence.guard(linear())
    torch.testing.assert_close(guarded(x, KEYS), torch.cat([alone(x[i : i + 1], KEYS[i : i + 1]) for i in reversed(range(COUNT))]).flip(0))


@pytest.mark.parametrize("defence", ALL, ids=ids)
def test_draws_are_fresh_for_each_call_and_the_same_from_scratch(defence):
    defence, x, bare = defence.ready(bank()), pictures(), linear()
    first, again = defence.guard(bare), defence.guard(bare)
    calls = [first(x, KEYS) for _ in range(2)]
    assert torch.equal(calls[0], again(x, KEYS)) and torch.equal(calls[1], again(x, KEYS))
    assert torch.equal(calls[0], calls[1]) is not defence.random
    other = replace(defence, seed=1).ready(bank()).guard(bare)
    assert torch.equal(calls[0], other(x, KEYS)) is not defence.random
    assert first.queries == 2 * COUNT


@pytest.mark.parametrize(("defence", "each"), [(JPEG(), 1), (Crops(crops=5), 5), (TTC(), 4), (TTC(steps=3), 5)], ids=str)
def test_the_bare_classifier_counts_what_it_computes(defence, each):
    bare = linear()
    guarded = defence.guard(bare)
    guarded.predict(pictures(), KEYS)
    assert guarded.queries == COUNT and bare.queries == each * COUNT


@pytest.mark.parametrize("defence", ALL, ids=ids)
def test_only_differentiable_defences_have_a_gradient(defence):
    x = pictures().requires_grad_()
    out = defence.ready(bank()).apply(x, draws(), linear())
    if defence.differentiable:
        assert (torch.autograd.grad(out.sum(), x)[0] != 0).any()
    elif out.requires_grad:
        assert not torch.autograd.grad(out.sum(), x)[0].any()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: JPEG(quality=0), "JPEG.quality is 0"),
    (lambda: BitDepth(bits=9), "BitDepth.bits is 9"),
    (lambda: Crops(share=0), "Crops.share is 0"),
    (lambda: Crops(crops=0), "Crops.crops is 0"),
    (lambda: TotalVariation(drop=1), "TotalVariation.drop is 1"),
    (lambda: TotalVariation(weight=0), "TotalVariation.weight is 0"),
])  # fmt: skip
def test_bad_fields_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()
