"""LIME against arithmetic written out, and against the packages lime and captum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.experiment.fingerprint import fingerprint
from tests.unit.trainers.audit.explain import toys
from trainers.audit.classifier import Classifier
from trainers.audit.explain.lime import LIME, covered, k_lasso, kernel, ridge
from trainers.audit.explain.segments import grid, means, slic


def case(samples: int = 200, segments: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(masks, answers, weights) with some curvature and noise."""
    draw = rng("case", samples, segments)
    on_NS = draw.integers(0, 2, (samples, segments)).astype(np.uint8)
    on_NS[0], on_NS[1] = 1, 0
    answer_N = 1 / (1 + np.exp(on_NS @ draw.standard_normal(segments))) + 0.05 * draw.standard_normal(samples)
    return on_NS, answer_N, kernel(on_NS, 0.25)


def picture(key: str = "0003") -> torch.Tensor:
    return torch.from_numpy(toys.pictures(5).triggered_NHWC[int(key)] / 255).permute(2, 0, 1)


def test_the_kernel_is_that_of_the_cosine_distance() -> None:
    on_NS, _, weight_N = case()
    for row, weight in zip(on_NS.astype(float), weight_N):
        length = np.sqrt(row @ row)
        distance = 1.0 if length == 0 else 1 - row.sum() / (length * np.sqrt(row.size))
        assert weight == pytest.approx(np.exp(-(distance**2) / (2 * 0.25**2)), rel=1e-12)
        assert weight == pytest.approx(np.sqrt(np.exp(-(distance**2) / 0.25**2)), rel=1e-12), "the package's form"


@pytest.mark.parametrize("penalty", [1.0, 0.3, 0.0])
def test_ridge_is_at_the_minimum_of_its_loss(penalty: float) -> None:
    on_NS, y_N, weight_N = case()
    fit = ridge(on_NS.astype(float), y_N, weight_N, penalty)
    design_NM = np.hstack([on_NS.astype(float), np.ones((len(y_N), 1))])
    damping_MM = penalty * np.diag([1.0] * on_NS.shape[1] + [0.0])
    known_M = np.linalg.inv(design_NM.T @ np.diag(weight_N) @ design_NM + damping_MM) @ design_NM.T @ (weight_N * y_N)
    np.testing.assert_allclose([*fit.coefficient_S, fit.intercept], known_M, rtol=1e-9, atol=1e-12)
    left_N, mean = y_N - design_NM @ known_M, (weight_N * y_N).sum() / weight_N.sum()
    assert fit.r2 == pytest.approx(1 - (weight_N * left_N**2).sum() / (weight_N * (y_N - mean) ** 2).sum(), rel=1e-9)


def test_least_squares_of_a_segment_that_is_always_seen_gives_it_nothing() -> None:
    on_NS, y_N, weight_N = case()
    on_NS[:, 4] = 1
    fit = ridge(on_NS.astype(float), y_N, weight_N, 0.0)
    others = ridge(np.delete(on_NS, 4, 1).astype(float), y_N, weight_N, 0.0)
    assert fit.coefficient_S[4] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(np.delete(fit.coefficient_S, 4), others.coefficient_S, rtol=1e-9)


def test_k_lasso_finds_the_segments_that_matter_and_fits_them_by_least_squares() -> None:
    on_NS, _, weight_N = case(400, 20)
    known_S = np.zeros(20)
    known_S[[3, 8, 15]] = 1.0, -0.7, 0.5
    fit = k_lasso(on_NS.astype(float), 2 + on_NS @ known_S, weight_N, 3)
    np.testing.assert_allclose(fit.coefficient_S, known_S, atol=1e-10)
    assert fit.intercept == pytest.approx(2) and fit.r2 == pytest.approx(1)
    two = k_lasso(on_NS.astype(float), 2 + on_NS @ known_S, weight_N, 2)
    assert set(np.flatnonzero(two.coefficient_S)) == {3, 8} and two.r2 < 1


def test_covered_pictures_pixel_by_pixel() -> None:
    lime = LIME(across=3, samples=7)
    picture_CHW = picture()
    segment_HW = lime.segment(picture_CHW)
    on_NS = lime.masks(9, "a")
    fill_CHW = means(picture_CHW.numpy(), segment_HW)
    seen_HWC, fill_HWC = picture_CHW.permute(1, 2, 0), torch.from_numpy(fill_CHW).permute(1, 2, 0)
    at_M = torch.from_numpy(segment_HW).flatten()[:, None].expand(-1, 3).flatten()
    found = covered(seen_HWC, fill_HWC, at_M, torch.from_numpy(on_NS)).permute(0, 3, 1, 2)
    for n, h, w in itertools.product(range(7), range(0, 32, 5), range(0, 32, 3)):
        segment = segment_HW[h, w]
        known_C = picture_CHW[:, h, w] if on_NS[n, segment] else picture_CHW[:, segment_HW == segment].mean(1)
        np.testing.assert_allclose(found[n, :, h, w], known_C, rtol=1e-12)


