"""Every attack against the closed form of a linear classifier, without and with the box of pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from datasets.errors import InputError
from orchestrator.experiment.fingerprint import encode, fingerprint
from tests.unit.trainers.audit.attacks.cases import Linear, attacked, changes, fooled
from trainers.audit.attacks.apgd import APGD, checkpoints
from trainers.audit.attacks.auto_attack import AutoAttack
from trainers.audit.attacks.base import Attack, Norm, margin
from trainers.audit.attacks.carlini_wagner import CarliniWagner
from trainers.audit.attacks.deepfool import DeepFool
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN, robust_accuracy
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.plane import onto_plane
from trainers.audit.attacks.square import Square
from trainers.audit.classifier import Classifier

NORMS: tuple[Norm, ...] = ("linf", "l2")
CASE, FEW = Linear(), Linear(count=5)
each_norm = pytest.mark.parametrize("norm", NORMS)


def bounded(eps: float, norm: Norm) -> list[Attack]:
    shared = {"eps": eps, "norm": norm}
    return [
        FGSM(loss="margin", **shared), IFGSM(**shared), PGD(**shared), PGD(loss="margin", restarts=2, stop=False, **shared),
        APGD(**shared), APGD(loss="dlr", **shared), APGD(loss="targeted_dlr", steps=40, **shared),
        AutoAttack(queries=20, steps=30, **shared),
    ]  # fmt: skip


@each_norm
def test_robust_accuracy_is_that_of_the_closed_form(norm: Norm) -> None:
    eps = CASE.middle(norm)
    standing = int((eps < CASE.distances(norm)).sum())
    assert 10 < standing < 30
    for attack in bounded(eps, norm):
        found = attacked(attack, CASE)
        assert abs(int((~fooled(found.picture_BCHW, CASE)).sum()) - standing) <= 1, attack
        assert changes(found, CASE, norm).max() <= eps * (1 + 1e-9), attack


@each_norm
def test_small_and_large_eps(norm: Norm) -> None:
    distance_N = CASE.distances(norm)
    for attack in (*bounded(0.0, norm), Square(eps=0.0, norm=norm, queries=5)):
        found = attacked(attack, FEW)
        assert torch.equal(found.picture_BCHW, FEW.pictures) and not fooled(found.picture_BCHW, FEW).any(), attack
    attack = AutoAttack(eps=1.01 * distance_N.max(), norm=norm, steps=30)
    assert fooled(attacked(attack, CASE).picture_BCHW, CASE).all(), "the cross-entropy alone may climb to another class than the nearest"


def test_fgsm_is_its_formula() -> None:
    """∇ₓ of the cross-entropy is W(softmax(z) − 1_y)."""
    share_NK = np.exp(CASE.logit_NK - CASE.logit_NK.max(1, keepdims=True))
    share_NK /= share_NK.sum(1, keepdims=True)
    slope_NM = (share_NK - np.eye(CASE.classes)[CASE.label_N]) @ CASE.weight_MK.T
    linf, l2 = (attacked(FGSM(eps=0.03, norm=norm), CASE).picture_BCHW.flatten(1).numpy() for norm in NORMS)
    assert np.allclose(linf, CASE.picture_NM + 0.03 * np.sign(slope_NM), rtol=0, atol=1e-14)
    assert np.allclose(l2, CASE.picture_NM + 0.03 * slope_NM / np.linalg.norm(slope_NM, axis=1, keepdims=True), rtol=0, atol=1e-14)


def test_fgsm_towards_a_class_is_its_formula() -> None:
    order_NK = np.argsort(-CASE.logit_NK, axis=1)
    ways_KM, rows = CASE.weight_MK.T, np.arange(len(CASE.label_N))
    for towards, target_N in (("likeliest", order_NK[:, 1]), ("least_likely", order_NK[:, -1])):
        way_NM = ways_KM[target_N] - ways_KM[CASE.label_N]
        found = attacked(FGSM(eps=0.02, loss="margin", towards=towards), CASE)  # type: ignore[arg-type]
        assert np.allclose(found.picture_BCHW.flatten(1).numpy(), CASE.picture_NM + 0.02 * np.sign(way_NM), rtol=0, atol=1e-14)
        for attack in (IFGSM(eps=0.3, towards=towards), PGD(eps=0.3, towards=towards)):  # type: ignore[arg-type]
            predicted = CASE.classifier().predict(attacked(attack, CASE).picture_BCHW, CASE.keys)
            assert np.array_equal(predicted.numpy(), target_N), (attack, rows)


@each_norm
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_fgsm_to_a_given_class_is_its_formula(norm: Norm, loss: Literal["ce", "margin"]) -> None:
    """Downhill the cross-entropy of class t: −W(softmax(z) − 1_t); uphill its lead over the best other class k: w_t − w_k. Pictures of t
    itself stay."""
    target = 2
    share_NK = np.exp(CASE.logit_NK - CASE.logit_NK.max(1, keepdims=True))
    share_NK /= share_NK.sum(1, keepdims=True)
    rest_NK = np.where(np.arange(CASE.classes) == target, -np.inf, CASE.logit_NK)
    of_NK = share_NK if loss == "ce" else np.eye(CASE.classes)[rest_NK.argmax(1)]
    way_NM = (np.eye(CASE.classes)[target] - of_NK) @ CASE.weight_MK.T
    step_NM = np.sign(way_NM) if norm == "linf" else way_NM / np.linalg.norm(way_NM, axis=1, keepdims=True)
    wanted_NM = CASE.picture_NM + 0.02 * np.where(CASE.label_N == target, 0, 1)[:, None] * step_NM
    assert 0 < (CASE.label_N == target).sum() < len(CASE.label_N)
    found = attacked(FGSM(eps=0.02, norm=norm, loss=loss, target=target), CASE)
    assert np.allclose(found.picture_BCHW.flatten(1).numpy(), wanted_NM, rtol=0, atol=1e-14)
    assert np.array_equal(found.queries_B.numpy(), CASE.label_N != target)


@each_norm
def test_a_given_class_is_reached_where_the_closed_form_says(norm: Norm) -> None:
    """Of two classes: within (z_y − z_t)/‖w_y − w_t‖ in the dual norm. Of many: always, if ε is large."""
    two = Linear(classes=2)
    eps = two.middle(norm)
    for target in (0, 1):
        reached_N = (two.label_N == target) | (two.distances(norm) < eps)
        assert 0 < (two.label_N == target).sum() < len(reached_N) and not reached_N.all()
        for kind in (FGSM, IFGSM, PGD):
            attack: Attack = kind(eps=eps, norm=norm, target=target)
            predicted_N = two.classifier().predict(attacked(attack, two).picture_BCHW, two.keys).numpy()
            assert np.array_equal(predicted_N == target, reached_N), attack
    for attack in (IFGSM(eps=0.3, target=4), PGD(eps=0.3, target=4)):
        found = attacked(attack, CASE)
        assert (CASE.classifier().predict(found.picture_BCHW, CASE.keys) == 4).all(), attack
        assert torch.equal(found.picture_BCHW[CASE.labels == 4], CASE.pictures[CASE.labels == 4]), attack


def test_what_cannot_be_aimed_at_is_refused() -> None:
    for kind in (FGSM, IFGSM, PGD):
        with pytest.raises(InputError, match=f"{kind.__name__}.target is 6; accepted: a class, 0 to 5"):
            attacked(kind(target=6), CASE)
        with pytest.raises(InputError, match="one of the two alone"):
            kind(target=1, towards="likeliest")
        assert (kind(target=1).label, kind().label) == (f"{kind.__name__} to 1", kind.__name__)
        assert fingerprint(kind(target=0)) != fingerprint(kind()) and "target" not in encode(kind(), "")


@each_norm
def test_deepfool_is_1_02_times_the_exact_distance(norm: Norm) -> None:
    found = attacked(DeepFool(norm=norm), CASE)
    assert np.allclose(changes(found, CASE, norm), 1.02 * CASE.distances(norm), rtol=1e-9, atol=0)
    assert fooled(found.picture_BCHW, CASE).all() and (found.queries_B == 2).all()


@each_norm
def test_smallest_changes_are_near_the_exact_ones(norm: Norm) -> None:
    exact_N = CASE.distances(norm)
    for attack in (FMN(norm=norm), FAB(norm=norm, steps=40)):
        found = attacked(attack, CASE)
        long_N = changes(found, CASE, norm)
        assert fooled(found.picture_BCHW, CASE).all() and (long_N >= exact_N * (1 - 1e-9)).all(), attack
        assert np.median(long_N / exact_N) <= 1.01, attack
        for eps in np.quantile(exact_N, [0.2, 0.5, 0.8]):
            assert abs(robust_accuracy(long_N, [eps])[0] - (exact_N > eps).mean()) <= 1 / len(exact_N) + 1e-12


@pytest.mark.parametrize(("push", "lr"), [(0.5, 0.01), (0.0, 0.001)])
def test_carlini_wagner_is_near_the_exact_distance(push: float, lr: float) -> None:
    """Where pixels change by more than Adam's steps; where they do not, with smaller steps."""
    case = Linear(count=12, push=push)
    assert (np.median(case.distances("linf")) > 0.02) == (lr == 0.01)
    found = attacked(CarliniWagner(lr=lr), case)
    ratio_N = changes(found, case, "l2") / case.distances("l2")
    assert fooled(found.picture_BCHW, case).all() and ratio_N.min() >= 1 - 1e-9 and np.median(ratio_N) <= 1.01


