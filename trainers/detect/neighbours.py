"""Nearest-row search by matrix products: candidates in float32, their distances in float64. Shape suffixes as in `base`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLAMP = 1e-12
"""A distance of 0 (between equal features) is raised to this."""
MARGIN = 8
"""How many candidates beyond k get exact distances."""
CHUNK, BLOCK = 1 << 22, 1 << 13
"""CHUNK: scalar products per block; BLOCK: rows gathered at a time."""
NEAR = 1e-6
"""If a squared distance is below this share of ‖q‖² + ‖r‖², cancellation has cost it too many digits."""


@dataclass(frozen=True, eq=False)
class Near:
    """The nearest rows of each query, nearest first."""

    distance_BK: np.ndarray
    """float64, Euclidean, at least 1e-12"""
    row_BK: np.ndarray
    """int64"""

    def first(self, k: int) -> Near:
        """Only the k nearest."""
        return Near(self.distance_BK[:, :k], self.row_BK[:, :k])


class Rows:
    """The rows to search, with values that every search needs."""

    def __init__(self, row_RD: Tensor) -> None:
        self.exact_RD, self.quick_RD = row_RD.double(), row_RD.float()
        self.square_R = self.exact_RD.square().sum(dim=1)
        self.quick_square_R, self.longest = self.square_R.float(), float(self.square_R.max())

    def __len__(self) -> int:
        return len(self.square_R)


def nearest(query_BD: Tensor, rows: Rows, own_BE: np.ndarray, k: int) -> Near:
    """The k rows nearest to each query. `own_BE` (int64, −1: none) lists rows that a query must not get.

    ‖r‖² − 2⟨q, r⟩ in float32 selects k + MARGIN candidates, and their distances are computed in float64. A bound on the rounding error of a
    sum of D products shows for each query whether any other row could be nearer. If one could, for example because rows are equal, the
    query is searched again in float64.
    """
    forbidden, step = torch.from_numpy(own_BE).to(query_BD.device), max(1, CHUNK // len(rows))
    parts: list[tuple[Tensor, Tensor]] = []
    for query_CD, own_CE in zip(query_BD.double().split(step), forbidden.split(step)):
        distance_CK, row_CK, sure_C = _search(query_CD, rows, own_CE, k, quick=True)
        if not sure_C.all():
            again = (~sure_C).nonzero()[:, 0]
            distance_CK[again], row_CK[again], _ = _search(query_CD[again], rows, own_CE[again], k, quick=False)
        parts.append((distance_CK.cpu(), row_CK.cpu()))
    distance_BK, row_BK = (torch.cat(column).numpy() for column in zip(*parts))
    return Near(np.maximum(distance_BK, CLAMP), row_BK)


def _search(query_CD: Tensor, rows: Rows, own_CE: Tensor, k: int, quick: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(distances float64 [C, K], rows [C, K], whether these are certainly the nearest [C]). `quick`: select candidates in float32."""
    taken = min(k + MARGIN, len(rows))
    if quick:
        value_CR = torch.addmm(rows.quick_square_R[None], query_CD.float(), rows.quick_RD.T, alpha=-2)
    else:
        value_CR = torch.addmm(rows.square_R[None], query_CD, rows.exact_RD.T, alpha=-2)
    for own_C in own_CE.T:
        which = (own_C >= 0).nonzero()[:, 0]
        value_CR[which, own_C[which]] = torch.inf
    candidate_CT = _lowest(value_CR, taken).sort(dim=1).values  # among equal distances the lower row number comes first
    length_C = query_CD.square().sum(dim=1)
    squared_CT = _squared(query_CD, rows.exact_RD, candidate_CT, length_C, rows.square_R)
    squared_CT[(candidate_CT[:, :, None] == own_CE[:, None]).any(dim=2)] = torch.inf
    squared_CT, order_CT = squared_CT.sort(dim=1, stable=True)
    distance_CK, row_CK = squared_CT[:, :k].sqrt(), candidate_CT.gather(1, order_CT[:, :k])
    unit = torch.finfo(value_CR.dtype).eps / 2
    bound_C = (query_CD.shape[1] + 8) * unit * (rows.longest + 2 * (length_C * rows.longest).sqrt())
    last_C = value_CR.gather(1, candidate_CT).max(dim=1).values.double()
    return distance_CK, row_CK, (squared_CT[:, k - 1] - length_C + bound_C <= last_C) | (taken == len(rows))


def _lowest(value_CR: Tensor, count: int) -> Tensor:
    """int64 [C, T]: positions of the lowest values of each row, in any order."""
    if value_CR.device.type == "cpu" and count < value_CR.shape[1]:  # twice as fast as topk on CPUs
        return torch.from_numpy(np.argpartition(value_CR.numpy(), count - 1, axis=1)[:, :count].copy())
    return value_CR.topk(count, dim=1, largest=False, sorted=False).indices


def _squared(query_CD: Tensor, row_RD: Tensor, candidate_CT: Tensor, length_C: Tensor, square_R: Tensor) -> Tensor:
    """float64 [C, T]: ‖q − r‖² of each query and its candidates; computed from the difference q − r if the expanded form would cancel."""
    if query_CD.device.type == "cpu":  # one product per query stays in the cache
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
    """Split both into parts of about BLOCK gathered rows."""
    step = max(1, BLOCK // candidate_CT.shape[1])
    yield from zip(query_CD.split(step), candidate_CT.split(step))
