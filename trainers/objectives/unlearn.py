"""MMCL on some pairs of a batch, while the others are pushed apart. Shape suffixes: B this rank's rows, N all ranks', D features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from datasets.component import Positive
from trainers import distributed
from trainers.objectives.base import Features, Objective

if TYPE_CHECKING:
    from torch import Tensor

Cosine = Annotated[float, Interval(ge=-1, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Unlearn(Objective):
    """MMCL(K) + weight · mean over i in S of max(0, Iᵢ·Tᵢ − margin).

    S are the pairs of the whole batch with `batch["suspect"]` = 1, K the others. MMCL is that of a batch that has the pairs of K alone.
    A pair of S with a cosine below `margin` has no gradient: it is apart. A term without a pair is left out.
    """

    weight: Positive = 1.0
    """of pushing pairs apart"""
    margin: Cosine = 0.0
    """cosine of picture and caption that pairs are pushed down to"""
    two_views = False

    def loss(self, model: Callable[[Any], Features], batch: Any) -> dict[str, Tensor]:
        """Parts: mmcl; unlearn (before its weight)."""
        f = model(batch)
        suspect_B = batch["suspect"] == 1
        suspect_N = distributed.gather_rows(suspect_B.long()) == 1
        suspects, ranks = int(suspect_N.sum()), len(suspect_N) // len(suspect_B)
        parts: dict[str, Tensor] = {}
        total = 0 * f["logit_scale"]  # so that it has a gradient in every batch, as averaging over ranks asks for
        if suspects < len(suspect_N):
            own, every = ~suspect_B, ~suspect_N
            summed = _matching(f["image"], f["text"], f["logit_scale"], own, every) + _matching(
                f["text"], f["image"], f["logit_scale"], own, every)  # fmt: skip
            parts["mmcl"] = summed / 2 * ranks / (len(suspect_N) - suspects)
            total = total + parts["mmcl"]
        if suspects:
            above_B = ((f["image"] * f["text"]).sum(dim=1) - self.margin).clamp(min=0)
            parts["unlearn"] = above_B[suspect_B].sum() * ranks / suspects
            total = total + self.weight * parts["unlearn"]
        return {"loss": total, **parts}


def _matching(query_BD: Tensor, key_BD: Tensor, scale: Tensor, own_B: Tensor, all_N: Tensor) -> Tensor:
    """Summed cross-entropy of this rank's `own` queries against `all` of the ranks' keys."""
    from torch.nn import functional as F

    logits = scale * query_BD[own_B] @ distributed.gather_rows(key_BD)[all_N].T
    rows = len(own_B)
    first = distributed.rank() * rows
    place_N = all_N.long().cumsum(0) - 1
    return F.cross_entropy(logits, place_N[first : first + rows][own_B], reduction="sum")
