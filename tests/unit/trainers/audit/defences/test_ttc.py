"""TTC against its formulas written out in NumPy, and what its gradient is."""

import math

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier, as_floats, zero_shot
from trainers.audit.defences.adaptive import EOT, adaptive
from trainers.audit.defences.ttc import TTC
from trainers.model import TinyCLIP, TinyViT

SIDE, D, COUNT = 4, 6, 5
VALUES = 3 * SIDE * SIDE
MATRIX = rng("ttc").standard_normal((D, VALUES)) / 4
KEYS = tuple(map(str, range(COUNT)))


def pictures(low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return low + (high - low) * rng("pictures").random((COUNT, VALUES))


def draws() -> list[np.random.Generator]:
    return [rng("draws", i) for i in range(COUNT)]


def noise(eps: float) -> np.ndarray:
    return np.stack([draw.uniform(-eps, eps, (3, SIDE, SIDE)).ravel() for draw in draws()])


def squares() -> Classifier:
    """Features (A·x)², not of length 1."""
    matrix = torch.from_numpy(MATRIX)
    features = lambda x: (x.flatten(1) @ matrix.T) ** 2
    return Classifier(lambda x, _: features(x)[:, :2], 2, dtype=torch.float64, features=features)


def applied(defence: TTC, x: np.ndarray) -> np.ndarray:
    return defence.apply(torch.from_numpy(x).reshape(-1, 3, SIDE, SIDE), draws(), squares()).flatten(1).numpy()


def slope(x: np.ndarray, change: np.ndarray) -> np.ndarray:
    """∇_δ ‖f(x + δ) − f(x)‖² by hand, f = (A·x)²."""
    there, here = (x + change) @ MATRIX.T, x @ MATRIX.T
    return (4 * (there**2 - here**2) * there) @ MATRIX


def drift(x: np.ndarray, change: np.ndarray) -> np.ndarray:
    here, there = (x @ MATRIX.T) ** 2, ((x + change) @ MATRIX.T) ** 2
    return np.linalg.norm(there - here, axis=1) / np.linalg.norm(here, axis=1)


@pytest.mark.parametrize("fields", [{}, {"steps": 4, "beta": 0.5}, {"eps": 0.01, "step": 0.006}, {"eps": 0.3, "step": 0.2, "steps": 1}])
def test_the_steps_are_those_of_the_formulas(fields):
    defence, x = TTC(tau=100.0, **fields), pictures()
    change = np.clip(x + noise(defence.eps), 0, 1) - x
    changes = [change]
    for _ in range(defence.steps):
        change = np.clip(change + defence.step * np.sign(slope(x, change)), -defence.eps, defence.eps)
        change = np.clip(x + change, 0, 1) - x
        changes.append(change)
    weights = np.array([math.exp(defence.beta * k) for k in range(defence.steps + 1)])
    expected = x + np.tensordot(weights / weights.sum(), changes, 1)
    found = applied(defence, x)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(found - x).max() <= defence.eps + 1e-12


def test_the_counter_attack_is_off_where_the_drift_is_above_tau():
    x, eps = pictures(), TTC().eps
    start = np.clip(x + noise(eps), 0, 1) - x
    moved = np.sort(drift(x, start))
    tau = float(moved[1:3].mean())
    found, always = applied(TTC(tau=tau), x), applied(TTC(tau=100.0), x)
    calm = drift(x, start) < tau
    assert calm.sum() == 2
    np.testing.assert_allclose(found[~calm], (x + start)[~calm], atol=1e-15)
    np.testing.assert_array_equal(found[calm], always[calm])
    assert (np.abs(found - x - start).max(1) > 1e-4).tolist() == calm.tolist()
    np.testing.assert_allclose(applied(TTC(tau=0), x), x + start, atol=1e-15)


def test_the_counter_attack_moves_the_features_away():
    x = pictures(0.2, 0.8)
    start = noise(TTC().eps)
    assert (drift(x, applied(TTC(tau=100.0), x) - x) > drift(x, start)).all()


@pytest.mark.parametrize("tau", [0.0, 100.0])
def test_the_gradient_is_that_of_the_picture_plus_a_constant_as_differences_say(tau):
    """With and without a counter-attack. The change is made of signs, so small steps of the picture leave it as it is."""
    x, defence = pictures(0.2, 0.8), TTC(tau=tau)
    one = torch.from_numpy(x).reshape(-1, 3, SIDE, SIDE).requires_grad_()
    out = defence.apply(one, draws(), squares())
    assert torch.equal(out.detach(), defence.apply(one.detach(), draws(), squares()))
    upstream = rng("up").standard_normal(x.shape)
    found = torch.autograd.grad(out, one, torch.from_numpy(upstream).reshape(one.shape))[0].flatten(1).numpy()
    by_differences = np.zeros_like(x)
    for j, step in enumerate(1e-7 * np.eye(VALUES)):
        by_differences[:, j] = (upstream * (applied(defence, x + step) - applied(defence, x - step))).sum(1) / 2e-7
    np.testing.assert_allclose(found, by_differences, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, upstream, atol=1e-14)


@pytest.mark.parametrize("model", [TinyCLIP(), TinyViT(vision_layers=1)], ids=["ResNet", "ViT"])
def test_a_zero_shot_model_gives_features_counts_them_and_lets_gradients_through(model):
    encoder = model.build(0)
    image = torch.from_numpy(rng("image").integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    with zero_shot(encoder, ("cat", "dog", "bird"), ("a photo of a {}.",)) as bare:
        x = as_floats(image)
        feature = bare.features(x)
        torch.testing.assert_close(feature, encoder.encode_image(image, unit=False), rtol=1e-4, atol=1e-5)
        assert bare.queries == 3 and (feature.norm(dim=1) - 1).abs().min() > 1e-2
        guarded = TTC(tau=100.0).guard(bare)
        assert guarded(x, KEYS[:3]).shape == (3, 3)
        assert guarded.queries == 3 and bare.queries == 3 + 4 * 3
        x.requires_grad_()
        seen = adaptive(TTC(tau=100.0), bare, EOT(draws=2))
        through = torch.autograd.grad(seen(x, KEYS[:3]).square().sum(), x)[0]
        assert bare.queries == 15 + 2 * 4 * 3
        off = torch.autograd.grad(adaptive(TTC(tau=0), bare, EOT(draws=2))(x, KEYS[:3]).square().sum(), x)[0]
    assert torch.isfinite(through).all() and (through.flatten(1).norm(dim=1) > 0).all() and not torch.allclose(through, off)
    assert all(weight.grad is None for weight in encoder.parameters())


def test_mistakes_are_named():
    bare = Classifier(lambda x, _: x.flatten(1)[:, :2], 2)
    with pytest.raises(InputError, match="gives logits alone"):
        TTC().guard(bare)(torch.rand(1, 3, SIDE, SIDE), ("a",))
    for fields, words in (({"eps": 2}, "eps"), ({"steps": 0}, "steps"), ({"tau": -1}, "tau")):
        with pytest.raises(InputError, match=words):
            TTC(**fields)
