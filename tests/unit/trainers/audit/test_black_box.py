"""Audits without a view of the model: their counts by hand, transfer to itself, and a substitute that learns from labels alone."""

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from tests.unit.trainers.audit.quarters import CLASSES, network, quarters
from trainers.audit import substitute
from trainers.audit.attacks.base import Attack, Attacked, gradient, margin, project
from trainers.audit.attacks.nes import NES
from trainers.audit.base import Pictures, Subject
from trainers.audit.black_box import QueryCurve, SourceModel, Substitute, Transfer
from trainers.audit.classifier import Classifier, zero_shot
from trainers.evaluate.zeroshot import wilson
from trainers.model import TinyCLIP

COLUMNS = {"checkpoint", "key", "attack", "norm", "eps", "defence", "mode", "y", "clean_prediction", "prediction", "success", "l2", "linf",
           "relative_l2", "queries", "zero_gradient_share", "noise_prediction", "noise_size", "alone_prediction", "seed"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sign(Attack):
    """One step along the sign of the margin's gradient."""

    eps: float = 0.1
    target: int | None = None

    def perturb(self, classifier, picture_BCHW, label_B, keys_B):
        x = picture_BCHW.detach().requires_grad_()
        logit = classifier(x, keys_B)
        loss = margin(logit, label_B) if self.target is None else -margin(logit, torch.full_like(label_B, self.target))
        moved = project(picture_BCHW + self.eps * gradient(loss, x).sign(), picture_BCHW, self.eps, "linf")
        return Attacked(moved, torch.ones_like(label_B), torch.zeros(len(label_B)))


@dataclass(frozen=True, kw_only=True)
class Fixed(Attack):
    """Turns the picture with number i after 10·i queries if i is odd; asks as often as it says, or `more`."""

    more: int = 0
    black_box: ClassVar[bool] = True

    def perturb(self, classifier, picture_BCHW, label_B, keys_B):
        numbers = [int(key) for key in keys_B]
        for at, number in enumerate(numbers):
            for _ in range(10 * number + self.more):
                classifier(picture_BCHW[at : at + 1], keys_B[at : at + 1])
        white = torch.ones_like(picture_BCHW)
        odd = torch.tensor([number % 2 == 1 for number in numbers])[:, None, None, None]
        return Attacked(torch.where(odd, white, picture_BCHW), torch.tensor([10 * n for n in numbers]), torch.full((len(numbers),), np.nan))


def subject(count: int = 30, classifier: Classifier | None = None, batch_size: int = 64) -> Subject:
    picture, label = quarters(count)
    image = (255 * picture).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = Pictures(tuple(str(i) for i in range(count)), image, label.numpy())
    names = tuple(f"quarter {i}" for i in range(CLASSES))
    return Subject(None, classifier or network(), pictures, names, batch_size=batch_size)  # type: ignore[arg-type]


def dark_or_white() -> Classifier:
    """Class 3 for a white picture, else class 0."""
    return Classifier(lambda p, _: torch.stack([0.9 - p.mean((1, 2, 3)), *(2 * [p.new_full((len(p),), -9.0)]), p.mean((1, 2, 3)) - 0.9], 1),
                      CLASSES, dtype=torch.float64)  # fmt: skip


def expect_share(metrics, name, count, n):
    low, high = wilson(count, n)
    assert metrics[name] == pytest.approx(100 * count / n)
    assert (metrics[f"{name}_low"], metrics[f"{name}_high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_curve_counts_what_was_turned_within_each_number_of_queries():
    whole = subject(20, dark_or_white())
    label_N = np.where(np.arange(20) % 4 == 2, 1, 0)  # 2, 6, …: wrong from the start
    whole = replace(whole, pictures=replace(whole.pictures, label_N=label_N), checkpoint="abc/1")
    found = QueryCurve(attack=Fixed(), at=(10, 49, 50, 1000)).run(whole)
    metrics, rows = found.metrics, found.rows
    assert metrics["black_box/Fixed/n"] == 15 and rows["key"] == [str(i) for i in range(20) if i % 4 != 2] and set(rows) == COLUMNS
    expect_share(metrics, "black_box/Fixed/success", 10, 15)
    for most, count in ((10, 1), (49, 2), (50, 3), (1000, 10)):
        expect_share(metrics, f"black_box/Fixed/within_{most}", count, 15)
    assert metrics["black_box/Fixed/median_queries"] == median(range(10, 200, 20))
    assert rows["queries"] == [10 * int(key) for key in rows["key"]] and rows["success"] == [int(key) % 2 == 1 for key in rows["key"]]
    assert found.failures == () and {len(column) for column in rows.values()} == {15}
    assert rows["eps"] == rows["defence"] == rows["zero_gradient_share"] == [None] * 15, "nothing to tell"
    assert rows["noise_prediction"] == [0] * 15 and rows["checkpoint"] == ["abc/1"] * 15, "noise turns half of the pixels to black"
    assert rows["prediction"] == [3 if yes else 0 for yes in rows["success"]]
    [lied] = QueryCurve(attack=Fixed(more=1)).run(whole).failures
    assert lied == "Fixed reports 1400 queries, but the model answered 1415."
    assert found.gallery["picture"].shape == (4, 8, 8, 3) and (found.gallery["attacked"] == 255).all()
    np.testing.assert_array_equal(found.gallery["picture"], whole.pictures.image_NHWC[[1, 3, 5, 7]])


def test_sizes_are_those_of_the_change_and_noise_is_as_large():
    seen: list[torch.Tensor] = []
    inner = network()
    watched = Classifier(lambda p, k: (seen.append(p), inner(p, k))[1], CLASSES, dtype=torch.float64)
    whole = subject(10, watched)
    found = Transfer(attack=Sign(eps=0.07)).run(whole)
    picture = whole.pictures.floats(watched)
    chosen = [int(key) for key in found.rows["key"]]
    moved, noisy = seen[-2].detach(), seen[-1].detach()
    np.testing.assert_allclose(found.rows["linf"], [float((moved[i] - picture[j]).abs().max()) for i, j in enumerate(chosen)])
    np.testing.assert_allclose(found.rows["l2"], [float((moved[i] - picture[j]).square().sum().sqrt()) for i, j in enumerate(chosen)])
    np.testing.assert_allclose(found.rows["relative_l2"], [a / float(picture[j].norm()) for a, j in zip(found.rows["l2"], chosen)])
    assert found.rows["linf"] == pytest.approx([0.07] * len(chosen))
    torch.testing.assert_close((noisy - picture[chosen]).abs(), torch.full_like(noisy, 0.07))
    assert not torch.equal(noisy, moved)


@pytest.mark.parametrize("fields", [{}, {"target": 1}, {"sees": "top_k", "k": 2}, {"sees": "labels", "probes": 4, "samples": 20,
                                                                                    "sigma": 0.01, "probe_radius": 0.05}])  # fmt: skip
def test_nes_turns_most_pictures_where_noise_turns_none_and_batches_change_nothing(fields):
    audit = QueryCurve(attack=NES(eps=0.1, queries=6000, **fields))
    name = f"black_box/{audit.attack.label}"
    found, one, seven = (audit.run(subject(16, batch_size=size)) for size in (64, 1, 7))
    assert found.failures == () and found.metrics[f"{name}/noise"] == 0 and found.metrics[f"{name}/success"] > 80
    curve = [found.metrics[f"{name}/within_{most}"] for most in audit.at]
    assert curve == sorted(curve) and curve[0] == curve[1] == 0 and curve[-1] == found.metrics[f"{name}/success"]
    assert found.rows == one.rows == seven.rows and found.metrics == one.metrics == seven.metrics
    assert fields.get("target") not in found.rows["y"]


def test_an_attack_that_noise_beats_fails_and_pictures_without_a_start_are_noted():
    uneven = lambda p: (p - p.mean((1, 2, 3), keepdim=True)).abs().amax((1, 2, 3)) - 0.2
    flat = Classifier(lambda p, _: torch.stack([p.new_zeros(len(p)), *3 * [uneven(p)]], 1), CLASSES)

    def grey(count: int) -> Subject:
        pictures = Pictures(tuple(map(str, range(count))), np.full((count, 8, 8, 3), 128, np.uint8), np.zeros(count, np.int64))
        return Subject(None, flat, pictures, ("a",) * 4)  # type: ignore[arg-type]

    for who, audit in (("Halfway", QueryCurve(attack=Halfway())), ("Halfway, transferred,", Transfer(attack=Halfway()))):
        [failure] = audit.run(grey(5)).failures
        assert failure.startswith(f"Random noise of the same size turns more pictures (5 of 5) than {who} does (0)"), "p = 1/32"
        assert audit.run(grey(4)).failures == (), "4 against 0 may be chance: p = 1/16"
    alone = grey(3)
    found = QueryCurve(attack=NES(sees="labels")).run(alone)
    assert found.notes[0].startswith("3 of 3 pictures had no picture to start from") and found.metrics["black_box/NES labels/success"] == 0
    assert found.rows["queries"] == [2, 2, 2]


@dataclass(frozen=True, kw_only=True)
class Halfway(Attack):
    """Makes pictures evenly brighter, which turns none."""

    black_box: ClassVar[bool] = True

    def perturb(self, classifier, picture_BCHW, label_B, keys_B):
        return Attacked(picture_BCHW + 0.3, torch.zeros_like(label_B), torch.full((len(label_B),), np.nan))


def test_without_a_right_picture_there_is_nothing_to_attack():
    whole = subject(10)
    wrong = replace(whole, pictures=replace(whole.pictures, label_N=(whole.pictures.label_N + 1) % CLASSES))
    for audit, name in ((QueryCurve(attack=NES()), "black_box/NES/n"), (Transfer(attack=Sign()), "transfer/Sign/n"),
                        (Substitute(starts=4, rounds=1), "substitute/n")):  # fmt: skip
        found = audit.run(wrong)
        assert found.metrics[name] == 0 and "No picture could be attacked" in found.notes[0] and set(found.rows) == COLUMNS
        assert found.gallery == {}


def tiny(seed: int) -> tuple:
    """A model without training whose features do not all point one way."""
    model = TinyCLIP(vision_width=8, embed_dim=16, text_width=16)
    encoder = model.build(seed).eval().requires_grad_(False)
    encoder.model.visual.attnpool.c_proj.bias -= encoder.encode_image(torch.from_numpy(clip_pictures()), unit=False).mean(0)
    return model, encoder


def clip_pictures() -> np.ndarray:
    """uint8 [24, 32, 32, 3]: four flat quarters each."""
    return rng("clip").integers(0, 256, (24, 2, 2, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)


NAMES = ("dog", "cat", "tree", "house")


@pytest.fixture
def checkpoints(tmp_path):
    paths = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.pt"
        torch.save(tiny(seed)[1].model.state_dict(), path)
        paths.append(str(path))
    return paths


def clip_subject(classifier, encoder) -> Subject:
    keys = tuple(map(str, range(24)))
    first = Subject(encoder, classifier, Pictures(keys, clip_pictures(), np.zeros(24, np.int64)), NAMES)
    label = classifier.predict(first.pictures.floats(classifier), keys).numpy()
    return replace(first, pictures=replace(first.pictures, label_N=label))


def test_transfer_from_a_model_to_itself_is_the_white_box_rate(checkpoints):
    model, encoder = tiny(0)
    attack = Sign(eps=0.1)
    with zero_shot(encoder, NAMES, ("a photo of a {}.",)) as classifier:
        whole = clip_subject(classifier, encoder)
        picture, label = whole.pictures.floats(classifier), whole.pictures.labels(classifier)
        made = attack.perturb(classifier, picture, label, whole.pictures.keys)
        turned = classifier.predict(made.picture_BCHW, whole.pictures.keys) != label
        assert 0 < turned.sum() < 24
        white = Transfer(attack=attack).run(whole)
        audits = [Transfer(attack=attack, source=SourceModel(model=model, checkpoint=path)) for path in checkpoints]
        for audit in audits:
            audit.check(4, False)
        same, other = (audit.run(whole) for audit in audits)
    assert same.metrics == white.metrics and same.rows == white.rows
    assert white.rows["success"] == turned.tolist()
    for name in ("source", "success"):
        expect_share(white.metrics, f"transfer/Sign/{name}", int(turned.sum()), 24)
    expect_share(white.metrics, "transfer/Sign/carried", int(turned.sum()), int(turned.sum()))
    assert white.metrics["transfer/Sign/rate"] == 1 and white.metrics["transfer/Sign/carried_n"] == turned.sum()
    assert other.metrics["transfer/Sign/n"] < 24 and other.rows["key"] != white.rows["key"]
    both = set(other.rows["key"])
    with zero_shot(tiny(1)[1], NAMES, ("a photo of a {}.",)) as theirs:
        agree = theirs.predict(whole.pictures.floats(theirs), whole.pictures.keys) == label
    assert both == {key for key, yes in zip(whole.pictures.keys, agree.tolist()) if yes}


def test_transfer_counts_by_hand():
    weak = network()
    strong = Classifier(lambda p, k: weak(p, k) + 0.02 * torch.arange(CLASSES), CLASSES, dtype=torch.float64)
    whole = subject(60, strong)
    audit = Transfer(attack=Sign(eps=0.05))
    found = audit._run(whole, weak)
    picture, label = whole.pictures.floats(weak), whole.pictures.labels(weak)
    keys = whole.pictures.keys
    chosen = (weak.predict(picture, keys) == label) & (strong.predict(picture, keys) == label)
    moved = Sign(eps=0.05).perturb(weak, picture, label, keys).picture_BCHW
    at, there = ((one.predict(moved, keys) != label)[chosen] for one in (strong, weak))
    n, a, t = int(chosen.sum()), int(at.sum()), int(there.sum())
    assert a > 0 and t > 0 and found.metrics["transfer/Sign/n"] == n
    expect_share(found.metrics, "transfer/Sign/success", a, n)
    expect_share(found.metrics, "transfer/Sign/source", t, n)
    expect_share(found.metrics, "transfer/Sign/carried", int((at & there).sum()), t)
    assert found.metrics["transfer/Sign/rate"] == pytest.approx(a / t)


def watched_victim() -> tuple[Classifier, Counter]:
    calls, inner = Counter(), network()
    return Classifier(lambda p, k: (calls.update(k), inner(p, k))[1], CLASSES, dtype=torch.float64), calls


SMALL = Substitute(starts=12, rounds=4, epochs=20, lr=3e-3, width=8, eps=0.1)


def test_a_substitute_learns_from_labels_and_its_pictures_turn_the_model():
    victim, calls = watched_victim()
    found = SMALL.run(subject(100, victim))
    metrics = found.metrics
    assert metrics["substitute/queries"] == 12 * 2**4 == sum(count for key, count in calls.items() if " " in key)
    assert all(calls[key] == 1 for key in calls if " " in key) and metrics["substitute/agreement_n"] == 88
    agreement = [metrics[f"substitute/agreement/{number}"] for number in range(5)]
    assert agreement[-1] > agreement[0] + 10 and agreement[-1] > 85
    assert metrics["substitute/success"] > 50 and metrics["substitute/success_low"] > metrics["substitute/noise_high"]
    assert found.failures == () and set(found.rows["queries"]) == {0} and metrics["substitute/n"] == len(found.rows["key"])
    assert metrics["substitute/rate"] == pytest.approx(metrics["substitute/success"] / metrics["substitute/source"])
    np.testing.assert_allclose(found.rows["linf"], 0.1)


def test_the_set_grows_by_signs_of_the_gradient_and_only_labels_are_seen():
    victim, _ = watched_victim()
    shown = []
    spoilt = Classifier(lambda p, k: (shown.append((p, k)), torch.nn.functional.one_hot(victim(p, k).argmax(1), CLASSES).double())[1],
                        CLASSES, dtype=torch.float64)  # fmt: skip
    whole = subject(30, victim)
    audit = replace(SMALL, starts=5, rounds=2, epochs=3)
    plain, labels = audit.run(whole), audit.run(replace(whole, classifier=spoilt))
    assert plain.rows == labels.rows and plain.metrics == labels.metrics
    asked = [(p, k) for p, k in shown if " " in k[0]]
    assert [len(p) for p, _ in asked] == [5, 5, 10] and len({key for _, k in asked for key in k}) == 20
    first, second, third = (p for p, _ in asked)
    for old, new in ((first, second), (torch.cat([first, second]), third)):
        moved = new - old
        inside = (old > 0.1) & (old < 0.9)
        assert (((moved.abs() - 0.1).abs() < 1e-12) | (moved == 0))[inside].all()
        assert inside.double().mean() > 0.9 and (moved != 0).double().mean() > 0.9


def test_augmentation_follows_the_gradient_of_the_labels_logit():
    picture, label = quarters(6)
    net = substitute.network(CLASSES, 4, 3, picture)
    grown = substitute.augmented(net, picture, label, 0.1)
    draw = rng("places")
    for _ in range(40):
        i, c, y, x = (int(draw.integers(size)) for size in picture.shape)
        up, down = picture[i : i + 1].clone(), picture[i : i + 1].clone()
        up[0, c, y, x] += 1e-6
        down[0, c, y, x] -= 1e-6
        with torch.no_grad():
            slope = float((net(substitute.centred(up)) - net(substitute.centred(down)))[0, label[i]]) / 2e-6
        expected = min(1.0, max(0.0, float(picture[i, c, y, x]) + 0.1 * np.sign(slope)))
        assert abs(slope) < 1e-7 or float(grown[i, c, y, x]) == pytest.approx(expected)


def test_a_substitute_is_the_same_for_any_batch_and_order_and_another_for_another_seed():
    audit = replace(SMALL, rounds=1, epochs=2)
    whole, one, seven = (audit.run(subject(30, batch_size=size)) for size in (64, 1, 7))
    assert whole.rows == one.rows == seven.rows and whole.metrics == one.metrics == seven.metrics
    state = torch.random.get_rng_state()
    backwards = subject(30)
    backwards = audit.run(replace(backwards, pictures=backwards.pictures.part(np.arange(30)[::-1])))
    assert torch.equal(state, torch.random.get_rng_state()) and backwards.metrics == whole.metrics
    assert dict(zip(backwards.rows["key"], backwards.rows["prediction"])) == dict(zip(whole.rows["key"], whole.rows["prediction"]))
    assert replace(audit, seed=1).run(subject(30)).rows["key"] != whole.rows["key"]


def test_of_few_pictures_half_are_learnt_from_and_that_is_said():
    found = replace(SMALL, starts=64, rounds=2, epochs=1).run(subject(11))
    assert found.metrics["substitute/starts"] == 5 and found.metrics["substitute/queries"] == 20 and found.metrics["substitute/n"] == 6
    assert "The substitute starts from 5 pictures, not 64: the other half of them is attacked." in found.notes


def test_a_substitute_that_unlearns_fails():
    class Worse(Substitute):
        def imitations(self, victim, first, at_a_time):
            yield victim
            yield Classifier(lambda p, k: -victim(p, k), CLASSES, dtype=torch.float64)

    [failure] = Worse(starts=4, rounds=1).run(subject(20)).failures
    assert failure.startswith("The substitute agrees with the model less after 1 rounds (0 of 16 pictures) than before the first (16)")
    assert Worse(starts=4, rounds=1).run(subject(8)).failures == (), "4 against 0 may be chance: p = 1/16"


def test_bad_input_is_named(tmp_path):
    for make, words in (
        (lambda: QueryCurve(attack=Sign()), "QueryCurve.attack is Sign, which uses gradients"),
        (lambda: QueryCurve(attack=NES(), at=(10, 5)), "rising numbers of queries"),
        (lambda: SourceModel(model=TinyCLIP(), checkpoint="weights.pt"), "give the absolute path"),
        (lambda: QueryCurve(attack=NES(target=4)).check(4, False), "NES.target is 4; accepted: a class, 0 to 3"),
        (lambda: Transfer(attack=NES(target=7)).check(4, False), "NES.target is 7"),
        (lambda: QueryCurve(attack=NES()).check(1, False), "there are 1 classes"),
        (lambda: Substitute().run(subject(1)), "at least 2 pictures"),
        (lambda: Substitute(lam=0), "lam"),
        (lambda: Transfer(attack=Sign(), source=SourceModel(model=TinyCLIP(), checkpoint=str(tmp_path / "none.pt"))).check(4, False),
         "none.pt"),
    ):
        with pytest.raises(InputError, match=words):
            make()
    model, encoder = tiny(0)
    large = SourceModel(model=replace(model, image_size=64), checkpoint="/nowhere")
    with zero_shot(encoder, NAMES, ("{}",)) as classifier, pytest.raises(InputError, match="takes pictures of 64 pixels; accepted: 32"):
        Transfer(attack=Sign(), source=large).run(clip_subject(classifier, encoder))
    assert QueryCurve(attack=NES()).label == "NES by queries" and Transfer(attack=Sign(), name="x").label == "x transferred"
    assert list(itertools.chain(QueryCurve(attack=NES()).needs(), Transfer(attack=Sign()).needs())) == []
