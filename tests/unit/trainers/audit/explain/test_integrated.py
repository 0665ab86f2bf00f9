"""Integrated gradients against closed forms and against captum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.classifier import Classifier
from trainers.audit.explain.integrated import IntegratedGradients, rule


def picture(side: int = 8) -> torch.Tensor:
    return torch.from_numpy(rng("picture", side).random((3, side, side)))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 8, 3, stride=2), nn.GELU()
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 4)).double()


def smooth() -> Classifier:
    model = network()
    return Classifier(lambda x, _: 20 * model(2 * x - 1), 4, dtype=torch.float64)


@pytest.mark.parametrize("how", ["gauss-legendre", "trapezoid"])
@pytest.mark.parametrize("baseline", ["black", "mean", "blurred"])
def test_a_quadratic_answer_has_its_closed_form(how: str, baseline: str) -> None:
    """f = ½xᵀMx with M symmetric: the heat is (x − x⁰) ⊙ M(x + x⁰)/2, which both rules hit exactly."""
    x_CHW = picture(4)
    matrix_DD = torch.from_numpy(rng("matrix").standard_normal((48, 48)))
    matrix_DD = matrix_DD + matrix_DD.T

    def logits(picture_BCHW: torch.Tensor, _: object) -> torch.Tensor:
        flat_BD = picture_BCHW.flatten(1)
        return torch.stack([flat_BD.sum(1), 0.5 * ((flat_BD @ matrix_DD) * flat_BD).sum(1)], 1)

    explainer = IntegratedGradients(rule=how, baseline=baseline, steps=2, batch_size=1)
    start_CHW = explainer.start(x_CHW)
    known_D = (x_CHW - start_CHW).flatten() * (matrix_DD @ (x_CHW + start_CHW).flatten()) / 2
    found = explainer.explain(Classifier(logits, 2, dtype=torch.float64), None, x_CHW, 1, "a")
    np.testing.assert_allclose(found.heat_HW, known_D.reshape(3, 4, 4).sum(0), rtol=1e-9, atol=1e-12)
    assert found.segment_HW is None and found.r2 is None


@pytest.mark.parametrize("answer", ["logit", "probability"])
@pytest.mark.parametrize("how", ["gauss-legendre", "trapezoid"])
def test_completeness(how: str, answer: str) -> None:
    classifier, x_CHW = smooth(), picture()
    of = int(classifier.predict(x_CHW[None], ["a"])[0])

    def value(one_CHW: torch.Tensor) -> float:
        logit_1K = classifier(one_CHW[None], ["a"]).detach()
        return float(logit_1K[0, of] if answer == "logit" else logit_1K.softmax(1)[0, of])

    short = {}
    for baseline in ("black", "mean", "blurred"):
        for steps in (10, 100):
            explainer = IntegratedGradients(rule=how, answer=answer, baseline=baseline, steps=steps)
            change = value(x_CHW) - value(explainer.start(x_CHW))
            short[steps] = abs(explainer.explain(classifier, None, x_CHW, of, "a").heat_HW.sum() - change)
            assert abs(change) > 1e-3
        limit = 1e-9 if how == "gauss-legendre" else 1e-5
        assert short[100] < limit, "the heat adds up to the change of the answer"
        assert how == "gauss-legendre" or short[100] < short[10] / 50, "the trapezoid's error falls with the square of the steps"


def test_rules() -> None:
    for steps in (2, 5, 50):
        for name in ("gauss-legendre", "trapezoid"):
            point_T, weight_T = rule(name, steps)
            assert len(point_T) == steps and weight_T.sum() == pytest.approx(1) and point_T.min() >= 0 and point_T.max() <= 1
    point_T, weight_T = rule("gauss-legendre", 5)
    for power in range(10):
        assert weight_T @ point_T**power == pytest.approx(1 / (power + 1), rel=1e-12), "exact up to degree 2·5 − 1"
    point_T, weight_T = rule("trapezoid", 4)
    np.testing.assert_allclose(weight_T * 3, [0.5, 1, 1, 0.5])
    np.testing.assert_allclose(point_T * 3, [0, 1, 2, 3])


def test_baselines() -> None:
    x_CHW = picture()
    assert (IntegratedGradients(baseline="black").start(x_CHW) == 0).all()
    np.testing.assert_allclose(IntegratedGradients(baseline="mean").start(x_CHW)[:, 3, 4], x_CHW.mean((1, 2)))
    offset_H = np.arange(-3, 4)  # 4 standard deviations of .8 pixels
    kernel_H = np.exp(-(offset_H**2) / (2 * 0.8**2))
    kernel_H /= kernel_H.sum()
    row_H, column_H = (np.clip(at + offset_H, 0, 7) for at in (1, 6))  # beyond the edge its last pixel is repeated
    known_C = np.einsum("chw,h,w->c", x_CHW.numpy()[:, row_H][:, :, column_H], kernel_H, kernel_H)
    np.testing.assert_allclose(IntegratedGradients(baseline="blurred", blur=0.1).start(x_CHW)[:, 1, 6], known_C, rtol=1e-9)


def test_the_batch_changes_nothing_and_wrong_fields_are_refused() -> None:
    classifier, explainer = smooth(), IntegratedGradients(steps=20)
    found_HW = explainer.explain(classifier, None, picture(), 0, "a").heat_HW
    for batch in (1, 7):
        again_HW = replace(explainer, batch_size=batch).explain(classifier, None, picture(), 0, "a").heat_HW
        np.testing.assert_allclose(again_HW, found_HW, rtol=1e-9, atol=1e-12)
    with torch.no_grad():  # an audit may have switched gradients off
        np.testing.assert_allclose(explainer.explain(classifier, None, picture(), 0, "a").heat_HW, found_HW, rtol=1e-12)
    with pytest.raises(InputError, match="IntegratedGradients.steps"):
        IntegratedGradients(steps=1)
    with pytest.raises(FloatingPointError, match="not finite"):
        explainer.explain(Classifier(lambda x, _: (x.mean((2, 3)) - 9).sqrt(), 3, dtype=torch.float64), None, picture(), 0, "a")


@pytest.mark.parametrize(("how", "theirs"), [("gauss-legendre", "gausslegendre"), ("trapezoid", "riemann_trapezoid")])
@pytest.mark.parametrize("baseline", ["black", "mean", "blurred"])
@pytest.mark.parametrize("answer", ["logit", "probability"])
def test_oracle_captum_finds_the_same_heat(how: str, theirs: str, baseline: str, answer: str) -> None:
    captum = pytest.importorskip("captum.attr")
    classifier, x_CHW = smooth(), picture()
    explainer = IntegratedGradients(rule=how, baseline=baseline, answer=answer, steps=12)

    def forward(picture_BCHW: torch.Tensor) -> torch.Tensor:
        logit_BK = classifier(picture_BCHW, ["a"] * len(picture_BCHW))
        return logit_BK if answer == "logit" else logit_BK.softmax(1)

    by_captum = captum.IntegratedGradients(forward)
    known_1CHW = by_captum.attribute(x_CHW[None], explainer.start(x_CHW)[None], target=2, n_steps=12, method=theirs)
    known_HW = known_1CHW[0].sum(0).detach() * (12 / 11 if how == "trapezoid" else 1)  # captum's trapezoid weights add up to 11/12
    found = explainer.explain(classifier, None, x_CHW, 2, "a")
    np.testing.assert_allclose(found.heat_HW, known_HW, rtol=1e-5, atol=1e-9)