def test_carlini_wagner_keeps_its_margin() -> None:
    case = Linear(count=8, spread=0.35)
    found = attacked(CarliniWagner(kappa=1.5, searches=7, steps=200), case)
    assert (margin(case.classifier()(found.picture_BCHW, case.keys), case.labels) >= 1.5).all()


def test_robust_accuracy_counts_the_pictures_beyond_eps() -> None:
    assert robust_accuracy(np.array([0.0, 0.1, 0.1, np.inf]), [0, 0.05, 0.1, 9]).tolist() == [0.75, 0.75, 0.25, 0.25]


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_of_a_plane_within_the_box(norm: Norm) -> None:
    """Against a root search over the multiplier, pixel by pixel."""
    draw = np.random.default_rng(0)
    x_NM, w_NM = draw.random((30, 27)), draw.standard_normal((30, 27)) * (draw.random((30, 27)) < 0.8)
    x_NM[:, :3] = np.round(x_NM[:, :3])
    found_NM = onto_plane(*(torch.from_numpy(v).reshape(30, 3, 3, 3) for v in (x_NM, w_NM)), torch.from_numpy(_rises(x_NM, w_NM)), norm)
    for x_M, w_M, rise, found_M in zip(x_NM, w_NM, _rises(x_NM, w_NM), found_NM.reshape(30, 27).numpy()):
        assert np.allclose(found_M, _nearest(x_M, w_M, rise, norm), rtol=0, atol=1e-9)


