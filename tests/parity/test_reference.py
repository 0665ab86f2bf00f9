"""Losses, their gradients, and five optimiser steps against a float64 reference written from the formulas in numpy.

The reference shares no code with the project: its own softmax, its own derivatives, its own AdamW, its own schedule.
"""

import math

import numpy as np
import pytest
import torch

from datasets.seeding import rng
from tests.parity.toys import ToyFeed, vit
from trainers.batch import to_device
from trainers.loop import fit
from trainers.methods.base import Run
from trainers.methods.finetune import CleanCLIP
from trainers.objectives.clustering import Clustering
from trainers.objectives.contrastive import Contrastive
from trainers.objectives.siglip import SigLIP
from trainers.schedule import Training


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(q: np.ndarray, k: np.ndarray, s: float) -> tuple[float, np.ndarray, np.ndarray, float]:
    """CE(s·Q·Kᵀ) with target i for row i; d/dQ, d/dK, d/ds."""
    n = len(q)
    p = softmax(s * q @ k.T)
    loss = -np.mean(np.log(p[np.arange(n), np.arange(n)]))
    d = (p - np.eye(n)) / n
    return loss, s * d @ k, s * d.T @ q, float((d * (q @ k.T)).sum())


def contrastive(f: dict[str, np.ndarray], s: float, a: float, b: float) -> tuple[float, dict[str, np.ndarray], float]:
    """a·½[CE(IT)+CE(TI)] + b·½[CE(II')+CE(TT')] with its derivatives by the features and by s."""
    total, ds = 0.0, 0.0
    d = {name: np.zeros_like(value) for name, value in f.items()}
    for weight, q, k in ((a, "image", "text"), (a, "text", "image"), (b, "image", "image_aug"), (b, "text", "text_aug")):
        loss, dq, dk, dscale = cross_entropy(f[q], f[k], s)
        total += weight / 2 * loss
        d[q] += weight / 2 * dq
        d[k] += weight / 2 * dk
        ds += weight / 2 * dscale
    return total, d, ds


def siglip(f: dict[str, np.ndarray], s: float, bias: float) -> tuple[float, dict[str, np.ndarray], float, float]:
    """−mean over pairs of log σ(z(s·IᵀT + b)), with its derivatives by the features, by s and by b."""
    i, t = f["image"], f["text"]
    n = len(i)
    z = 2 * np.eye(n) - 1
    x = z * (s * i @ t.T + bias)
    loss = np.mean(np.log1p(np.exp(-x)))
    d = -z / (1 + np.exp(x)) / n**2
    return loss, {"image": s * d @ t, "text": s * d.T @ i}, float((d * (i @ t.T)).sum()), float(d.sum())


def classified(image: np.ndarray, w: np.ndarray, b: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """CE of the linear head's logits against the targets; d/dI, d/dW, d/db."""
    n = len(image)
    p = softmax(image @ w.T + b)
    d = (p - np.eye(len(w))[target]) / n
    return -np.mean(np.log(p[np.arange(n), target])), d @ w, d.T @ image, d.sum(0)


def features() -> dict[str, np.ndarray]:
    draw = rng("reference features")
    raw = {name: draw.normal(size=(7, 5)) for name in ("image", "text", "image_aug", "text_aug")}
    return {name: value / np.linalg.norm(value, axis=1, keepdims=True) for name, value in raw.items()}


def leaves(scale: float, bias: float) -> dict[str, torch.Tensor]:
    values = {**features(), "logit_scale": np.float64(scale), "logit_bias": np.float64(bias)}
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0, 1), (1, 1), (0.3, 4)])
def test_contrastive(a, b):
    f = leaves(14.3, 0)
    losses = Contrastive(clip_weight=a, inmodal_weight=b).loss(lambda _: f, None)
    losses["loss"].backward()
    loss, d, ds = contrastive(features(), 14.3, a, b)
    assert losses["loss"].item() == pytest.approx(loss, rel=1e-13)
    for name, expected in d.items():
        found = np.zeros_like(expected) if f[name].grad is None else f[name].grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)
    assert f["logit_scale"].grad.item() == pytest.approx(ds, rel=1e-11)
    assert set(losses) == {"loss"} | ({"mmcl"} if a else set()) | ({"inmodal"} if b else set())


def test_in_modal_goes_one_way_only():
    f = leaves(5.0, 0)
    found = Contrastive(clip_weight=0, inmodal_weight=1).loss(lambda _: f, None)["loss"].item()
    n = features()
    one_way = (cross_entropy(n["image"], n["image_aug"], 5)[0] + cross_entropy(n["text"], n["text_aug"], 5)[0]) / 2
    other_way = (cross_entropy(n["image_aug"], n["image"], 5)[0] + cross_entropy(n["text_aug"], n["text"], 5)[0]) / 2
    assert found == pytest.approx(one_way, rel=1e-13) and abs(one_way - other_way) > 1e-3


@pytest.mark.parametrize("bias", [None, -3.0])
def test_siglip(bias):
    f = leaves(9.0, bias or 0)
    losses = SigLIP(weight=0.1, bias=bias is not None).loss(lambda _: f, None)
    losses["loss"].backward()
    loss, d, ds, db = siglip(features(), 9.0, bias or 0)
    assert losses["loss"].item() == pytest.approx(0.1 * loss, rel=1e-12)
    assert losses["siglip"].item() == pytest.approx(loss, rel=1e-12)
    for name, expected in d.items():
        np.testing.assert_allclose(f[name].grad.numpy(), 0.1 * expected, rtol=1e-10, atol=1e-16)
    assert f["logit_scale"].grad.item() == pytest.approx(0.1 * ds, rel=1e-11)
    if bias is not None:
        assert f["logit_bias"].grad.item() == pytest.approx(0.1 * db, rel=1e-11)
    per_sample = SigLIP(per="samples", bias=bias is not None).loss(lambda _: f, None)["loss"].item()
    assert per_sample == pytest.approx(7 * loss, rel=1e-12)


