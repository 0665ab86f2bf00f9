"""AutoAttack (Croce and Hein 2020), the standard set: four attacks without parameters to choose, one after another.

Shape suffixes: b pictures that still stand, B pictures, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Count
from trainers.audit.attacks.apgd import APGD, NEEDS
from trainers.audit.attacks.base import gradient, is_zero, lengths
from trainers.audit.attacks.fab import FAB
from trainers.audit.attacks.square import Square
from trainers.audit.attacks.work import Bounded, Search, Work
from trainers.audit.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Bounded):
    """APGD with cross-entropy, APGD with the targeted DLR loss, FAB-T and Square, each on the pictures that all before it have not fooled.

    With fewer than 4 classes the targeted DLR loss is not defined, and its attack is left out; with fewer wrong classes than `targets`
    all of them are taken.
    """

    targets: Count = 9
    """target classes of APGD and FAB"""
    steps: Count = 100
    """steps of APGD and FAB"""
    queries: Count = 5000
    """queries of Square"""

    def attacks(self, classes: int) -> tuple[Search, ...]:
        """The attacks for a classifier with this many classes, in order."""
        plain = APGD(eps=self.eps, norm=self.norm, seed=self.seed, loss="ce", steps=self.steps, targets=self.targets)
        return (
            plain,
            *((replace(plain, loss="targeted_dlr"),) if classes >= NEEDS["targeted_dlr"] else ()),
            FAB(norm=self.norm, seed=self.seed, steps=self.steps, targets=self.targets, enough=self.eps),
            Square(eps=self.eps, norm=self.norm, seed=self.seed, queries=self.queries),
        )

    def search(self, work: Work) -> None:
        for number, attack in enumerate(self.attacks(work.classifier.classes)):
            at_b = work.standing_b
            if not len(at_b):
                return
            part = work.part(at_b)
            attack.search(part)
            work.add_cost(part, at_b)
            near_b = lengths(part.best_BCHW - part.start_BCHW, self.norm) <= self.eps if attack.minimal else torch.ones_like(part.fooled_B)
            fooled_b = part.fooled_B & near_b
            chosen_b = fooled_b if number else torch.ones_like(fooled_b)  # of those that stand, the first attack's best tries
            work.keep(part.best_BCHW[chosen_b], part.score_B[chosen_b], fooled_b[chosen_b], at_b[chosen_b])

    def warnings(self, classifier: Classifier, picture_BCHW: Tensor, keys_B: Sequence[str]) -> tuple[str, ...]:
        """Sentences: why the result would say too little of this classifier. Empty if nothing speaks against it."""
        picture_BCHW = picture_BCHW.detach().to(classifier.device, classifier.dtype)
        with torch.enable_grad():
            leaf_BCHW = picture_BCHW.clone().requires_grad_()
            logit_BK = classifier(leaf_BCHW, keys_B)
            loss_B = F.cross_entropy(logit_BK, logit_BK.detach().argmax(1), reduction="none")
            zero_B = is_zero(gradient(loss_B, leaf_BCHW)) if logit_BK.requires_grad else torch.ones_like(loss_B, dtype=torch.bool)
        with torch.no_grad():
            logit_BK, again_BK = logit_BK.detach(), classifier(picture_BCHW, keys_B)
        found = []
        if not torch.allclose(logit_BK, again_BK, rtol=1e-3 if classifier.dtype == torch.float16 else 1e-5, atol=1e-6):
            found.append("The classifier's outputs differ between two calls: attack its mean over several draws (EOT).")
        row_B = logit_BK.sum(1)
        if logit_BK.min() >= 0 and logit_BK.max() <= 1 and (row_B - 1).abs().max() < 1e-3:
            found.append("The classifier's outputs look like probabilities: give the logits before the softmax.")
        if zero := int(zero_B.sum()):
            found.append(
                f"The gradient of the cross-entropy is exactly 0 in every pixel of {zero} of {len(zero_B)} pictures: attacks that use it "
                "cannot move there; look at those with DLR and margin losses and at Square."
            )
        if classifier.classes < NEEDS["targeted_dlr"]:
            found.append(
                f"The classifier has {classifier.classes} classes, and the targeted DLR loss needs {NEEDS['targeted_dlr']}: its attack is "
                "left out."
            )
        elif self.targets >= classifier.classes:
            found.append(
                f"AutoAttack.targets is {self.targets}, and there are {classifier.classes - 1} wrong classes: all of them are attacked."
            )
        return tuple(found)