def _rises(x_NM: np.ndarray, w_NM: np.ndarray) -> np.ndarray:
    """Between most of what the box allows downwards and most of what it allows upwards, and in the end too much."""
    most_N = np.maximum(w_NM * (1 - x_NM), -w_NM * x_NM).sum(1)
    least_N = np.minimum(w_NM * (1 - x_NM), -w_NM * x_NM).sum(1)
    share_N = np.linspace(-0.95, 1.1, len(x_NM))
    return np.where(share_N > 0, share_N * most_N, -share_N * least_N)


def _nearest(x_M: np.ndarray, w_M: np.ndarray, rise: float, norm: Norm) -> np.ndarray:
    def change(time: float) -> np.ndarray:
        return np.clip(x_M + time * np.sign(rise) * (w_M if norm == "l2" else np.sign(w_M)), 0, 1) - x_M

    def short(time: float) -> float:
        return abs(float(change(time) @ w_M)) - abs(rise)

    return change(1e6) if short(1e6) < 0 else change(brentq(short, 0, 1e6, xtol=1e-15, maxiter=500))


def _boxed() -> tuple[Linear, dict[Norm, np.ndarray]]:
    """A classifier of two classes, pictures of the first, half of whose pixels lie near the end to which attacks push, and the exact
    distances."""
    case = Linear(count=30, classes=2)
    way_M = case.weight_MK[:, 1] - case.weight_MK[:, 0]
    case.picture_NM[:, ::2] = np.where(way_M > 0, 1 - 1e-4 * np.arange(30)[:, None], 1e-4 * np.arange(30)[:, None])[:, ::2]
    case.bias_K[0] += (case.picture_NM @ way_M + case.bias_K[1] - case.bias_K[0]).max()
    middle_M = way_M * (np.arange(len(way_M)) % 2)
    gap_N = np.linspace(0.5, 1.5, 30)
    excess_N = -(case.picture_NM @ way_M + case.bias_K[1] - case.bias_K[0]) - gap_N
    case.picture_NM += excess_N[:, None] * middle_M / (middle_M @ middle_M)
    case.logit_NK = case.picture_NM @ case.weight_MK + case.bias_K
    case.label_N = case.logit_NK.argmax(1)
    assert not case.label_N.any() and case.picture_NM.min() >= 0 and case.picture_NM.max() <= 1
    ways_NM = np.tile(way_M, (30, 1))
    exact = {norm: np.array([_size(_nearest(*one, norm), norm) for one in zip(case.picture_NM, ways_NM, gap_N)]) for norm in NORMS}
    return case, exact


def _size(change_M: np.ndarray, norm: Norm) -> float:
    return float(np.abs(change_M).max() if norm == "linf" else np.linalg.norm(change_M))


