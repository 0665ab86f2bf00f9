"""What an audit finds of a picture depends on the picture and its key alone: not on the size of the batches, the order, or the others.

The network is in float64, so that rounding in batches of different sizes decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.trainers.audit.quarters import CLASSES, network, quarters
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.auto_attack import AutoAttack
from trainers.audit.attacks.base import Attack
from trainers.audit.attacks.carlini_wagner import CarliniWagner
from trainers.audit.attacks.deepfool import DeepFool
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.nes import NES
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.square import Square
from trainers.audit.base import Audit, Pictures, Subject
from trainers.audit.black_box import QueryCurve, Transfer
from trainers.audit.classifier import Classifier, as_bytes
from trainers.audit.defences.adaptive import EOT
from trainers.audit.defences.base import Defence
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation
from trainers.audit.defences.ttc import TTC
from trainers.audit.robustness import Robustness
from trainers.audit.trigger_filter import TriggerFilter

NONE: Any = None
COUNT, EPS, LONG, WIDE = 13, 0.055, 0.6, 0.1
"""How many pictures; ε of both norms, and a larger one for attacks that only ask: some pictures stand, and some do not."""

BOUNDED: list[Attack] = [
    FGSM(eps=EPS), IFGSM(eps=EPS), IFGSM(eps=EPS, target=1), PGD(eps=EPS, steps=4, restarts=3), PGD(eps=EPS, stop=False, restarts=2),
    PGD(eps=LONG, norm="l2", steps=4, restarts=2), PGD(eps=EPS, steps=4, towards="likeliest"), APGD(eps=EPS, steps=12, restarts=2),
    APGD(eps=EPS, steps=12, loss="dlr"), APGD(eps=EPS, steps=12, loss="targeted_dlr"), APGD(eps=LONG, norm="l2", steps=12),
    AutoAttack(eps=EPS, steps=8, queries=15), Square(eps=1.8 * WIDE, queries=40), Square(eps=2.2, norm="l2", queries=40),
]  # fmt: skip
MINIMAL: list[Attack] = [
    FAB(steps=6), FAB(steps=6, norm="linf"), DeepFool(), FMN(steps=15), FMN(steps=15, norm="linf"), CarliniWagner(searches=3, steps=30)
]  # fmt: skip
DEFENCES: list[Defence] = [JPEG(quality=90), BitDepth(bits=5), Crops(crops=3), TotalVariation(steps=20), TTC(tau=100.0)]
BANKED = Quilting(neighbours=3, size=40)
"""Its bank is cut from the other pictures, so what it makes of a picture may depend on which these are, though not on their order."""


def defended(defence: Defence) -> list[Audit]:
    attack = PGD(eps=EPS, steps=2)
    return [*(Robustness(attack=attack, defence=defence, mode=mode, eot=EOT(draws=2)) for mode in ("oblivious", "adaptive")),
            Robustness(attack=attack, defence=defence, mode="adaptive", eot=EOT(draws=2), worst=True),
            TriggerFilter(defence=defence)]  # fmt: skip


BY_THEMSELVES: list[Audit] = [
    *(Robustness(attack=attack) for attack in BOUNDED), *(Robustness(attack=attack, radii=(EPS,)) for attack in MINIMAL),
    *(audit for defence in DEFENCES for audit in defended(defence)),
    *(QueryCurve(attack=NES(eps=WIDE, queries=130, samples=20, lr=0.05, target=target)) for target in (None, 2)),
    Transfer(attack=PGD(eps=EPS, steps=4)),
]  # fmt: skip
AMONG_OTHERS: list[Audit] = [
    *defended(BANKED), QueryCurve(attack=NES(eps=WIDE, lr=0.05, queries=150, samples=20, sees="top_k", k=2, sigma=0.02)),
    QueryCurve(attack=NES(eps=WIDE, lr=0.05, queries=300, samples=6, probes=5, sees="labels", sigma=0.05, probe_radius=0.05)),
]  # fmt: skip
"""These start from, or are made of, other pictures of the set."""


@cache
def bare() -> Classifier:
    return network()


def subject() -> Subject:
    picture, label = quarters(COUNT)
    image = as_bytes(picture).numpy()
    marked = image.copy()
    marked[:, :2, :2] = 255
    plain = bare()
    classifier = Classifier(lambda x, keys: plain(x, keys), CLASSES, dtype=plain.dtype, features=lambda x: plain(x, [""] * len(x)))
    pictures = Pictures(tuple(f"picture {number}" for number in range(COUNT)), image, label.numpy(), marked)
    return Subject(NONE, classifier, pictures, tuple("abcd"), target=0)


def by_key(audit: Audit, batch_size: int, chosen: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """The rows of these pictures, in this order."""
    one = subject()
    if chosen is not None:
        one = replace(one, pictures=one.pictures.part(chosen))
    rows: Mapping[str, Any] = audit.run(replace(one, batch_size=batch_size)).rows
    return {key: {name: values[number] for name, values in rows.items()} for number, key in enumerate(rows["key"])}


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Equal, lengths of changes up to rounding in float64."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, float) and not math.isnan(value):
            assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name
        else:
            assert found[name] == value or value != value, (name, found[name], value)


def name(audit: Any) -> str:
    return audit.label


ORDER = np.random.default_rng(5).permutation(COUNT)


@pytest.mark.parametrize("audit", [*BY_THEMSELVES, *AMONG_OTHERS], ids=name)
def test_neither_batches_nor_order_change_a_row(audit: Audit) -> None:
    whole = by_key(audit, COUNT)
    assert len(whole) >= COUNT // 2
    for batch_size, chosen in ((1, None), (7, ORDER)):
        again = by_key(audit, batch_size, chosen)
        assert again.keys() == whole.keys()
        for key, row in whole.items():
            same(again[key], row)


def test_neither_batches_nor_order_change_what_an_attack_says_against_its_result() -> None:
    """A third of the pictures have no gradient, and the sentence counts them."""
    plain, one = bare(), subject()
    flat = Classifier(lambda x, keys: plain(x, keys).where(torch.tensor([int(key[8:]) % 3 > 0 for key in keys])[:, None], torch.zeros(4)),
                      CLASSES, dtype=plain.dtype)  # fmt: skip
    audit = Robustness(attack=AutoAttack(eps=EPS, steps=2, queries=2))
    cases = [replace(one, classifier=flat, batch_size=1), replace(one, classifier=flat, pictures=one.pictures.part(ORDER))]
    said = [audit.run(case).notes for case in cases]
    assert said[0] == said[1] and "5 of 13 pictures" in " ".join(said[0])


@pytest.mark.parametrize("audit", BY_THEMSELVES, ids=name)
def test_other_pictures_change_no_row(audit: Audit) -> None:
    whole, few = by_key(audit, COUNT), by_key(audit, 4, np.array([8, 3, 11, 2, 5]))
    assert few and few.keys() <= whole.keys()
    for key, row in few.items():
        same(row, whole[key])
