"""DECREE: its search against a search written out in NumPy, and what it finds in models whose backdoor is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.encoder import Encoder
from trainers.evaluate.decree import Decree, Inversion, rank_among

SIDE, D = 4, 6


class Linear(nn.Module):
    """Features are A·pixels + b, and `pull` times a fixed direction where the corner is white."""

    def __init__(self, pull: float = 0.0) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.matrix = nn.Parameter(torch.from_numpy(rng("linear").standard_normal((D, SIDE * SIDE * 3)) / 4))
        self.visual, self.pull = nn.Module(), pull
        self.visual.image_size = SIDE
        self.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}

    def encode_image(self, pixels_BCHW):
        flat_BD = pixels_BCHW.permute(0, 2, 3, 1).flatten(1) @ self.matrix.T
        corner_B = pixels_BCHW[:, :, 0, 0].mean(1) / 2  # 1 where it is white
        return flat_BD + self.pull * torch.sigmoid(4 * (corner_B - 0.8))[:, None]

    encode_text = None


def encoder(pull: float = 0.0) -> Encoder:
    return Encoder(Linear(pull), {"embed_dim": D}, lambda captions: None).double()


def pictures(count: int = 12) -> np.ndarray:
    return rng("pictures", count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def reference(matrix: np.ndarray, image: np.ndarray, epochs: int, batch: int, first: float, alike: float, patience: int, seed: int):
    """The search for the linear model, its gradients by hand: (smallest mask, its cosine, steps)."""
    draw = rng(seed, "inversion")
    free = {name: np.arctanh((draw.random(shape) - 0.5) * (2 - 1e-7)) for name, shape in (("m", (SIDE, SIDE)), ("p", (SIDE, SIDE, 3)))}
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in free.items()}
    weight, up, down, step, since, best, kept = first, 0, 0, 0, 0, SIDE * SIDE, (np.ones((SIDE, SIDE)), 1.0)
    history = []
    for epoch in range(epochs):
        lr = 0.5 if epoch < 200 else 0.1 if epoch < 500 else 0.05
        order = draw.permutation(len(image))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            if len(chosen) < 2:
                continue
            m, p = ((np.tanh(free[name]) + 1) / 2 for name in "mp")
            x = image[chosen].astype(float)
            z = np.array([matrix @ (((1 - m[..., None]) * one + m[..., None] * 255 * p) / 255 - 0.5).ravel() / 0.25 for one in x])
            length = np.linalg.norm(z, axis=1, keepdims=True)
            e, n = z / length, len(z)
            cosine = np.mean([e[i] @ e[j] for i in range(n) for j in range(n) if i != j])
            by_e = -2 * (e.sum(0) - e) / (n * (n - 1))
            by_z = (by_e - (by_e * e).sum(1, keepdims=True) * e) / length
            by_x = (by_z @ matrix / 0.25 / 255).reshape(x.shape)
            by_m = (by_x * (255 * p - x)).sum((0, 3)) + 3 * weight
            by_p = (by_x * 255 * m[..., None]).sum(0)
            step, since = step + 1, since + 1
            if cosine > alike and m.sum() < best:
                best, kept, since = m.sum(), (m.copy(), cosine), 0
            up, down = (up + 1, 0) if cosine > alike else (0, down + 1)
            if weight < 1e-7 and up > 10:
                weight, up = first, 0
            elif weight >= 1e-7 and up > 5:
                weight, up = weight * 5, 0
            if down > 5:
                weight, down = weight / 5, 0
            history.append(weight)
            for name, gradient in (("m", by_m), ("p", by_p)):
                gradient = gradient * (1 - np.tanh(free[name]) ** 2) / 2
                one, two = moments[name]
                one[:], two[:] = 0.5 * one + 0.5 * gradient, 0.9 * two + 0.1 * gradient**2
                free[name] = free[name] - lr * (one / (1 - 0.5**step)) / (np.sqrt(two / (1 - 0.9**step)) + 1e-8)
        if cosine > alike and since > patience:
            break
    return *kept, step, history


@pytest.mark.parametrize("fields", [
    {"epochs": 12, "batch_size": 5}, {"epochs": 40, "batch_size": 12, "alike": 0.6, "patience": 3},
    {"epochs": 30, "batch_size": 11, "alike": 0.9, "weight": 1e-2, "seed": 3},
    {"epochs": 100, "batch_size": 4, "alike": 0.999999, "weight": 3e-7},
    {"epochs": 90, "batch_size": 4, "alike": 0.2, "weight": 2e-7, "patience": 1000}, {"epochs": 520, "batch_size": 12, "patience": 10**6},
])
def test_the_search_is_that_of_the_formulas(fields):
    inversion, model, image = Inversion(**fields), encoder(), pictures()
    mask, cosine, steps, history = reference(
        model.model.matrix.detach().numpy(), image, inversion.epochs, inversion.batch_size, inversion.weight, inversion.alike,
        inversion.patience, inversion.seed,
    )  # fmt: skip
    found = inversion.of(model, image)
    assert found.steps == steps and (len(set(history)) > 1 or steps <= 6)
    np.testing.assert_allclose(found.mask_HW, mask, rtol=1e-4, atol=1e-6)
    assert found.cosine == pytest.approx(cosine, rel=1e-6) and found.size == pytest.approx(mask.mean(), rel=1e-5)


def batches(image, size=5):
    for start in range(0, len(image), size):
        at = range(start, min(len(image), start + size))
        yield {"image": image[at.start : at.stop], "key": np.array([f"k{i}" for i in at], object), "label": [0] * len(at)}


def test_a_planted_backdoor_has_a_small_mask_at_its_place():
    audit = Decree(pictures=64, inversion=Inversion(epochs=300, weight=0.05, patience=200))
    clean, planted = (audit.measure(encoder(pull), batches(pictures(64))) for pull in (0.0, 100.0))
    assert clean["decree/mask"] > 5 * planted["decree/mask"] and planted["decree/found"] == 1
    assert np.unravel_index(planted["inverted/mask"].argmax(), (SIDE, SIDE)) == (0, 0)
    assert planted["inverted/pattern"].shape == (SIDE, SIDE, 3) and planted["inverted/pattern"][0, 0].mean() > 200
    assert planted["decree/cosine"] > 0.99


def test_order_and_size_of_batches_change_nothing_and_the_model_stays_as_it_was():
    model = encoder(3.0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit, image = Decree(pictures=9, inversion=Inversion(epochs=5, batch_size=4)), pictures(30)
    one = audit.measure(model, batches(image))
    two = audit.measure(model, reversed(list(batches(image, 7))))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    other = replace(audit, inversion=replace(audit.inversion, seed=1)).measure(model, batches(image))
    assert not np.array_equal(one["inverted/mask"], other["inverted/mask"])
    assert model.training and model.model.matrix.requires_grad and model.model.matrix.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_where_no_mask_is_found_the_whole_picture_is_the_mask():
    found = Decree(inversion=Inversion(epochs=1, alike=0.9999)).measure(encoder(), batches(pictures()))
    assert (found["decree/mask"], found["decree/cosine"], found["decree/found"], found["decree/steps"]) == (1, 1, 0, 1)


def test_it_is_measured_after_the_last_epoch_alone():
    assert not Decree().due(0, 3) and not Decree().due(2, 3) and Decree().due(3, 3) and Decree(every=1).due(2, 3)


def test_a_rank_among_clean_models():
    assert rank_among(0.02, [0.1, 0.2, 0.3]) == (0, 0.25) and rank_among(0.2, [0.1, 0.2, 0.3]) == (2, 0.75)
    assert rank_among(0.1, []) == (0, 1.0)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="at least 2 pictures of different keys; the test set has 1"):
        Decree().measure(encoder(), batches(pictures(1)))
    for fields, words in (({"batch_size": 1}, "at least 2"), ({"alike": 1.0}, "below 1"), ({"epochs": 0}, "epochs")):
        with pytest.raises(InputError, match=words):
            Inversion(**fields)
    broken = encoder()
    broken.model.matrix.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        Decree().measure(broken, batches(pictures()))