@each_norm
def test_where_the_box_binds(norm: Norm) -> None:
    case, exact = _boxed()
    exact_N = exact[norm]
    assert np.median(exact_N / case.distances(norm)) > 1.1, "the box should bind"
    ordered_N = np.sort(exact_N)
    eps = float(ordered_N[14] + ordered_N[15]) / 2
    for attack in (PGD(eps=eps, norm=norm, steps=40), APGD(eps=eps, norm=norm), AutoAttack(eps=eps, norm=norm, queries=20)):
        excess = int((~fooled(attacked(attack, case).picture_BCHW, case)).sum()) - int((eps < exact_N).sum())
        # in l2 the gradient's steps spend length on pixels that the box stops; AutoAttack's FAB knows the box
        assert excess in (0, 1) or (norm == "l2" and not isinstance(attack, AutoAttack) and 0 <= excess <= 6), attack
    for attack in (FMN(norm=norm), FAB(norm=norm, steps=40)):
        long_N = changes(attacked(attack, case), case, norm)
        assert (long_N >= exact_N * (1 - 1e-6)).all() and np.median(long_N / exact_N) <= 1.01, attack


def test_dlr_does_not_see_the_scale_of_logits() -> None:
    small, large = Linear(), Linear(scale=64.0)
    for loss in ("dlr", "targeted_dlr"):
        attack = APGD(eps=small.middle("linf"), loss=loss, steps=40, targets=3)  # type: ignore[arg-type]
        one, other = attacked(attack, small), attacked(attack, large)
        assert torch.allclose(one.picture_BCHW, other.picture_BCHW, rtol=0, atol=1e-12) and torch.equal(one.queries_B, other.queries_B)


def test_the_checkpoints_of_the_paper() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_apgds_losses_are_undefined_for_few_classes() -> None:
    for loss, classes in (("dlr", 2), ("targeted_dlr", 3), ("ce", 1)):
        with pytest.raises(InputError, match=f"has {classes}"):
            APGD(loss=loss).check(classes)  # type: ignore[arg-type]
        APGD(loss=loss).check(classes + 1)  # type: ignore[arg-type]
    three = Linear(classes=3)
    with pytest.raises(InputError, match="at least 4"):
        attacked(APGD(loss="targeted_dlr"), three)


@pytest.mark.parametrize("classes", [2, 3])
def test_autoattack_does_what_it_can_with_few_classes(classes: int) -> None:
    case = Linear(classes=classes)
    eps = case.middle("linf")
    standing = (~fooled(attacked(AutoAttack(eps=eps, steps=30, queries=10), case).picture_BCHW, case)).sum()
    assert abs(int(standing) - int((eps < case.distances("linf")).sum())) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_share_of_zero_gradients_is_reported(dtype: torch.dtype) -> None:
    """At a gap of 20 the half-precision softmax is exactly one-hot: cross-entropy has no gradient, the margin has."""
    weight_MK = torch.zeros(12, 4, dtype=dtype)
    weight_MK[:4, 0], weight_MK[4:8, 1:] = 5, torch.tensor([[0.25, 0, -0.5]] * 4, dtype=dtype)
    weight_MK[8, 1:] = -torch.tensor([1, 0, -2], dtype=dtype)
    picture_BCHW = torch.ones(3, 3, 2, 2, dtype=dtype)
    classifier = Classifier(lambda picture_BCHW, _: picture_BCHW.flatten(1) @ weight_MK, 4, dtype=dtype)
    label_B, keys = torch.zeros(3, dtype=torch.int64), ("a", "b", "c")
    assert margin(classifier(picture_BCHW, keys), label_B).tolist() == [-20] * 3
    half = dtype == torch.float16
    for attack, share in (
        (FGSM(), half), (FGSM(loss="margin"), 0), (PGD(random_start=False), half), (APGD(loss="dlr", steps=3), 0),
    ):  # fmt: skip
        found = attack.perturb(classifier, picture_BCHW, label_B, keys)
        assert found.zero_gradient_B.tolist() == [share] * 3, attack
    assert Square(queries=3).perturb(classifier, picture_BCHW, label_B, keys).zero_gradient_B.isnan().all()
    warned = AutoAttack().warnings(classifier, picture_BCHW, keys)
    assert any("exactly 0 in every pixel of 3 of 3" in line for line in warned) == half


def test_the_warnings_of_autoattack() -> None:
    case = Linear(classes=12)
    assert AutoAttack().warnings(case.classifier(), case.pictures, case.keys) == ()
    draw = torch.Generator().manual_seed(0)

    def changed(change: object, classes: int = 12) -> str:
        inner = case.classifier()
        classifier = Classifier(lambda picture, keys: change(inner(picture, keys))[:, :classes], classes, dtype=case.dtype)  # type: ignore[operator]
        return " ".join(AutoAttack().warnings(classifier, case.pictures, case.keys))

    assert "differ between two calls" in changed(lambda logit: logit + torch.randn(logit.shape, generator=draw))
    assert "look like probabilities" in changed(lambda logit: F.softmax(logit, 1))
    assert "exactly 0" in changed(lambda logit: (1e6 * logit).float().double())
    assert "there are 5 wrong classes" in changed(lambda logit: logit, 6)
    assert "needs 4" in changed(lambda logit: logit, 3)