def test_masks_are_fair_depend_on_the_key_and_first_see_all() -> None:
    on_NS = LIME(samples=4000).masks(20, "a")
    assert (on_NS[0] == 1).all() and set(np.unique(on_NS)) == {0, 1}
    assert on_NS[1:].mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(3999 * 20))
    assert abs(np.corrcoef(on_NS[1:].T) - np.eye(20)).max() < 5 / np.sqrt(3999)
    assert (LIME(samples=4000).masks(20, "a") == on_NS).all()
    assert (LIME(samples=4000).masks(20, "b") != on_NS).any() and (LIME(samples=4000, seed=1).masks(20, "a") != on_NS).any()


def test_segments() -> None:
    assert (grid(4, 4, 2) == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]).all()
    sizes = np.bincount(grid(30, 33, 8).ravel())
    assert len(sizes) == 64 and sizes.min() >= 3 * 4 and sizes.max() <= 4 * 5
    assert grid(3, 16, 8).max() == 3 * 8 - 1, "no empty segments"
    image_HWC = np.zeros((32, 32, 3))
    image_HWC[:, 16:] = (1, 0, 0)
    segment_HW = slic(image_HWC, 16)
    assert 6 <= segment_HW.max() + 1 <= 32 and set(np.unique(segment_HW)) == set(range(segment_HW.max() + 1))
    assert not set(np.unique(segment_HW[:, :16])) & set(np.unique(segment_HW[:, 16:])), "no segment crosses the edge of colours"


@pytest.mark.parametrize("answer", ["probability", "logit"])
def test_the_answers_are_those_of_the_class_whatever_the_batch(answer: str) -> None:
    lime = LIME(samples=50, answer=answer, across=4, batch_size=50)
    classifier, picture_CHW = toys.backdoored(), picture()
    found = lime.explain(classifier, None, picture_CHW, 2, "a")
    assert classifier.queries == 50
    for batch in (1, 7, None):
        again = replace(lime, batch_size=batch).explain(classifier, None, picture_CHW, 2, "a")
        np.testing.assert_allclose(again.heat_HW, found.heat_HW, rtol=1e-9, atol=1e-12)
    segment_HW = lime.segment(picture_CHW)
    logit_1K = classifier(picture_CHW[None], ["a"])
    known = logit_1K[0, 2] if answer == "logit" else logit_1K.softmax(1)[0, 2]
    first = lime.answers(classifier, picture_CHW, segment_HW, lime.masks(16, "a"), 2, "a")[0]
    assert first == pytest.approx(float(known), rel=1e-9), "the first sample is the picture"
    assert fingerprint(replace(lime, batch_size=9)) == fingerprint(lime) != fingerprint(replace(lime, samples=51))


def test_a_linear_logit_is_explained_exactly() -> None:
    """Without penalty the coefficients are the segments' own parts of the logit, less the fill's."""
    weight_CHW = torch.from_numpy(rng("linear").standard_normal((3, 32, 32)))
    classifier = Classifier(lambda x, _: torch.stack([0 * x.sum((1, 2, 3)), (x * weight_CHW).sum((1, 2, 3))], 1), 2, dtype=torch.float64)
    black = LIME(across=4, samples=100, fill=0.0, penalty=0.0, answer="logit")
    for lime in (black, replace(black, fill=0.25, segments="slic")):
        found = lime.explain(classifier, None, picture(), 1, "a")
        part_HW = (weight_CHW * (picture() - float(lime.fill))).sum(0).numpy()
        known_S = np.bincount(found.segment_HW.ravel(), part_HW.ravel())
        np.testing.assert_allclose(found.heat_HW, known_S[found.segment_HW], rtol=1e-9)
        assert found.r2 == pytest.approx(1)


def test_a_classifier_that_always_answers_the_same_has_no_heat() -> None:
    classifier = Classifier(lambda x, _: 3 + 1e-9 * x.mean((2, 3)), 3, dtype=torch.float64)
    for fit in ("ridge", "k-lasso"):
        found = LIME(samples=20, fit=fit, answer="logit").explain(classifier, None, picture(), 1, "a")
        assert (found.heat_HW == 0).all() and np.isnan(found.r2)