@pytest.mark.parametrize(("a", "b", "c"), [(1, 1, 5), (0, 0, 1), (0, 2, 0.5), (0.3, 0, 7)])
def test_deep_clustering(a, b, c):
    draw = rng("reference head")
    head = {"w": draw.normal(size=(4, 5)), "b": draw.normal(size=4)}
    target = draw.integers(4, size=7)
    f = leaves(6.5, 0)
    own = {name: torch.tensor(value, requires_grad=True) for name, value in head.items()}
    seen = {**f, "class_logits": f["image"] @ own["w"].T + own["b"]}
    objective = Clustering(clip_weight=a, inmodal_weight=b, deep_clustering_weight=c)
    losses = objective.loss(lambda _: seen, {"target": torch.from_numpy(target)})
    losses["loss"].backward()

    loss, d, ds = contrastive(features(), 6.5, a, b)
    ce, di, dw, db = classified(features()["image"], head["w"], head["b"], target)
    d["image"] = d["image"] + c * di
    assert losses["deep_clustering"].item() == pytest.approx(ce, rel=1e-13)
    assert losses["loss"].item() == pytest.approx(loss + c * ce, rel=1e-13)
    for name, expected in d.items():
        found = np.zeros_like(expected) if f[name].grad is None else f[name].grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(own["w"].grad.numpy(), c * dw, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(own["b"].grad.numpy(), c * db, rtol=1e-11, atol=1e-15)
    assert (0 if f["logit_scale"].grad is None else f["logit_scale"].grad.item()) == pytest.approx(ds, rel=1e-11)
    assert set(losses) == {"loss", "deep_clustering"} | ({"mmcl"} if a else set()) | ({"inmodal"} if b else set())


def test_a_cleanings_first_step_decays_and_warms_up_as_the_formula_says(tmp_path):
    """Two cleanings that differ in weight decay alone: after one step the weights differ by rate·(d₂ − d₁)·w where decay acts."""

    def after_a_step(decay: float) -> dict[str, np.ndarray]:
        encoder = vit().double()
        training = Training(epochs=4, batch_size=8, lr=0.05, weight_decay=decay, warmup_steps=5)
        feed = ToyFeed(batch_size=8, steps=8)
        folder = tmp_path / str(decay)
        train = lambda m, objective, phase: fit(m, objective, training, feed, folder)  # noqa: E731
        feed.stop_at = 1
        with pytest.raises(KeyboardInterrupt):
            CleanCLIP().train(encoder, Run(trainer=train, training=training, fresh=vit))
        return {name: p.detach().numpy().copy() for name, p in encoder.model.named_parameters()}

    before = {name: p.detach().double().numpy() for name, p in vit().model.named_parameters()}
    small, large = after_a_step(0.1), after_a_step(20.0)
    rate = 0.05 / 5  # the warm-up's first step, counted from this stage's own beginning
    decayed = [name for name, w in before.items() if w.ndim >= 2]
    assert 0 < len(decayed) < len(before)
    for name, w in before.items():
        expected = rate * (20.0 - 0.1) * w if name in decayed else np.zeros_like(w)
        np.testing.assert_allclose(small[name] - large[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_five_steps(tmp_path):
    """`fit` against: numpy's loss gradient, pulled through the model, and AdamW, decay, warm-up, cosine and clamp by hand."""
    peak, decay, warmup, steps = 3e-2, 0.3, 2, 5
    feed = ToyFeed(batch_size=8, steps=steps)
    ours = vit().double()
    training = Training(epochs=1, batch_size=8, lr=peak, weight_decay=decay, warmup_steps=warmup, betas=(0.9, 0.98), eps=1e-6)
    fit(ours, Contrastive(clip_weight=1, inmodal_weight=0.5), training, feed, tmp_path)

    model = vit().double().train()
    parameters = dict(model.model.named_parameters())
    m = {name: np.zeros(p.shape) for name, p in parameters.items()}
    v = {name: np.zeros(p.shape) for name, p in parameters.items()}
    for t in range(steps):
        model.zero_grad()
        out = model(to_device(feed.batch(t), model, True))
        names = ("image", "text", "image_aug", "text_aug")
        values = {name: out[name].detach().numpy() for name in names}
        _, d, ds = contrastive(values, math.exp(parameters["logit_scale"].item()), 1, 0.5)
        sum((out[name] * torch.from_numpy(d[name])).sum() for name in names).backward()
        parameters["logit_scale"].grad = torch.tensor(ds * math.exp(parameters["logit_scale"].item()), dtype=torch.float64)
        rate = peak * (t + 1) / warmup if t < warmup else peak / 2 * (1 + math.cos(math.pi * (t - warmup) / (steps - warmup)))
        for name, p in parameters.items():
            g = p.grad.numpy()
            w = p.detach().numpy().copy()
            shrinks = w.ndim >= 2
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.98 * v[name] + 0.02 * g * g
            m_hat, v_hat = m[name] / (1 - 0.9 ** (t + 1)), v[name] / (1 - 0.98 ** (t + 1))
            w = w * (1 - rate * decay * shrinks) - rate * m_hat / (np.sqrt(v_hat) + 1e-6)
            if name == "logit_scale":
                w = np.clip(w, 0, math.log(100))
            with torch.no_grad():
                p.copy_(torch.from_numpy(np.asarray(w)))
    for name, p in ours.model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), parameters[name].detach().numpy(), rtol=1e-8, atol=1e-11, err_msg=name)
