"""Attacks on a small network: what must hold of any attack and any classifier."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.errors import InputError
from orchestrator.experiment.fingerprint import fingerprint
from tests.unit.trainers.audit.attacks.cases import Linear, Network, attacked, changes, fooled
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.auto_attack import AutoAttack
from trainers.audit.attacks.base import Attack, Norm, lengths, margin
from trainers.audit.attacks.carlini_wagner import CarliniWagner
from trainers.audit.attacks.deepfool import DeepFool
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.patch import AdversarialPatch
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.square import Square, _pyramid
from trainers.audit.classifier import Classifier, zero_shot
from trainers.model import TinyCLIP

CASE, FEW = Network(), Network(count=8)
EPS: dict[Norm, float] = {"linf": 0.015, "l2": 0.12}
each_norm = pytest.mark.parametrize("norm", list(EPS))


def bounded(norm: Norm) -> list[Attack]:
    shared = {"eps": EPS[norm], "norm": norm}
    return [
        FGSM(**shared), IFGSM(loss="margin", **shared), PGD(restarts=2, **shared), PGD(stop=False, towards="likeliest", **shared),
        APGD(steps=30, **shared), APGD(loss="dlr", steps=30, **shared), APGD(loss="targeted_dlr", steps=20, targets=3, **shared),
        Square(queries=40, **shared), AutoAttack(steps=10, queries=20, targets=2, **shared),
    ]  # fmt: skip


def unbounded() -> list[Attack]:
    return [
        *(FAB(norm=norm, steps=8, targets=2) for norm in EPS), *(kind(norm=norm, steps=20) for kind in (FMN, DeepFool) for norm in EPS),
        CarliniWagner(searches=3, steps=40), AdversarialPatch(steps=5), AdversarialPatch(steps=3, fixed_area=True, area=0.1),
    ]  # fmt: skip


TARGETED = [kind(target=1) for kind in (FGSM, IFGSM, PGD)]


@pytest.mark.parametrize("attack", [*bounded("linf"), *bounded("l2"), *TARGETED, *unbounded()], ids=lambda attack: type(attack).__name__)
def test_the_batch_changes_nothing(attack: Attack) -> None:
    sevens, ones = (attacked(attack, FEW, batch) for batch in (7, 1))
    assert torch.allclose(sevens.picture_BCHW, ones.picture_BCHW, rtol=0, atol=1e-8)
    assert torch.equal(sevens.queries_B, ones.queries_B)
    assert torch.equal(sevens.zero_gradient_B.nan_to_num(-1), ones.zero_gradient_B.nan_to_num(-1))
    assert len({fingerprint(one) for one in (attack, replace(attack, seed=1))}) == 2


@each_norm
def test_white_box_attacks_are_no_weaker_than_noise(norm: Norm) -> None:
    eps = EPS[norm]
    draw = np.random.default_rng(0)
    noised = np.zeros(len(CASE.keys), bool)
    for _ in range(20):
        shape = CASE.pictures.shape
        way = torch.from_numpy(draw.choice([-1.0, 1.0], shape) if norm == "linf" else draw.standard_normal(shape))
        change = eps * way / lengths(way, norm)[:, None, None, None]
        noised |= fooled((CASE.pictures + change).clamp(0, 1), CASE)
    for attack in bounded(norm):
        if not attack.black_box:
            assert fooled(attacked(attack, CASE).picture_BCHW, CASE).sum() >= noised.sum(), attack
    assert 0 < noised.sum() < fooled(attacked(AutoAttack(eps=eps, norm=norm, steps=30, queries=10), CASE).picture_BCHW, CASE).sum()


@each_norm
def test_more_eps_fools_no_fewer(norm: Norm) -> None:
    for attack in (PGD(loss="margin"), APGD(loss="dlr", steps=30), AutoAttack(steps=10, queries=10)):
        counts = []
        for factor in (0, 0.5, 1, 2, 4):
            found = attacked(replace(attack, eps=factor * EPS[norm], norm=norm), CASE)  # type: ignore[call-arg]
            assert changes(found, CASE, norm).max() <= factor * EPS[norm] * (1 + 1e-9)
            counts.append(int(fooled(found.picture_BCHW, CASE).sum()))
        assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 20, (attack, counts)


@each_norm
def test_smallest_changes_agree_with_attacks_within_eps(norm: Norm) -> None:
    """A picture whose smallest change is longer than ε is one that AutoAttack does not fool, but for one in 24."""
    smallest_N = changes(attacked(FMN(norm=norm), CASE), CASE, norm)
    standing_N = ~fooled(attacked(AutoAttack(eps=EPS[norm], norm=norm, steps=30, targets=5, queries=10), CASE).picture_BCHW, CASE)
    assert abs(int((smallest_N > EPS[norm]).sum()) - int(standing_N.sum())) <= 1 and 5 < standing_N.sum() < 20


def test_restarts_and_going_on_only_help() -> None:
    def margins(attack: Attack) -> Tensor:
        return margin(CASE.classifier()(attacked(attack, CASE).picture_BCHW, CASE.keys), CASE.labels)

    short, more = PGD(eps=0.015, steps=5, stop=False), PGD(eps=0.015, steps=5, stop=False, restarts=3)
    assert (margins(more) >= margins(short)).all() and (margins(more) > margins(short)).any()
    first = PGD(eps=0.015, steps=5)
    assert (margins(short) >= margins(first) - 1e-12).all()
    assert (attacked(short, CASE).queries_B == 6).all() and (attacked(first, CASE).queries_B <= 6).all()


def test_misclassified_pictures_need_no_change() -> None:
    wrong = Network()
    wrong.labels = (wrong.labels + 1) % wrong.classes
    for attack in (FAB(), FMN(), DeepFool()):
        found = attacked(attack, wrong)
        assert torch.equal(found.picture_BCHW, wrong.pictures) and (found.queries_B == 1).all(), attack
    assert (attacked(PGD(), wrong).queries_B < 4).all()


class Recorded:
    """A classifier that remembers for each key whether each of its queries was misclassified."""

    def __init__(self, case: Network | Linear) -> None:
        self.case, self.wrong = case, defaultdict(list)  # type: ignore[var-annotated]

    def classifier(self) -> Classifier:
        inner, label = self.case.classifier(), dict(zip(self.case.keys, self.case.labels.tolist()))

        def logits(picture_BCHW: Tensor, keys: list[str]) -> Tensor:
            logit_BK = inner(picture_BCHW, keys)
            for key, predicted in zip(keys, logit_BK.argmax(1).tolist()):
                self.wrong[key].append(predicted != label[key])
            return logit_BK

        return Classifier(logits, self.case.classes, dtype=self.case.dtype)


@each_norm
def test_square_stops_at_the_first_query_that_fools(norm: Norm) -> None:
    recorded = Recorded(CASE)
    attack = Square(eps=EPS[norm], norm=norm, queries=300)
    found = attack.perturb(recorded.classifier(), CASE.pictures, CASE.labels, CASE.keys)
    for key, queries in zip(CASE.keys, found.queries_B.tolist()):
        assert len(recorded.wrong[key]) == queries and not any(recorded.wrong[key][:-1])
        assert recorded.wrong[key][-1] or queries == 300
    fooled_N = fooled(found.picture_BCHW, CASE)
    assert np.array_equal(fooled_N, [recorded.wrong[key][-1] for key in CASE.keys]) and 5 < fooled_N.sum() < 24
    long_N = changes(found, CASE, norm)
    assert long_N.max() <= EPS[norm] * (1 + 1e-9) and np.median(long_N) >= 0.99 * EPS[norm]


def test_squares_shrink_as_published() -> None:
    attack = Square(queries=10_000)
    sides = [attack._side(step, 32, 32) for step in (1, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sides == [29, 29, 20, 20, 14, 10, 7, 5, 4, 3, 2, 1]  # √(.8·1024/2ᵏ), rounded
    ring_HW = _pyramid(5, 5)
    assert np.isclose(np.linalg.norm(ring_HW), 1) and np.isclose(ring_HW[2, 2] / ring_HW[0, 0], (1 + 1 / 4 + 1 / 9) / (1 / 9))


def test_random_squares_beat_noise_and_lose_to_gradients() -> None:
    case = Linear()
    for norm in EPS:
        eps = case.middle(norm)
        first, many = (fooled(attacked(Square(eps=eps, norm=norm, queries=n), case).picture_BCHW, case).sum() for n in (1, 400))
        assert first < many <= (case.distances(norm) <= eps).sum() + 1e-9


def test_the_zero_shot_classifier_of_a_clip_model() -> None:
    encoder = TinyCLIP().build(0)
    image = torch.from_numpy(np.random.default_rng(0).random((6, 3, 32, 32), np.float32))
    keys = tuple("abcdef")
    with zero_shot(encoder, ("cat", "dog", "car", "tree", "boat"), ("a photo of a {}.",)) as classifier:
        label = classifier.predict(image, keys)
        margins = margin(classifier(image, keys), label)
        for attack in (FGSM(), PGD(steps=5), APGD(loss="dlr", steps=10), Square(queries=20)):
            before = classifier.queries
            found = attack.perturb(classifier, image, label, keys)
            assert int(found.queries_B.sum()) == classifier.queries - before
            assert (margin(classifier(found.picture_BCHW, keys), label) > margins).all(), attack
            assert lengths(found.picture_BCHW - image, "linf").max() <= 4 / 255 + 1e-6
    assert all(weight.grad is None for weight in encoder.parameters())


def test_logits_that_are_no_numbers_are_refused() -> None:
    classifier = Classifier(lambda picture_BCHW, _: picture_BCHW.flatten(1)[:, :3] / 0, 3)
    for attack in (FGSM(), Square()):
        with pytest.raises(FloatingPointError):
            attack.perturb(classifier, torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64), ("a",))


def test_settings_that_cannot_be_are_refused() -> None:
    for make, said in (
        (lambda: PGD(eps=1.5), "0 … 1"),
        (lambda: FGSM(towards="up"), "least_likely"),
        (lambda: APGD(rho=2.0), "at most 1"),
        (lambda: FAB(eta=0.9), "at least 1"),
        (lambda: AdversarialPatch(scales=(1.2, 0.8)), "smaller factor first"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    assert PGD(eps=1.5, norm="l2").eps == 1.5
