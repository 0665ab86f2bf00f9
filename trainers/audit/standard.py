"""The audits by the names that the command line has for them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.synthetic import World
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.auto_attack import AutoAttack
from trainers.audit.attacks.base import Attack
from trainers.audit.attacks.carlini_wagner import CarliniWagner
from trainers.audit.attacks.deepfool import DeepFool
from trainers.audit.attacks.fgsm import FGSM
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.ifgsm import IFGSM
from trainers.audit.attacks.nes import NES
from trainers.audit.attacks.pgd import PGD
from trainers.audit.attacks.square import Square
from trainers.audit.base import Audit
from trainers.audit.bias.attribute_pairs import AttributePairs
from trainers.audit.bias.balance import Balance
from trainers.audit.bias.corruptions import Corruptions
from trainers.audit.bias.cue_conflict import CueConflict
from trainers.audit.bias.label_hierarchy import LabelHierarchy
from trainers.audit.bias.name_that_dataset import NameThatDataset
from trainers.audit.bias.poison_tail import PoisonTail
from trainers.audit.black_box import QueryCurve, Substitute
from trainers.audit.defences.base import Defence
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation
from trainers.audit.defences.ttc import TTC
from trainers.audit.explain.integrated import IntegratedGradients
from trainers.audit.explain.lime import LIME
from trainers.audit.explain.rollout import AttentionRollout
from trainers.audit.localisation import Localisation
from trainers.audit.planted import Planted
from trainers.audit.robustness import Robustness
from trainers.audit.trigger_filter import TriggerFilter


@dataclass(frozen=True)
class Asked:
    """What the audits depend on."""

    eps: tuple[float, ...]
    """Radii of the L∞ attacks, rising."""
    size: int = 32
    """Side of the pictures in pixels."""
    classes: int = 2
    world: World | None = None
    """The procedural world of the test pictures."""
    sets: tuple[EvalSet, ...] = ()
    """The further sets of pictures on which the sweep measures its models."""


def _at_each(attack: Callable[[float], Attack], asked: Asked) -> list[Audit]:
    return [Robustness(attack=attack(eps)) for eps in asked.eps]


def _minimal(attack: Attack, asked: Asked) -> list[Audit]:
    """Read off at the given ε; in L2 at those of the same length, ε times the square root of the number of pixels' values."""
    scale = 1.0 if attack.norm == "linf" else (3 * asked.size**2) ** 0.5
    return [Robustness(attack=attack, radii=tuple(eps * scale for eps in asked.eps))]


def _defended(defence: Defence, asked: Asked) -> list[Audit]:
    """At the middle ε, attacked without knowledge of the defence and with it, there by the worse of both results for each picture. The
    attacks do not stop where the classifier they look at is just fooled, for the one that judges is another, or draws anew."""
    oblivious = Robustness(attack=PGD(eps=asked.eps[len(asked.eps) // 2], steps=10, stop=False), defence=defence)
    return [oblivious, replace(oblivious, mode="adaptive", worst=True)]


def _attributes(asked: Asked) -> list[Audit]:
    if asked.world is None:
        raise InputError(
            "--only names 'attributes', which draws its pairs in the procedural world, and the sweep's test pictures are others; "
            "accepted: AttributePairs(pairs=…) among the AUDITS of the sweep's file."
        )
    return [AttributePairs(world=asked.world)]


def _datasets(asked: Asked) -> list[Audit]:
    if not asked.sets:
        raise InputError(
            "--only names 'datasets', which tells the sets of pictures apart on which the sweep measures its models, and it has one alone; "
            "accepted: further sets in evaluate.evaluators, or NameThatDataset(sets=…) among the AUDITS of the sweep's file."
        )
    return [NameThatDataset(sets=asked.sets, over=over) for over in ("pixels", "features")]


AUDITS: dict[str, Callable[[Asked], list[Audit]]] = {
    "fgsm": lambda asked: _at_each(lambda eps: FGSM(eps=eps), asked),
    "ifgsm": lambda asked: _at_each(lambda eps: IFGSM(eps=eps), asked),
    "pgd": lambda asked: _at_each(lambda eps: PGD(eps=eps), asked),
    "apgd": lambda asked: _at_each(lambda eps: APGD(eps=eps), asked),
    "apgd-dlr": lambda asked: _at_each(lambda eps: APGD(eps=eps, loss="dlr"), asked),
    "apgd-t": lambda asked: _at_each(lambda eps: APGD(eps=eps, loss="targeted_dlr"), asked),
    "autoattack": lambda asked: _at_each(lambda eps: AutoAttack(eps=eps), asked),
    "deepfool": lambda asked: _minimal(DeepFool(), asked),
    "cw": lambda asked: _minimal(CarliniWagner(), asked),
    "fmn": lambda asked: _minimal(FMN(norm="linf"), asked),
    "fmn-l2": lambda asked: _minimal(FMN(norm="l2"), asked),
    "square": lambda asked: [Robustness(attack=Square(eps=asked.eps[len(asked.eps) // 2], queries=500))],
    "nes": lambda asked: [QueryCurve(attack=NES(eps=asked.eps[-1]))],
    "nes-top-k": lambda asked: [QueryCurve(attack=NES(eps=asked.eps[-1], sees="top_k", sigma=0.01))],
    "nes-labels": lambda asked: [QueryCurve(attack=NES(eps=asked.eps[-1], sees="labels", sigma=0.02, probe_radius=0.02))],
    "substitute": lambda asked: [Substitute(eps=asked.eps[-1])],
    "jpeg": lambda asked: _defended(JPEG(), asked),
    "bits": lambda asked: _defended(BitDepth(), asked),
    "crops": lambda asked: _defended(Crops(), asked),
    "tv": lambda asked: _defended(TotalVariation(), asked),
    "quilting": lambda asked: _defended(Quilting(), asked),
    "ttc": lambda asked: _defended(TTC(), asked),
    "filters": lambda asked: [TriggerFilter(defence=one) for one in (JPEG(), BitDepth(), Crops(), TotalVariation(), Quilting(), TTC())],
    "lime": lambda asked: [Localisation(explainer=LIME())],
    "gradients": lambda asked: [Localisation(explainer=IntegratedGradients())],
    "rollout": lambda asked: [Localisation(explainer=AttentionRollout())],
    "planted": lambda asked: [Planted()],
    "corruptions": lambda asked: [Corruptions()],
    "cues": lambda asked: [CueConflict()],
    "balance": lambda asked: [Balance()],
    "tail": lambda asked: [PoisonTail()],
    "hierarchy": lambda asked: [LabelHierarchy()],
    "datasets": _datasets,
    "attributes": _attributes,
}
"""Name → the audits that it stands for."""
USUAL = ("pgd", "apgd", "fmn", "square", "jpeg", "filters", "lime", "planted", "corruptions", "balance")
"""What is done if nothing is named: minutes on two cores for small pictures."""


def named_audits(names: Sequence[str], asked: Asked) -> list[Audit]:
    """The audits with these names, or the usual ones. InputError for a name that there is not."""
    for name in names:
        if name not in AUDITS:
            near = difflib.get_close_matches(name, AUDITS, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"--only names {name!r}; accepted: {', '.join(AUDITS)}.{guess}")
    return [audit for name in dict.fromkeys(names or USUAL) for audit in AUDITS[name](asked)]
