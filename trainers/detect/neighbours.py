"""Nearest rows by matrix products: candidates in float32, their distances in float64. Shape suffixes as in `base`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLAMP = 1e-12
"""A distance of 0, between equal features, counts as this."""
MARGIN = 8
"""Candidates beyond k whose distances are computed exactly."""
CHUNK, BLOCK = 1 << 22, 1 << 13
"""Products of a block, and rows that are gathered at a time."""
NEAR = 1e-6
"""A squared distance below this share of ‖q‖² + ‖r‖² has lost digits to cancellation."""


@dataclass(frozen=True, eq=False)
class Near:
    """The nearest rows of some queries, the nearest first."""

    distance_BK: np.ndarray
    """float64, Euclidean, at least 1e-12"""
    row_BK: np.ndarray
    """int64"""

    def first(self, k: int) -> Near:
        """The k nearest."""
        return Near(self.distance_BK[:, :k], self.row_BK[:, :k])


def nearest(query_BD: Tensor, row_RD: Tensor, own_BE: np.ndarray, k: int) -> Near:
    """The k rows nearest to each query, without the rows that `own_BE` (int64, −1: none) forbids it.

    ‖r‖² − 2⟨q, r⟩ in float32 picks k + MARGIN candidates, whose distances are then computed in float64. By the bound on the rounding of a
    product of D terms it is checked for each query that no other row can be nearer. A query for which that is not sure, as among equal
    rows, is searched again in float64.
    """
    own, exact_RD, step = torch.from_numpy(own_BE).to(query_BD.device), row_RD.double(), max(1, CHUNK // len(row_RD))
    square_R, quick_RD = exact_RD.square().sum(dim=1), row_RD.float()
    parts: list[tuple[Tensor, Tensor]] = []
    for query_CD, own_CE in zip(query_BD.split(step), own.split(step)):
        distance_CK, row_CK, sure_C = _search(query_CD.double(), query_CD.float(), exact_RD, quick_RD, square_R, own_CE, k)
        if not sure_C.all():
            again = (~sure_C).nonzero()[:, 0]
            query_AD = query_CD[again].double()
            distance_CK[again], row_CK[again], _ = _search(query_AD, query_AD, exact_RD, exact_RD, square_R, own_CE[again], k)
        parts.append((distance_CK.cpu(), row_CK.cpu()))
    distance_BK, row_BK = (torch.cat(column).numpy() for column in zip(*parts))
    return Near(np.maximum(distance_BK, CLAMP), row_BK)


def _search(
    query_CD: Tensor, quick_CD: Tensor, row_RD: Tensor, quick_RD: Tensor, square_R: Tensor, own_CE: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(distances float64 [C, K], rows [C, K], whether these are surely the nearest [C]); `quick`: the features in the products' type."""
    taken = min(k + MARGIN, len(row_RD))
    value_CR = torch.addmm(square_R.to(quick_CD.dtype)[None], quick_CD, quick_RD.T, alpha=-2)
    for own_C in own_CE.T:
        which = (own_C >= 0).nonzero()[:, 0]
        value_CR[which, own_C[which]] = torch.inf
    found = value_CR.topk(taken, dim=1, largest=False, sorted=False)
    candidate_CT = found.indices.sort(dim=1).values  # of equal distances the row with the lower number comes first
    length_C, longest = query_CD.square().sum(dim=1), square_R.max()
    squared_CT = _squared(query_CD, row_RD, candidate_CT, length_C, square_R)
    squared_CT[(candidate_CT[:, :, None] == own_CE[:, None]).any(dim=2)] = torch.inf
    squared_CT, order_CT = squared_CT.sort(dim=1, stable=True)
    distance_CK, row_CK = squared_CT[:, :k].sqrt(), candidate_CT.gather(1, order_CT[:, :k])
    bound_C = (row_RD.shape[1] + 8) * torch.finfo(quick_CD.dtype).eps / 2 * (longest + 2 * (length_C * longest).sqrt())
    sure_C = squared_CT[:, k - 1] - length_C + bound_C <= found.values.max(dim=1).values.double()
    return distance_CK, row_CK, sure_C | (taken == len(row_RD))


def _squared(query_CD: Tensor, row_RD: Tensor, candidate_CT: Tensor, length_C: Tensor, square_R: Tensor) -> Tensor:
    """float64 [C, T]: ‖q − r‖² of each query and its candidates; from the difference where the lengths nearly cancel."""
    if query_CD.device.type == "cpu":  # one product a query stays in the cache
        query, row, candidate = query_CD.numpy(), row_RD.numpy(), candidate_CT.numpy()
        dot_CT = torch.from_numpy(np.stack([row[candidate[c]] @ query[c] for c in range(len(query))]))
    else:
        dot_CT = torch.cat([(row_RD[part_CT] @ part_CD[:, :, None])[:, :, 0] for part_CD, part_CT in _parts(query_CD, candidate_CT)])
    sum_CT = length_C[:, None] + square_R[candidate_CT]
    squared_CT = sum_CT - 2 * dot_CT
    query_N, place_N = (squared_CT < NEAR * sum_CT).nonzero(as_tuple=True)
    for start in range(0, len(query_N), BLOCK):
        one, other = query_N[start : start + BLOCK], place_N[start : start + BLOCK]
        squared_CT[one, other] = (query_CD[one] - row_RD[candidate_CT[one, other]]).square_().sum(dim=1)
    return squared_CT


def _parts(query_CD: Tensor, candidate_CT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in parts of about BLOCK gathered rows."""
    step = max(1, BLOCK // candidate_CT.shape[1])
    yield from zip(query_CD.split(step), candidate_CT.split(step))
