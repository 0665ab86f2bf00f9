"""The penalties on gradients and singular values: closed forms on a linear model, finite differences on a whole one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datasets.errors import InputError
from datasets.seeding import rng
from tests.parity.toys import ToyFeed, resnet, vit
from trainers.batch import to_device
from trainers.objectives.contrastive import MMCL
from trainers.objectives.lipschitz import Smooth, largest, matrices

ROWS, PIXELS, WIDTH, SCALE = 5, 12, 4, 1.7


def linear():
    """x [B, 2, 2, 3] -> x·W [B, D], with fixed texts; and W."""
    draw = rng("linear")
    weight, text = (torch.from_numpy(draw.standard_normal(shape)) / 20 for shape in ((PIXELS, WIDTH), (ROWS, WIDTH)))
    weight.requires_grad_()

    def model(batch):
        return {"image": batch["image"].flatten(1) @ weight, "text": text, "logit_scale": torch.tensor(SCALE, dtype=torch.float64)}

    image = torch.from_numpy(draw.integers(0, 256, (ROWS, 2, 2, 3)).astype(np.uint8))
    return model, weight, text.numpy(), {"image": image}


ENCODER = SimpleNamespace(mean=torch.zeros(1, dtype=torch.float64))
"""What the loss asks of an encoder where there is no spectral penalty: its type."""


def closed_form(weight, text, image, norm):
    """Mean length of ∂ℓ_i/∂x_i = 255 · s · W (Tᵀp_i − t_i), in NumPy; x in 0 … 1."""
    lengths = []
    for i, x in enumerate(image.reshape(ROWS, -1).astype(np.float64)):
        logits = SCALE * (x @ weight) @ text.T
        p = np.exp(logits - logits.max())
        gradient = 255 * SCALE * weight @ (text.T @ (p / p.sum()) - text[i])
        lengths.append((gradient**2).sum() if norm == "l2" else np.abs(gradient).sum())
    return float(np.mean(lengths))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_penalty_and_its_gradient_are_the_closed_form_on_a_linear_model(norm):
    model, weight, text, batch = linear()
    found = Smooth(weight=0.3, norm=norm).begin(ENCODER, rng(0)).loss(model, batch)
    image = batch["image"].numpy()
    assert float(found["gradient"].detach()) == pytest.approx(closed_form(weight.detach().numpy(), text, image, norm), rel=1e-12)
    assert float(found["loss"].detach()) == pytest.approx(float((found["mmcl"] + 0.3 * found["gradient"]).detach()), rel=1e-12)
    (gradient,) = torch.autograd.grad(found["gradient"], weight, retain_graph=True)
    step, at = 1e-7, weight.detach().numpy()
    for place in np.ndindex(PIXELS, WIDTH):
        sides = []
        for side in (1, -1):
            moved = at.copy()
            moved[place] += side * step
            sides.append(closed_form(moved, text, image, norm))
        assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("build", [resnet, vit])
def test_the_second_derivative_is_that_of_the_whole_model(build, norm):
    """Along a random direction of all weights, by central differences, in training mode: attention and batch statistics have part in it."""
    encoder = build().double().train()
    batch = to_device(ToyFeed(batch_size=4).batch(0), encoder, False)
    losses = Smooth(weight=0.01, norm=norm).begin(encoder, rng(0))
    found = losses.loss(encoder, batch)["loss"]
    found.backward()
    weights = [weight for weight in encoder.model.parameters() if weight.grad is not None]
    directions = [torch.from_numpy(rng("direction", i).standard_normal(weight.shape)) for i, weight in enumerate(weights)]
    expected = sum(float((weight.grad * way).sum()) for weight, way in zip(weights, directions))
    step, sides = 1e-8, []  # small, for ReLU and the L1 length have kinks
    for side in (1, -2):
        with torch.no_grad():
            for weight, way in zip(weights, directions):
                weight += side * step * way
        sides.append(float(losses.loss(encoder, batch)["loss"].detach()))
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_that_of_each_pictures_own_loss():
    encoder = vit().double().eval()
    batch = to_device(ToyFeed(batch_size=4).batch(0), encoder, False)
    found = Smooth().begin(encoder, rng(0)).loss(encoder, batch)["gradient"]
    with torch.no_grad():
        text, scale = encoder.encode_text(batch["text"]), encoder.model.logit_scale.exp()
    lengths = []
    for i in range(4):
        x = (batch["image"][i : i + 1].double() / 255).requires_grad_()
        logits = scale * (encoder.encode_image(255 * x) @ text.T)
        (logits.logsumexp(1) - logits[:, i]).sum().backward()
        lengths.append(float(x.grad.square().sum()))
    assert float(found.detach()) == pytest.approx(np.mean(lengths), rel=1e-9)


def test_the_singular_values_are_numpys():
    encoder = resnet().double()
    chosen = dict(matrices(encoder))
    assert "visual.conv1.weight" in chosen and "visual.layer1.0.conv2.weight" in chosen and "visual.attnpool.c_proj.weight" in chosen
    assert not [name for name in chosen if "embedding" in name or not name.startswith("visual.") or "bn" in name]
    squares = 0.0
    for name, matrix in chosen.items():
        values = np.linalg.svd(matrix.detach().numpy().reshape(len(matrix), -1), compute_uv=False)
        assert float(largest(name, matrix, 400).detach()) == pytest.approx(values[0], rel=1e-6), name
        assert float(largest(name, matrix, 10).detach()) <= values[0] * (1 + 1e-12)
        squares += values[0] ** 2
    batch = to_device(ToyFeed(batch_size=4).batch(0), encoder, False)
    found = Smooth(weight=0, spectral_weight=0.5, iterations=400).begin(encoder, rng(0)).loss(encoder, batch)
    assert set(found) == {"loss", "mmcl", "spectral"} and float(found["spectral"].detach()) == pytest.approx(squares / 2, rel=1e-6)
    left, values, right = np.linalg.svd(chosen["visual.attnpool.c_proj.weight"].detach().numpy())
    (gradient,) = torch.autograd.grad(found["spectral"], encoder.model.visual.attnpool.c_proj.weight)
    np.testing.assert_allclose(gradient.numpy(), values[0] * np.outer(left[:, 0], right[0]), atol=1e-4)


def test_without_weights_it_is_mmcl():
    encoder = resnet().double().train()
    batch = to_device(ToyFeed(batch_size=4).batch(0), encoder, False)
    plain = MMCL().loss(encoder, batch)["loss"]
    found = Smooth(weight=0).begin(encoder, rng(0)).loss(encoder, batch)
    assert set(found) == {"loss", "mmcl"} and torch.equal(found["loss"], plain)
    one = Smooth(weight=1e-30).begin(encoder, rng(0)).loss(encoder, batch)
    torch.testing.assert_close(one["loss"], plain, rtol=1e-12, atol=0)
    assert not batch["image"].requires_grad and batch["image"].dtype == torch.uint8


def test_a_scale_that_makes_the_loss_steep_is_punished():
    model, weight, _, batch = linear()
    found = [Smooth().begin(ENCODER, rng(0)).loss(lambda given, s=s: {**model(given), "logit_scale": torch.tensor(s).double()}, batch)
             for s in (0.0, 0.5)]  # fmt: skip
    assert float(found[0]["gradient"].detach()) == 0 < float(found[1]["gradient"].detach())
    assert F.cross_entropy(torch.zeros(1, ROWS), torch.zeros(1, dtype=torch.long)) == pytest.approx(float(found[0]["mmcl"].detach()))


@pytest.mark.parametrize(("fields", "words"), [({"weight": -1}, "Smooth.weight"), ({"norm": "l3"}, "l2, l1"), ({"iterations": 0}, "iter")])
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        Smooth(**fields)
