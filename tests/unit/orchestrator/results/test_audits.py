"""Which audits must not be believed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from orchestrator.report.audit import at_eps
from orchestrator.results.audits import AuditResult, beyond_chance, not_believable, radius
from trainers.audit.attacks.base import Attack, Attacked, Radius
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.nes import NES
from trainers.audit.attacks.pgd import PGD
from trainers.audit.bias.corruptions import Corruptions
from trainers.audit.black_box import QueryCurve, Substitute
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.robustness import Robustness


@dataclass(frozen=True, kw_only=True)
class Stand(Attack):
    """An attack that is never run."""

    id = "StandIn"
    eps: Radius = 1 / 255

    def perturb(self, classifier, picture_BCHW, label_B, keys_B) -> Attacked:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Asking(Stand):
    id = "AskingStandIn"
    black_box = True


def found(audit: Robustness, robust: float, model: str = "m") -> AuditResult:
    """Of 100 pictures so many are right, the same ones first."""
    return AuditResult(model, audit, {"robust/accuracy": robust}, right=frozenset(map(str, range(round(robust)))))


AT = [Robustness(attack=Stand(eps=eps)) for eps in (1 / 255, 2 / 255, 4 / 255)]


def test_accuracy_must_not_rise_with_eps():
    assert not_believable([found(one, robust) for one, robust in zip(AT, (80.0, 80.0, 10.0))]) == []
    assert not_believable([found(one, robust, f"m{i}") for i, (one, robust) in enumerate(zip(AT, (10.0, 50.0, 80.0)))]) == []
    (sentence,) = not_believable([found(one, robust) for one, robust in zip(reversed(AT), (20.0, 10.0, 30.0))])
    assert sentence == "m: Stand leaves 10.0 % right at ε = 2/255 and 20.0 % at ε = 4/255; it must not rise."


def test_an_attack_that_sees_gradients_must_not_be_weaker():
    asking = Robustness(attack=Asking(eps=2 / 255))
    assert not_believable([found(AT[1], 30.0), found(asking, 30.0)]) == []
    assert not_believable([found(AT[0], 30.0), found(asking, 10.0)]) == [], "another ε"
    (sentence,) = not_believable([found(AT[1], 30.0), found(asking, 25.0)])
    assert "which only asks, leaves 25.0 %" in sentence


def test_an_attack_that_knows_the_defence_must_not_be_weaker():
    oblivious = Robustness(attack=Stand(), defence=JPEG())
    adaptive = replace(oblivious, mode="adaptive")
    assert not_believable([found(oblivious, 40.0), found(adaptive, 40.0), found(AT[0], 10.0)]) == []
    (sentence,) = not_believable([found(oblivious, 40.0), found(adaptive, 50.0)])
    assert "leaves 40.0 % right at ε = 1/255, the attack that knows the defence 50.0 %" in sentence
    assert not_believable([found(replace(oblivious, defence=JPEG(quality=50)), 40.0), found(adaptive, 50.0)]) == []


def test_what_counts_is_a_difference_beyond_chance():
    few, more = found(AT[0], 40.0), found(AT[1], 44.0)
    assert not beyond_chance(more, few), "4 against 0: p = 1/16"
    assert beyond_chance(found(AT[1], 45.0), few), "5 against 0: p = 1/32"
    mixed = replace(few, right=frozenset(map(str, range(10, 55))))  # 15 gained, 10 lost
    assert not beyond_chance(mixed, few) and not beyond_chance(few, mixed)


def test_failures_of_an_audit_itself_are_told():
    assert not_believable([replace(found(AT[0], 5.0), failures=("it does not work.",))]) == ["m: it does not work."]
    assert not_believable([replace(found(AT[0], 5.0), failures=("m: it was not made",))]) == ["m: it was not made"], "named once"


def test_audits_at_two_eps_have_two_names():
    for audit in (Robustness(attack=PGD(eps=2 / 255)), QueryCurve(attack=NES(eps=2 / 255)), Substitute(eps=2 / 255)):
        assert at_eps(audit) == ", ε = 2/255"
    for audit in (Robustness(attack=FMN(), radii=(0.1,)), Corruptions()):
        assert at_eps(audit) == "", "no ε of its own"


@pytest.mark.parametrize(("eps", "text"), [(4 / 255, "4/255"), (0.5 / 255, "0.5/255"), (0.016, "0.016"), (3.0, "3"), (1.0, "255/255")])
def test_radii_are_written_as_people_do(eps: float, text: str):
    assert radius(eps) == text
