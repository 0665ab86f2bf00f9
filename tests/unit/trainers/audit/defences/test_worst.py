"""An adaptive attack that takes, for each picture, the worse of its own result and the oblivious attack's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from tests.unit.trainers.audit.quarters import network, quarters
from trainers.audit.attacks.base import Attack, Attacked, Distance
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.pgd import PGD
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import as_bytes
from trainers.audit.defences.adaptive import EOT
from trainers.audit.defences.base import Defence
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.robustness import Look, Robustness, looked_at, worse

NONE: Any = None
COUNT, EPS = 40, 0.055


@cache
def subject() -> Subject:
    picture, label = quarters(COUNT)
    pictures = Pictures(tuple(f"picture {number}" for number in range(COUNT)), as_bytes(picture).numpy(), label.numpy())
    return Subject(NONE, network(), pictures, tuple("abcd"))


def three(attack: Attack, defence: Defence) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, float]]:
    """The rows of the oblivious attack, of the adaptive one, and of the worst of both; its metrics."""
    radii = (EPS,) if attack.minimal else ()
    plain = Robustness(attack=attack, defence=defence, eot=EOT(draws=2), radii=radii)
    knowing = replace(plain, mode="adaptive")
    found = [audit.run(subject()) for audit in (plain, knowing, replace(knowing, worst=True))]
    return (*(dict(one.rows) for one in found), dict(found[2].metrics))  # type: ignore[return-value]


def right(rows: dict[str, Any], column: str = "prediction") -> np.ndarray:
    return np.array(rows[column]) == np.array(rows["y"])


@pytest.mark.parametrize(("bits", "steps"), [(1, 1), (2, 1)])
def test_a_picture_stands_before_a_fixed_defence_if_it_stands_against_both_attacks(bits: int, steps: int) -> None:
    oblivious, knowing, both, metrics = three(PGD(eps=0.07, steps=steps), BitDepth(bits=bits))
    assert (right(both) == (right(oblivious) & right(knowing))).all()
    each = [(one & ~other).any() for one, other in ((right(oblivious), right(knowing)), (right(knowing), right(oblivious)))]
    assert all(each), "neither attack is the worse one for every picture"
    assert both["alone_prediction"] == knowing["prediction"]
    assert metrics["robust/alone"] == pytest.approx(100 * right(knowing).mean())
    assert metrics["robust/accuracy"] == pytest.approx(100 * (right(oblivious) & right(knowing)).mean())
    asked = np.array(oblivious["queries"]) + np.array(knowing["queries"])
    assert np.array(both["queries"]).tolist() == (asked + 2 * (asked > 0)).tolist(), "one question for each of the two results"


def test_of_two_minimal_changes_that_turn_a_picture_the_smaller_one_counts() -> None:
    oblivious, knowing, both, _ = three(FMN(steps=15, norm="linf"), BitDepth(bits=4))
    size = {name: np.where(rows["success"], rows["linf"], np.inf) for name, rows in (("o", oblivious), ("k", knowing), ("b", both))}
    np.testing.assert_allclose(size["b"], np.minimum(size["o"], size["k"]))
    assert ((size["o"] < size["k"]).any() or (size["k"] < size["o"]).any()) and np.isfinite(size["b"]).any()


def test_what_is_taken_of_a_random_defence_is_judged_as_where_it_comes_from() -> None:
    """The attacker chooses by draws of its own, and the picture meets the same draw of the defence as in the attack that it is from."""
    oblivious, knowing, both, _ = three(PGD(eps=0.09, steps=2), Crops(crops=2, share=0.7))
    for number, (size, ours, theirs) in enumerate(zip(both["l2"], knowing["l2"], oblivious["l2"])):
        source = knowing if size == ours else oblivious
        assert size in (ours, theirs) and both["prediction"][number] == source["prediction"][number]
    assert both["alone_prediction"] == knowing["prediction"]
    assert both["l2"] != knowing["l2"] and both["l2"] != oblivious["l2"], "some of each"


def test_worse_is_what_fools_more_often_then_by_more_or_nearer() -> None:
    """Against a loop over the pictures."""
    draw = rng("worse")
    one, two = (Look(*(torch.from_numpy(draw.integers(0, 4, 400) / 3) for _ in range(3))) for _ in range(2))
    for minimal in (False, True):
        found = worse(one, two, minimal).tolist()
        for answer, first, second in zip(found, zip(*(x.tolist() for x in one)), zip(*(x.tolist() for x in two))):
            if minimal and min(first[0], second[0]) > 0.5:
                assert answer == (second[2] < first[2])
            else:
                assert answer == (second[:2] > first[:2])


def test_a_look_counts_the_draws_that_fool_and_none_of_them_is_the_attacks_or_the_defences() -> None:
    label = torch.from_numpy(subject().pictures.label_N)
    picture, keys, defence, eot = quarters(COUNT)[0], subject().pictures.keys, Crops(crops=1, share=0.5), EOT(draws=7)
    found = looked_at(defence, network(), eot, picture, label, keys, label.double())
    draws = [[EOT(seed=1).draw(defence, key, number) for key in keys] for number in range(7)]
    logits = torch.stack([defence.classify(network(), picture, keys, one) for one in draws])
    others = logits.scatter(2, label.expand(7, -1)[..., None], float("-inf")).amax(2)
    margins = others - logits.gather(2, label.expand(7, -1)[..., None])[..., 0]
    torch.testing.assert_close(found.fooled_B, (logits.argmax(2) != label).double().mean(0))
    torch.testing.assert_close(found.margin_B, margins.mean(0))
    assert 0 < float(found.fooled_B.mean()) < 1 and len(set(found.fooled_B.tolist())) > 2
    fixed = looked_at(BitDepth(), network(), eot, picture, label, keys, label.double())
    assert set(fixed.fooled_B.tolist()) <= {0.0, 1.0}


@dataclass(frozen=True, kw_only=True)
class Useless(Attack):
    """Changes nothing where the classifier is a defended one, and adds ε where it is not."""

    eps: Distance = 0.4
    norm: ClassVar[str] = "linf"

    def perturb(self, classifier, picture_BCHW, label_B, keys_B) -> Attacked:
        moved = (picture_BCHW + self.eps * (classifier is subject().classifier) * (1 - 2 * (picture_BCHW > 0.5).double())).clamp(0, 1)
        return Attacked(moved, torch.ones_like(label_B), torch.zeros(len(label_B)))


def test_an_adaptive_attack_that_is_weaker_by_itself_is_told_apart_from_the_worst_of_both() -> None:
    _, knowing, both, metrics = three(Useless(), BitDepth(bits=5))
    assert metrics["robust/alone"] == pytest.approx(100 * right(knowing).mean()) and metrics["robust/accuracy"] < metrics["robust/alone"]
    assert (right(both, "alone_prediction") == right(knowing)).all()


def test_of_an_attack_without_an_eps_no_accuracy_alone_is_told_for_its_changes_are_of_any_size() -> None:
    *_, metrics = three(FMN(steps=5), BitDepth(bits=5))
    assert "robust/alone" not in metrics and f"robust/at_{EPS:g}" in metrics


def test_only_an_adaptive_attack_has_something_to_compare() -> None:
    with pytest.raises(InputError, match=r"Robustness\.worst is true, and Robustness\.mode is oblivious; accepted: adaptive"):
        Robustness(attack=PGD(), defence=BitDepth(), worst=True)
