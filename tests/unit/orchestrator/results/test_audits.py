"""Which audits must not be believed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from orchestrator.results.audit_names import at_eps, audit_names, names, radius
from orchestrator.results.audits import AuditResult, named, not_believable, surely_more
from trainers.audit.attacks.base import Attack, Attacked, Radius
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.nes import NES
from trainers.audit.attacks.pgd import PGD
from trainers.audit.bias.corruptions import Corruptions
from trainers.audit.black_box import QueryCurve, Substitute, Transfer
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation
from trainers.audit.defences.ttc import TTC
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


@dataclass(frozen=True, kw_only=True)
class Aiming(Stand):
    id = "AimingStandIn"
    target: int | None = None


def right(count: int, first: int = 0, of: int = 100) -> dict[str, bool]:
    """Of so many pictures this count is right, from the one with this number on."""
    return {str(number): first <= number < first + count for number in range(of)}


def found(audit: Robustness, robust: float, model: str = "m") -> AuditResult:
    """Of 100 pictures so many are right, the same ones first."""
    return AuditResult(model, audit, {"robust/accuracy": robust}, right={round(audit.attack.eps, 12): right(round(robust))})


EPS = [round(number / 255, 12) for number in (1, 2, 4)]
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
    assert "which sees no gradients, leaves 25.0 % right at ε = 2/255" in sentence and "leaves 30.0 % of the same pictures" in sentence


def test_every_pair_of_attacks_with_and_without_gradients_is_compared_where_both_were_tried():
    fmn = AuditResult("m", Robustness(attack=FMN(norm="linf"), radii=(1 / 255, 4 / 255)), right={EPS[0]: right(60), EPS[2]: right(30)})
    nes = AuditResult("m", QueryCurve(attack=NES(eps=4 / 255)), right={EPS[2]: right(20)})
    (sentence,) = not_believable([fmn, nes])
    assert sentence == (
        "m: NES by queries, which sees no gradients, leaves 20.0 % right at ε = 4/255; the best attack that sees gradients leaves 30.0 % "
        "of the same pictures."
    )
    assert not_believable([fmn, replace(nes, right={EPS[2]: right(26)})]) == [], "4 pictures may be chance"
    assert not_believable([fmn, nes, found(AT[2], 10.0)]) == [], "the best one counts"
    assert not_believable([replace(fmn, audit=Robustness(attack=FMN(norm="l2"), radii=(4 / 255,))), nes]) == [], "another norm"
    half = AuditResult("m", Substitute(eps=4 / 255), right={EPS[2]: right(15, of=40)})
    (sentence,) = not_believable([fmn, half])
    assert "Substitute, which sees no gradients, leaves 37.5 % right" in sentence and "leaves 75.0 % of the same" in sentence
    aims = [Robustness(attack=Aiming(eps=4 / 255, target=target)) for target in (None, 1)]
    assert [len(not_believable([found(one, 30.0), nes])) for one in aims] == [1, 0], "one class may be out of reach"
    white = AuditResult("m", Transfer(attack=Stand(eps=4 / 255)), right={EPS[2]: right(15)})
    assert not_believable([fmn, white]) == [], "it transfers from the model itself, so it sees gradients"


def test_an_attack_that_knows_the_defence_must_not_be_weaker():
    oblivious = Robustness(attack=Stand(), defence=JPEG())
    adaptive = replace(oblivious, mode="adaptive")
    assert not_believable([found(oblivious, 40.0), found(adaptive, 40.0), found(AT[0], 10.0)]) == []
    (sentence,) = not_believable([found(oblivious, 40.0), found(adaptive, 50.0)])
    assert "leaves 40.0 % right at ε = 1/255, the attack that knows the defence 50.0 %" in sentence
    assert not_believable([found(replace(oblivious, defence=JPEG(quality=50)), 40.0), found(adaptive, 50.0)]) == []
    worst = replace(adaptive, worst=True)
    assert not_believable([found(oblivious, 40.0), replace(found(worst, 38.0), alone=right(40))]) == []
    (sentence,) = not_believable([found(oblivious, 40.0), replace(found(worst, 38.0), alone=right(50))])
    assert sentence.endswith("leaves 40.0 % right at ε = 1/255, the attack that knows the defence 50.0 % by itself."), "not hidden"


def test_what_counts_is_a_difference_beyond_chance():
    assert not surely_more(right(44), right(40)), "4 against 0: p = 1/16"
    assert surely_more(right(45), right(40)), "5 against 0: p = 1/32"
    assert not surely_more(right(45, of=44), right(40)), "the 45th was attacked by one alone"
    mixed = right(45, first=10)  # 15 gained, 10 lost
    assert not surely_more(mixed, right(40)) and not surely_more(right(40), mixed)


def test_failures_of_an_audit_itself_are_told():
    assert not_believable([replace(found(AT[0], 5.0), failures=("it does not work.",))]) == ["m: it does not work."]
    assert not_believable([replace(found(AT[0], 5.0), failures=("m: it was not made",))]) == ["m: it was not made"], "named once"
    own = replace(found(AT[0], 5.0), failures=("Stand: it does not work.",))
    assert not_believable([own]) == ["m: Stand, ε = 1/255: it does not work."]


def test_audits_with_one_label_are_called_by_what_differs():
    one, many = (Robustness(attack=PGD(eps=1 / 255, steps=steps)) for steps in (1, 40))
    larger = Robustness(attack=PGD(eps=4 / 255, steps=40))
    alone = Robustness(attack=PGD(eps=1 / 255, norm="l2"))
    called = audit_names([one, many, larger, alone, many])
    assert list(called.values()) == ["PGD (steps=1)", "PGD (steps=40)", "PGD (steps=40)", "PGD L2"], "ε is told beside the name"
    assert set(audit_names([many, larger]).values()) == {"PGD"}
    both = replace(many, attack=replace(many.attack, alpha=0.01, seed=3))
    assert audit_names([one, both])[both] == "PGD (seed=3, steps=40, alpha=0.01)"


def test_defences_with_one_label_are_called_by_what_differs():
    audits = [Robustness(attack=PGD(), defence=one, mode="adaptive") for one in (TTC(eps=4 / 255), TTC(eps=1 / 255), TotalVariation())]
    called = audit_names(audits)
    assert len(set(called.values())) == 3 and called[audits[2]] == "PGD on TotalVariation, adaptive"
    assert called[audits[0]] == "PGD on TTC, adaptive (eps=4/255)"
    assert len(set(names([TotalVariation(), TotalVariation(drop=0.25), Quilting(), Quilting(neighbours=3)]).values())) == 4
    assert names([TotalVariation(drop=0.4), TotalVariation()])[TotalVariation(drop=0.4)] == "TotalVariation (drop=0.4)"
    outer, inner = (Robustness(attack=PGD(), eot=replace(Robustness(attack=PGD()).eot, draws=n)) for n in (2, 3))
    assert set(audit_names([outer, inner]).values()) == {"PGD (draws=2)", "PGD (draws=3)"}


def test_results_are_named_together():
    first, second = (found(Robustness(attack=PGD(steps=steps)), 50.0) for steps in (1, 2))
    assert [one.title for one in named([first, second])] == ["PGD (steps=1), ε = 4/255", "PGD (steps=2), ε = 4/255"]
    failing = replace(first, failures=("PGD: it does not work.",))
    assert not_believable(named([failing, second])) == ["m: PGD (steps=1), ε = 4/255: it does not work."]


def test_audits_at_two_eps_have_two_names():
    for audit in (Robustness(attack=PGD(eps=2 / 255)), QueryCurve(attack=NES(eps=2 / 255)), Substitute(eps=2 / 255)):
        assert at_eps(audit) == ", ε = 2/255"
    for audit in (Robustness(attack=FMN(), radii=(0.1,)), Corruptions()):
        assert at_eps(audit) == "", "no ε of its own"


@pytest.mark.parametrize(("eps", "text"), [(4 / 255, "4/255"), (0.5 / 255, "0.5/255"), (0.016, "0.016"), (3.0, "3"), (1.0, "255/255")])
def test_radii_are_written_as_people_do(eps: float, text: str):
    assert radius(eps) == text
