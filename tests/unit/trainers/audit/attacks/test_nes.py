"""NES: its estimate against closed forms, its queries counted by the classifier, and the networks that it fools."""

from collections import Counter

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from tests.unit.trainers.audit.quarters import CLASSES, SIDE, network, quarters
from trainers.audit.attacks.base import project
from trainers.audit.attacks.nes import NES, _Step, estimate
from trainers.audit.classifier import Classifier

KEYS = [f"k{i}" for i in range(9)]


def linear(scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Weights [K, 3, S, S] of a linear classifier."""
    return scale * rng("weights", seed).standard_normal((CLASSES, 3, SIDE, SIDE))


def counted(weight_KCHW: np.ndarray, curve: float = 0.0) -> tuple[Classifier, Counter[str]]:
    """A classifier, linear plus `curve` times a sine of it, and what it counts: queries by key."""
    weight, calls = torch.from_numpy(weight_KCHW), Counter[str]()

    def logits(picture_BCHW, keys_B):
        assert picture_BCHW.min() >= 0 and picture_BCHW.max() <= 1
        calls.update(keys_B)
        plain_BK = (picture_BCHW[:, None] - 0.5).mul(weight).sum((2, 3, 4))
        return plain_BK + curve * torch.sin(plain_BK)

    return Classifier(logits, CLASSES, dtype=torch.float64), calls


def pictures(count: int = len(KEYS)) -> torch.Tensor:
    return torch.from_numpy(0.2 + 0.6 * rng("pictures").random((count, 3, SIDE, SIDE)))


def answers(weight: np.ndarray, curve: float, point: np.ndarray) -> np.ndarray:
    """Logits of `counted`'s classifier for one picture, in NumPy."""
    plain = np.array([((point - 0.5) * one).sum() for one in weight])
    return plain + curve * np.sin(plain)


def slope(attack: NES, draw, score, x: np.ndarray) -> tuple[np.ndarray, float]:
    """(the estimate, the mean score), pair by pair."""
    total, seen = np.zeros_like(x), []
    for u in draw.standard_normal((attack.samples // 2, *x.shape)):
        plus, minus = (score(np.clip(x + sign * attack.sigma * u, 0, 1)) for sign in (1, -1))
        total += (plus - minus) * u / (attack.sigma * attack.samples)
        seen += [plus, minus]
    return total, float(np.mean(seen))


def fell(attack: NES, history: list[float]) -> bool:
    return len(history) >= attack.plateau and history[-1] < history[-attack.plateau]


@pytest.mark.parametrize("fields", [{}, {"target": 3}, {"momentum": 0.0, "lr": 0.03}, {"plateau": 2, "min_lr": 0.004, "momentum": 0.5}])
def test_with_scores_it_is_the_algorithm_written_out(fields):
    attack, weight, curve = NES(eps=0.04, samples=6, queries=120, **fields), linear(0.7), 3.0
    classifier, _ = counted(weight, curve)
    picture = pictures()
    label = classifier.predict(picture, KEYS)
    made = attack.perturb(classifier, picture, label, KEYS)
    halvings = lengthy = 0
    for number, key in enumerate(KEYS):
        x = start = picture[number].numpy()
        y, draw, velocity, lr, history, asked, best = int(label[number]), rng(0, "NES", key), 0.0, attack.lr, [], 0, (-np.inf, start)

        def score(point, y=y):
            z = answers(weight, curve, point)
            of = y if attack.target is None else attack.target
            rival = max(z[k] for k in range(CLASSES) if k != of)
            return rival - z[of] if attack.target is None else z[of] - rival

        while True:
            asked += 1
            got = answers(weight, curve, x).argmax()
            if got == attack.target or (attack.target is None and got != y):
                best = (0, x)
                break
            best = max(best, (score(x), x), key=lambda pair: pair[0])
            if asked + 7 > 120:
                break
            found, mean = slope(attack, draw, score, x)
            asked += 6
            velocity = attack.momentum * velocity + (1 - attack.momentum) * found
            history.append(mean)
            if fell(attack, history):
                lr, history, halvings = max(lr / 2, attack.min_lr), [], halvings + 1
            x = np.clip(np.clip(x + lr * np.sign(velocity), start - attack.eps, start + attack.eps), 0, 1)
        assert made.queries_B[number] == asked
        lengthy += asked > 30
        np.testing.assert_allclose(made.picture_BCHW[number].numpy(), best[1], rtol=0, atol=1e-9)
    assert lengthy >= 3 and (halvings or attack.plateau > 2)


@pytest.mark.parametrize("k", [1, 2])
def test_with_top_k_it_is_the_algorithm_written_out(k):
    attack, weight, curve = NES(eps=0.05, samples=6, queries=250, sees="top_k", k=k, lr=0.02, min_lr=0.004), linear(0.7), 0.3
    classifier, _ = counted(weight, curve)
    picture = pictures()
    label = classifier.predict(picture, KEYS)
    start = torch.stack([next(other for other, own in zip(picture.flip(0), label.flip(0)) if own != y) for y in label])
    made = attack.perturb(classifier, picture, label, KEYS, start)
    cuts = set()
    for number, key in enumerate(KEYS):
        origin, x, y, draw = picture[number].numpy(), start[number].numpy(), int(label[number]), rng(0, "NES", key)
        aim, velocity, lr, history, asked, cut = int(answers(weight, curve, x).argmax()), 0.0, attack.lr, [], 2, 0.5
        distance, success = np.abs(x - origin).max(), False

        def score(point, aim=aim):
            z = answers(weight, curve, point)
            z = z - np.log(np.exp(z).sum())
            likely = sorted(range(CLASSES), key=lambda c: -z[c])[:k]
            return z[aim] if aim in likely else z[likely[-1]]

        while asked + 7 <= 250 and not success:
            found, mean = slope(attack, draw, score, x)
            asked += 6
            velocity = 0.9 * velocity + 0.1 * found
            history.append(mean)
            if fell(attack, history):
                lr, history = max(lr / 2, attack.min_lr), []
            sizes = [lr / 2**j for j in range(9) if j == 0 or lr / 2**j >= attack.min_lr]
            levels = [cut / 2**j for j in range(20) if j == 0 or cut / 2**j >= 2e-3] + [0]
            moved = False
            for cut, size in ((level, size) for level in levels for size in sizes):
                if asked == 250 or moved:
                    break
                nearer = max(distance - cut, attack.eps)
                trial = np.clip(np.clip(x + size * np.sign(velocity), origin - nearer, origin + nearer), 0, 1)
                asked += 1
                z = answers(weight, curve, trial)
                if aim in np.argsort(-z)[:k]:
                    x, distance, moved = trial, nearer, True
                    success = z.argmax() != y and distance <= attack.eps
                    cuts.add(cut)
                    cut = min(2 * cut, 0.5)
                    break
            cut = max(cut, 2e-3)
        assert made.queries_B[number] == asked
        x = np.clip(np.clip(x, origin - attack.eps, origin + attack.eps), 0, 1)
        np.testing.assert_allclose(made.picture_BCHW[number].numpy(), x, rtol=0, atol=1e-9)
    assert len(cuts) >= 4


def plane(truth: torch.Tensor, constant: float):
    return lambda point_PCHW: constant + (point_PCHW * truth).sum((1, 2, 3))


@pytest.mark.parametrize(("side", "pairs"), [(8, 25), (8, 100), (3, 10)])
def test_the_cosine_with_the_true_gradient_is_that_of_theory(side, pairs):
    d, draw = 3 * side * side, rng("cosine", side, pairs)
    cosines = []
    for _ in range(300):
        truth = torch.from_numpy(draw.standard_normal((3, side, side)))
        direction = torch.from_numpy(draw.standard_normal((pairs, 3, side, side)))
        found, mean = estimate(plane(truth, 5), torch.full((3, side, side), 0.5).double(), direction, 1e-3)
        assert mean == pytest.approx(5 + 0.5 * float(truth.sum()))
        cosines.append(float((found * truth).sum() / (found.norm() * truth.norm())))
    assert np.mean(cosines) == pytest.approx(np.sqrt(pairs / (pairs + d + 1)), abs=0.02)


def test_an_estimate_is_the_sum_over_its_pairs_whatever_the_constant():
    draw, sigma = rng("pairs"), 1e-3
    truth, direction = draw.standard_normal((3, 4, 4)), draw.standard_normal((6, 3, 4, 4))
    expected = sum((truth * u).sum() * u for u in direction) / 6
    for constant in (0.0, 1e3):
        score = plane(torch.from_numpy(truth), constant)
        found, _ = estimate(score, torch.full((3, 4, 4), 0.5).double(), torch.from_numpy(direction), sigma)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_with_scores_it_stops_when_a_picture_fools_and_counts_every_query():
    attack = NES(eps=0.05, samples=10, queries=500)
    weight, picture = linear(), pictures()
    classifier, calls = counted(weight)
    label = classifier.predict(picture, KEYS)
    calls.clear()
    before = classifier.queries
    made = attack.perturb(classifier, picture, label, KEYS)
    assert made.queries_B.tolist() == [calls[key] for key in KEYS] and classifier.queries - before == made.queries_B.sum()
    assert all(count % 11 == 1 and 1 < count <= 500 for count in made.queries_B.tolist())
    assert (made.picture_BCHW - picture).abs().max() <= 0.05 + 1e-12 and (made.zero_gradient_B == 0).all()
    fooled = classifier.predict(made.picture_BCHW, KEYS) != label
    assert fooled.all() and made.queries_B.max() < 491
    wrong = attack.perturb(classifier, picture, (label + 1) % CLASSES, KEYS)
    assert (wrong.queries_B == 1).all() and torch.equal(wrong.picture_BCHW, picture) and wrong.zero_gradient_B.isnan().all()


def test_where_it_fails_the_limit_is_not_passed_and_its_best_try_comes_back():
    attack = NES(eps=1e-4, lr=1e-4, samples=10, queries=100)
    classifier, calls = counted(linear())
    picture = pictures()
    label = classifier.predict(picture, KEYS)
    calls.clear()
    made = attack.perturb(classifier, picture, label, KEYS)
    assert made.queries_B.tolist() == [1 + 9 * 11] * len(KEYS) == [calls[key] for key in KEYS]
    own = lambda p: classifier(p, KEYS).gather(1, label[:, None])[:, 0] - classifier(p, KEYS).scatter(1, label[:, None], -1e9).amax(1)
    assert (own(made.picture_BCHW) < own(picture)).all() and (own(made.picture_BCHW) > 0).all()


@pytest.mark.parametrize("fields", [
    {}, {"target": 2}, {"sees": "top_k", "k": 2}, {"sees": "labels", "probes": 5, "probe_radius": 0.02, "sigma": 0.02},
])
def test_batches_change_nothing(fields):
    attack = NES(eps=0.08, samples=10, queries=400, **fields)
    classifier, _ = counted(linear(), 0.5)
    picture = pictures()
    label = classifier.predict(picture, KEYS)
    whole = attack.perturb(classifier, picture, label, KEYS)
    for size in (1, 7):
        parts = [attack.perturb(classifier, picture[at : at + size], label[at : at + size], KEYS[at : at + size])
                 for at in range(0, len(KEYS), size)]  # fmt: skip
        assert torch.equal(whole.picture_BCHW, torch.cat([part.picture_BCHW for part in parts]))
        assert torch.equal(whole.queries_B, torch.cat([part.queries_B for part in parts]))
    other = NES(eps=0.08, samples=10, queries=400, seed=1, **fields).perturb(classifier, picture, label, KEYS)
    assert not torch.equal(other.picture_BCHW, whole.picture_BCHW)


def test_a_linear_classifier_falls_where_the_margin_allows_it_and_nowhere_else():
    weight = linear()
    classifier, _ = counted(weight)
    picture = pictures(40)
    keys = [str(i) for i in range(40)]
    logit = classifier(picture, keys)
    label = logit.argmax(1)
    reach = []
    for z, y in zip(logit.numpy(), label.tolist()):
        reach.append(min((z[y] - z[k]) / np.abs(weight[y] - weight[k]).sum() for k in range(CLASSES) if k != y))
    eps = float(np.median(reach))
    made = NES(eps=eps, lr=eps / 3, min_lr=eps / 100, queries=3000).perturb(classifier, picture, label, keys)
    fooled = (classifier.predict(made.picture_BCHW, keys) != label).numpy()
    assert not fooled[np.array(reach) > eps].any()
    assert fooled[np.array(reach) < 0.8 * eps].all() and (np.array(reach) < 0.8 * eps).sum() >= 10


def test_it_fools_a_small_network_also_towards_a_target():
    classifier = network()
    picture, label = quarters(20)
    keys = [str(i) for i in range(20)]
    right = classifier.predict(picture, keys) == label
    assert right.float().mean() > 0.9
    noise = 0.1 * torch.from_numpy(np.sign(rng("noise").standard_normal(picture.shape)))
    assert ((classifier.predict(picture + noise, keys) == label) == right).float().mean() > 0.9
    made = NES(eps=0.1, queries=3000).perturb(classifier, picture, label, keys)
    assert (classifier.predict(made.picture_BCHW, keys) != label).all() and made.queries_B.max() < 3000
    assert (made.picture_BCHW - picture).abs().max() <= 0.1 + 1e-12
    made = NES(eps=0.1, queries=3000, target=1).perturb(classifier, picture, label, keys)
    assert (classifier.predict(made.picture_BCHW, keys) == 1).all()
    already = right & (label == 1)
    assert already.any() and (made.queries_B[already] == 1).all() and (made.queries_B[~already] > 50).all()


def starts(classifier: Classifier, label: torch.Tensor, target: int | None) -> torch.Tensor:
    picture, other = quarters(40)
    got = classifier.predict(picture, [""] * 40)
    return torch.stack([picture[next(i for i in range(40) if got[i] == other[i] and (other[i] == target if target is not None else
                                                                                    other[i] != own))] for own in label])  # fmt: skip


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("fields", [
    {"sees": "top_k", "k": 2, "queries": 5000, "eps": 0.085},
    {"sees": "labels", "samples": 20, "probes": 10, "queries": 10000, "sigma": 0.02, "probe_radius": 0.03, "eps": 0.09},
])
def test_from_pictures_of_other_classes_it_comes_back_to_the_original(fields, target):
    classifier = network()
    picture, label = quarters(20)
    picture, label = picture[:6], label[:6]
    keys = [str(i) for i in range(6)]
    calls = Counter[str]()
    inner = classifier._logits

    def counting(picture_BCHW, keys_B):
        calls.update(keys_B)
        return inner(picture_BCHW, keys_B)

    watched = Classifier(counting, CLASSES, dtype=torch.float64)
    attack = NES(target=target, **fields)
    start = starts(classifier, label, target)
    assert ((start - picture).abs().flatten(1).amax(1) > 2 * attack.eps).sum() >= 4
    straight = classifier.predict(project(start, picture, attack.eps, "linf"), keys)  # the nearest pictures within ε are not enough
    assert (straight == label).sum() >= 3
    made = attack.perturb(watched, picture, label, keys, start)
    assert made.queries_B.tolist() == [calls[key] for key in keys] and made.queries_B.max() <= attack.queries
    got = classifier.predict(made.picture_BCHW, keys)
    assert (got != label if target is None else got == target).sum() >= (6 if attack.sees == "top_k" else 5)
    assert (made.picture_BCHW - picture).abs().max() <= attack.eps + 1e-12


@pytest.mark.parametrize(("sees", "classes"), [("top_k", 2), ("labels", 1)])
def test_it_looks_at_no_more_than_it_may_see(sees, classes):
    """The classes beyond the k likeliest are shuffled, and for labels all logits but their order are spoilt: nothing changes."""
    classifier, _ = counted(linear(), 0.5)
    picture = pictures()
    label = classifier.predict(picture, KEYS)
    inner = classifier._logits

    def spoilt(picture_BCHW, keys_B):
        logit_BK = inner(picture_BCHW, keys_B)
        order_BK = logit_BK.argsort(1, descending=True)
        if classes == 1:
            return torch.zeros_like(logit_BK).scatter(1, order_BK[:, :1], 1.0)
        rest_BK = logit_BK.gather(1, order_BK[:, classes:])
        return logit_BK.scatter(1, order_BK[:, classes:], rest_BK.flip(1))

    attack = NES(sees=sees, k=classes, eps=0.05, samples=10, probes=5, queries=300)
    one = attack.perturb(classifier, picture, label, KEYS)
    two = attack.perturb(Classifier(spoilt, CLASSES, dtype=torch.float64), picture, label, KEYS)
    torch.testing.assert_close(one.picture_BCHW, two.picture_BCHW, rtol=0, atol=1e-9)
    assert torch.equal(one.queries_B, two.queries_B) and one.queries_B.max() > 100


def test_the_step_is_halved_on_a_plateau():
    step = _Step(NES(lr=0.01, min_lr=0.003, plateau=3))
    sizes = []
    for score in (1, 2, 3, 1, 1, 0, 0, -1, -1, -2, -3):
        step.see(score)
        sizes.append(step.now)
    assert sizes == [0.01] * 3 + [0.005] * 3 + [0.003] * 5


def test_flat_answers_are_said_to_be_flat():
    classifier = Classifier(lambda p, _: torch.tensor([[2.0, 1.0]]).repeat(len(p), 1), 2)
    made = NES(queries=200).perturb(classifier, pictures(1).float(), torch.tensor([0]), ["a"])
    assert made.zero_gradient_B.tolist() == [1.0] and made.picture_BCHW.dtype == torch.float32


def test_bad_input_is_named():
    for fields, words in (
        ({"samples": 25}, "samples"), ({"queries": 51}, "at least 52"), ({"sees": "labels", "queries": 1001}, "at least 1002"),
        ({"lr": 1e-6}, "min_lr"), ({"sees": "gradients"}, "scores, top_k, labels"), ({"sigma": 0}, "sigma"), ({"momentum": 1}, "momentum"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            NES(**fields)
    classifier, _ = counted(linear())
    with pytest.raises(InputError, match="NES.target is 4; accepted: a class, 0 to 3"):
        NES(target=4).perturb(classifier, pictures(1), torch.tensor([0]), ["a"])
    with pytest.raises(InputError, match="a picture of that class to start from"):
        NES(target=1, sees="top_k").perturb(classifier, pictures(1), torch.tensor([0]), ["a"])
    assert NES().label == "NES" and NES(sees="top_k", target=3).label == "NES top 5 to 3" and NES(sees="labels").label == "NES labels"
