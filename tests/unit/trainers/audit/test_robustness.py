"""Robustness: its rows, and when noise shows that the attack does not work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats

from datasets.errors import InputError
from trainers.audit.attacks.base import Attack, Attacked, Distance
from trainers.audit.attacks.patch import AdversarialPatch
from trainers.audit.base import Pictures, Subject
from trainers.audit.black_box import QueryCurve, Transfer
from trainers.audit.classifier import Classifier
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.robustness import Robustness
from trainers.audit.shares import beyond_chance
from trainers.audit.tables import COLUMNS


@dataclass(frozen=True, kw_only=True)
class Lazy(Attack):
    """Changes nothing, and says that it was asked once."""

    eps: Distance = 0.1
    black_box: ClassVar[bool] = True

    def perturb(self, classifier, picture_BCHW, label_B, keys_B) -> Attacked:
        return Attacked(picture_BCHW, torch.ones_like(label_B), torch.full((len(label_B),), float("nan")))


@dataclass(frozen=True, kw_only=True)
class Minimal(Lazy):
    """Says that it looks for the smallest change."""

    minimal: ClassVar[bool] = True


def rough(count: int, wrong: int = 0) -> Subject:
    """Grey pictures of class 0, of which a classifier takes those for class 1 that some pixel lifts by more than 0.05. The last `wrong`
    are of class 1 all the same."""
    flat = Classifier(lambda p, _: torch.stack([p.new_zeros(len(p)), p.amax((1, 2, 3)) - p.new_tensor(128 / 255 + 0.05)], 1), 2)
    label_N = np.array([0] * count + [1] * wrong)
    keys = tuple(map(str, range(count + wrong)))
    pictures = Pictures(keys, np.full((count + wrong, 4, 4, 3), 128, np.uint8), label_N)
    return Subject(None, flat, pictures, ("a", "b"), checkpoint="abc/1")  # type: ignore[arg-type]


def test_an_attack_fails_where_noise_is_better_beyond_chance_only():
    [failure] = Robustness(attack=Lazy(eps=0.1)).run(rough(5, wrong=5)).failures
    said = "leaves 50.0 % of the pictures right, random noise of the same size 0.0 %: the attack does not work."
    assert failure == f"Lazy: the attack {said}", "5 against 0: p = 1/32"
    assert Robustness(attack=Lazy(eps=0.1)).run(rough(4, wrong=5)).failures == (), "4 against 0: p = 1/16"
    assert Robustness(attack=Lazy(eps=0.04)).run(rough(5)).failures == (), "noise does not turn them either"


def test_a_minimal_attack_is_compared_with_noise_of_each_radius():
    audit = Robustness(attack=Minimal(), radii=(0.04, 0.06, 0.2))
    found = audit.run(rough(6))
    assert [found.metrics[f"robust/at_{eps}"] for eps in audit.radii] == [100, 100, 100]
    assert [found.metrics[f"robust/noise_at_{eps}"] for eps in audit.radii] == [100, 0, 0]
    assert found.rows["noise_size"] == [0.06] * 6 and found.metrics["robust/noise"] == 100, "noise of its own size, 0, turns none"
    assert [failure.split(" right")[1][:13] for failure in found.failures] == [" within 0.06,", " within 0.2, "]
    assert audit.run(rough(4)).failures == ()


def test_the_sign_test_is_that_of_scipy():
    for gained, lost in ((0, 0), (4, 0), (5, 0), (0, 5), (15, 10), (30, 15), (16, 7), (17, 6)):
        tail = stats.binom.sf(gained - 1, gained + lost, 0.5)
        assert beyond_chance(gained, lost) == (tail <= 0.05)


@pytest.mark.parametrize(
    "audit",
    [Robustness(attack=Lazy()), Robustness(attack=Minimal(), radii=(0.1,)), Robustness(attack=Lazy(), defence=BitDepth()),
     QueryCurve(attack=Lazy()), Transfer(attack=Lazy())],
)  # fmt: skip
def test_all_attacks_have_the_same_columns(audit):
    rows = audit.run(rough(3)).rows
    assert list(rows) == list(COLUMNS) and {len(column) for column in rows.values()} == {3}
    for name, column in rows.items():
        assert all(value is None or type(value) is COLUMNS[name] for value in column), name
    assert rows["checkpoint"] == ["abc/1"] * 3 and rows["zero_gradient_share"] == [None] * 3
    defended = getattr(audit, "defence", None) is not None
    assert set(zip(rows["defence"], rows["mode"])) == {("BitDepth3", "oblivious") if defended else (None, None)}
    assert rows["eps"] == [None if audit.attack.minimal else 0.1] * 3


def test_a_patch_has_no_radius():
    with pytest.raises(InputError, match=r"Robustness\.attack is AdversarialPatch, which no ε bounds; .* A patch is audited by Planted"):
        Robustness(attack=AdversarialPatch())
