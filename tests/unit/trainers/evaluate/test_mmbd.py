"""MM-BD: its ascent and its p-value against the formulas, and a class that a planted direction lifts above the others."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import digamma, gammainc
from torch import nn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.encoder import Encoder
from trainers.evaluate.base import Material
from trainers.evaluate.mmbd import MMBD, p_value

SIDE, D = 3, 8
NAMES = tuple(f"class {i}" for i in range(9))


class Linear(nn.Module):
    """Features are A·pixels; the text of class i is near the i-th axis."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.matrix = nn.Parameter(torch.from_numpy(rng("mmbd").standard_normal((D, SIDE * SIDE * 3))))
        self.visual = nn.Module()
        self.visual.image_size = SIDE
        self.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}

    def encode_image(self, pixels_BCHW):
        return pixels_BCHW.permute(0, 2, 3, 1).flatten(1) @ self.matrix.T

    def encode_text(self, token_BL):
        return torch.stack([torch.from_numpy(rng("text", int(token)).standard_normal(D)) for token in token_BL[:, 0]])


def encoder() -> Encoder:
    model = Encoder(Linear(), {"embed_dim": D}, lambda captions: torch.tensor([[int(text.split()[-1])] for text in captions])).double()
    model.model.visual.image_size = SIDE
    return model


def measured(audit: MMBD, names=NAMES, model=None):
    material = Material(test=list, pairs=None, recipe=None, class_names=names, templates=("a {}",))
    return audit.measure(model or encoder(), audit.open(material))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(audit: MMBD, number: int) -> tuple[float, int]:
    """(margin, steps) of a class, with gradients by hand."""
    matrix = encoder().model.matrix.detach().numpy()
    head = unit(np.stack([rng("text", i).standard_normal(D) for i in range(len(NAMES))]))
    x, before = rng(audit.seed, "mm-bd", number).random((audit.starts, SIDE, SIDE, 3)), None
    for step in range(audit.steps + 1):
        z = ((np.clip(x, 0, 1) - 0.5) / 0.25).reshape(len(x), -1) @ matrix.T
        length = np.linalg.norm(z, axis=1, keepdims=True)
        e = z / length
        score = 100 * e @ head.T
        rival = np.where(np.arange(len(head)) == number, -np.inf, score).argmax(1)
        margin = score[:, number] - score[np.arange(len(x)), rival]
        total = margin.sum()
        if step == audit.steps or (before is not None and abs(total - before) < audit.tolerance * abs(before)):
            break
        by_e = 100 * (head[number] - head[rival])
        by_x = ((by_e - (by_e * e).sum(1, keepdims=True) * e) / length @ matrix / 0.25).reshape(x.shape)
        x, before = x + audit.lr * by_x * ((x >= 0) & (x <= 1)), total
    return margin.max(), step


@pytest.mark.parametrize("fields", [{"steps": 12}, {"steps": 300, "tolerance": 1e-2}, {"steps": 1, "lr": 0.1, "seed": 5}])
def test_the_ascent_is_that_of_the_formulas(fields):
    audit = MMBD(starts=4, **fields)
    found = measured(audit)
    expected = [reference(audit, number) for number in range(len(NAMES))]
    np.testing.assert_allclose(found["mmbd/margins"], [margin for margin, _ in expected], rtol=1e-9)
    assert found["mmbd/class"] == np.argmax([margin for margin, _ in expected]) and found["mmbd/classes"] == len(NAMES)
    assert found["mmbd/margin"] == found["mmbd/margins"].max()
    if "tolerance" in fields:
        assert max(step for _, step in expected) < 300


def test_the_p_value_is_that_of_the_fitted_law():
    margins = np.array([12.0, 9.5, 14.2, 11.1, 30.0, 10.3, 8.8])
    null = np.delete(margins, 4)
    wanted, shape = math.log(null.mean()) - np.log(null).mean(), 1.0
    low, high = 1e-3, 1e5  # maximum likelihood: ln a − ψ(a) = ln mean − mean ln, which falls in a
    for _ in range(200):
        shape = (low + high) / 2
        low, high = (shape, high) if math.log(shape) - digamma(shape) > wanted else (low, shape)
    expected = 1 - gammainc(shape, 30.0 * shape / null.mean()) ** len(margins)
    assert p_value(margins) == pytest.approx(expected, rel=1e-5) and p_value(margins) < 1e-3
    assert p_value(np.array([12.0, 9.5, 14.2, 11.1, 14.3, 10.3, 8.8])) > 0.2
    assert p_value(np.array([1.0, -0.1, 3.0])) is None
    assert p_value(np.array([2.0, 2.0, 2.0])) == 1 and p_value(np.array([2.0, 2.0, 5.0])) == 0


@pytest.mark.parametrize(("classes", "alarms"), [(8, 0.30), (10, 0.27), (30, 0.14), (100, 0.08)])
def test_p_is_too_small_where_no_class_stands_out_as_the_documents_say(classes, alarms):
    values = [p_value(rng("null", seed, classes).gamma(8.0, 2.0, classes)) for seed in range(1000)]
    assert np.mean(np.array(values) < 0.05) == pytest.approx(alarms, abs=0.02)


def test_classes_are_chosen_by_their_numbers_and_those_at_risk_are_in():
    audit = MMBD(starts=2, steps=2, classes=4)
    chosen = audit.audited(NAMES)
    assert len(chosen) == 4 and chosen == sorted(chosen) and chosen != replace(audit, seed=3).audited(NAMES)
    left = next(i for i in range(9) if i not in chosen)
    assert left in replace(audit, at_risk=(NAMES[left],)).audited(NAMES)
    whole, part = measured(replace(audit, classes=9)), measured(audit)
    assert part["mmbd/audited"].tolist() == chosen
    np.testing.assert_array_equal(part["mmbd/margins"], whole["mmbd/margins"][chosen])


def test_the_model_stays_as_it_was():
    model = encoder().train()
    before = model.model.matrix.clone()
    measured(MMBD(starts=2, steps=3), model=model)
    assert model.training and torch.equal(before, model.model.matrix) and model.model.matrix.grad is None
    assert model.model.matrix.requires_grad


def test_bad_input_is_named():
    with pytest.raises(InputError, match="needs at least 3 classes, and there are 2"):
        measured(MMBD(), names=NAMES[:2])
    with pytest.raises(InputError, match="at_risk names 'pear', which is not among the 9 classes"):
        measured(MMBD(at_risk=("pear",)))
    with pytest.raises(InputError, match="MMBD.at_risk names 4 classes, but MMBD.classes is 3: raise it"):
        MMBD(classes=3, at_risk=NAMES[:4])
    for fields, words in (({"starts": 0}, "starts"), ({"classes": 2}, "at least 3"), ({"lr": 0}, "lr")):
        with pytest.raises(InputError, match=words):
            MMBD(**fields)
    broken = encoder()
    broken.model.matrix.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite"):
        measured(MMBD(starts=2), model=broken)
