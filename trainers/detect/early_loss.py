"""Score from the loss in the first epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.component import Count
from datasets.errors import InputError
from trainers.detect.base import Compared, Features, Reference


@dataclass(frozen=True, kw_only=True)
class EarlyLoss(Compared):
    """A pair's mean contrastive loss over the models of the first epochs. Backdoors are learnt first, so low values are suspect (after Li
    et al. 2021, "Anti-Backdoor Learning").

    The loss is computed after training with the stored checkpoints, not taken from the training batches. For pair i it is ½·[−ln
    softmax_i(s·I_i·T_j) − ln softmax_i(s·T_i·I_j)], where j runs over i and the other pairs of the reference and s is the model's logit
    scale.
    """

    first: Count = 10
    """How many epochs to use, counted from the first; fewer if the training had fewer."""
    sign = -1

    def checkpoints(self, stored: Sequence[int]) -> Sequence[int]:
        early = [epoch for epoch in stored if 1 <= epoch <= self.first]
        if not early:
            raise InputError("EarlyLoss needs the checkpoints of a training's first epochs, and the model that scores has none.")
        return early

    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        import torch

        others, place_B = reference.pairs, reference.places(pairs)
        image_BD, text_BD, image_MD, text_MD = (side("unit") for side in (pairs.image, pairs.text, others.image, others.text))
        own_B = pairs.logit_scale * (image_BD * text_BD).sum(dim=1)
        inside = np.flatnonzero(place_B >= 0)
        total_B = torch.zeros_like(own_B)
        for query_BD, other_MD in ((image_BD, text_MD), (text_BD, image_MD)):
            logit_BM = pairs.logit_scale * query_BD @ other_MD.T
            logit_BM[inside, place_B[inside]] = own_B[inside]
            beside_B = torch.where(torch.from_numpy(place_B >= 0).to(own_B.device), -torch.inf, own_B)  # count the pair itself only once
            total_B += torch.logaddexp(logit_BM.logsumexp(dim=1), beside_B) - own_B
        return (total_B / 2).cpu().numpy()