def test_refusals() -> None:
    broken = Classifier(lambda x, _: x.mean((2, 3)) / 0, 3, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="not finite"):
        LIME(samples=5).explain(broken, None, picture(), 1, "a")
    for wrong in ({"fill": 2.0}, {"fill": "blue"}, {"samples": 1}, {"across": 0}, {"segments": "quickshift"}, {"width": 0}):
        with pytest.raises(InputError, match=f"LIME.{next(iter(wrong))}"):
            LIME(**wrong)
    assert LIME().label == "LIME grid 8" and LIME(fit="k-lasso", segments="slic").label == "LIME 6-LASSO slic 8"
    assert LIME(fill=0.5, answer="logit").label == "LIME grid 8 fill 0.5 logit"


@pytest.mark.parametrize("fit", ["ridge", "k-lasso"])
def test_oracle_the_package_lime_fits_the_same(fit: str) -> None:
    lime_base = pytest.importorskip("lime.lime_base")
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import pairwise_distances

    on_NS, answer_N, _ = case(300, 16)
    base = lime_base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)), random_state=0)
    distance_N = pairwise_distances(on_NS, on_NS[:1], metric="cosine").ravel()
    how = ("auto", 16, None) if fit == "ridge" else ("lasso_path", 5, LinearRegression())
    intercept, pairs, r2, _ = base.explain_instance_with_data(on_NS, answer_N[:, None], distance_N, 0, how[1], how[0], how[2])
    known_S = np.zeros(16)
    for at, value in pairs:
        known_S[at] = value
    found = LIME(fit=fit, kept=5).fitted(on_NS, answer_N)
    assert len(pairs) == how[1]
    np.testing.assert_allclose(found.coefficient_S, known_S, rtol=0, atol=1e-9)
    assert (found.intercept, found.r2) == (pytest.approx(intercept, abs=1e-9), pytest.approx(r2, abs=1e-9))


@pytest.mark.parametrize("segments", ["grid", "slic"])
def test_oracle_the_package_lime_explains_a_picture_alike(segments: str) -> None:
    lime_image = pytest.importorskip("lime.lime_image")
    lime = LIME(segments=segments, samples=150)
    classifier, picture_CHW = toys.backdoored(), picture()
    segment_HW = lime.segment(picture_CHW)
    count = segment_HW.max() + 1

    def classify(image_BHWC: np.ndarray) -> np.ndarray:
        return classifier(torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), [""] * len(image_BHWC)).softmax(1).numpy()

    theirs = lime_image.LimeImageExplainer(random_state=3).explain_instance(
        picture_CHW.permute(1, 2, 0).numpy(), classify, labels=(2,), top_labels=None, num_samples=150, random_seed=0,
        segmentation_fn=lambda _: segment_HW,
    )  # fmt: skip
    on_NS = np.random.RandomState(3).randint(0, 2, 150 * count).reshape(150, count).astype(np.uint8)
    on_NS[0] = 1
    fit = lime.fitted(on_NS, lime.answers(classifier, picture_CHW, segment_HW, on_NS, 2, "a"))
    np.testing.assert_allclose(fit.coefficient_S, [dict(theirs.local_exp[2])[at] for at in range(count)], rtol=0, atol=1e-9)
    assert fit.r2 == pytest.approx(theirs.score, abs=1e-9) and np.abs(fit.coefficient_S).max() > 0.05


def test_oracle_captum_explains_a_picture_alike() -> None:
    captum = pytest.importorskip("captum.attr")
    from captum._utils.models.linear_model import SkLearnRidge
    from scipy.spatial.distance import cosine

    lime = LIME(across=4, samples=120, fill=0.5)
    classifier, picture_CHW = toys.backdoored(), picture()
    segment_HW, on_NS = lime.segment(picture_CHW), lime.masks(16, "a")
    rows = iter(on_NS)

    def draw(*_: object, **__: object) -> torch.Tensor:
        return torch.from_numpy(next(rows).astype(np.float64))[None]

    def near(whole: object, changed: object, on_1S: torch.Tensor, **_: object) -> torch.Tensor:
        distance = cosine(on_1S[0].numpy(), np.ones(16))
        return torch.tensor([np.exp(-(distance**2) / (2 * 0.25**2))], dtype=torch.float64)

    def forward(picture_BCHW: torch.Tensor) -> torch.Tensor:
        return classifier(picture_BCHW, [""] * len(picture_BCHW)).softmax(1)

    explainer = captum.Lime(forward, SkLearnRidge(alpha=1.0, fit_intercept=True), near, draw)
    theirs_1S = explainer.attribute(picture_CHW[None], target=2, baselines=0.5, feature_mask=torch.from_numpy(segment_HW)[None, None],
                                    n_samples=120, return_input_shape=False)
    ours = lime.explain(classifier, None, picture_CHW, 2, "a")
    np.testing.assert_allclose([ours.heat_HW[segment_HW == at][0] for at in range(16)], theirs_1S[0].numpy(), rtol=0, atol=1e-6)
    assert np.ptp(theirs_1S.numpy()) > 0.1
