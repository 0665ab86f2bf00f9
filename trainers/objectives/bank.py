"""A memory of earlier features, for objectives that compare a batch with its nearest neighbours in it.

Shape suffixes: B this rank's rows, N all ranks' rows, R rows of the memory, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers import distributed
from trainers.encoder import Encoder


class Bank(nn.Module):
    """A ring of R unit rows with the last features of all ranks; it starts with random rows. Equal on all ranks, without gradient."""

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, encoder: Encoder, rng: np.random.Generator) -> None:
        super().__init__()
        drawn_RD = torch.from_numpy(rng.standard_normal((size, encoder.config["embed_dim"])))
        self.register_buffer("rows", F.normalize(drawn_RD, dim=1).to(encoder.mean.dtype))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def nearest(self, query_BD: Tensor) -> Tensor:
        """int64 [B]: for each query the row with the largest inner product."""
        return (query_BD.detach() @ self.rows.T).argmax(dim=1)

    @torch.no_grad()
    def put(self, feature_BD: Tensor) -> None:
        """Write the features of all ranks, in rank order, over the oldest rows. Of more than R features only the last R are kept."""
        feature_ND, size = distributed.gather_rows(feature_BD.detach()), len(self.rows)
        kept_ND = feature_ND[-size:]
        first = self.place + (len(feature_ND) - len(kept_ND))
        self.rows[(first + torch.arange(len(kept_ND), device=self.rows.device)) % size] = kept_ND
        self.place.add_(len(feature_ND)).remainder_(size)


EQUAL = 1 - 1e-5
"""Unit rows with a larger inner product are the same but for rounding."""


def shared(neighbour_BD: Tensor) -> Tensor:
    """Percentage of this rank's queries whose neighbour, a unit row, is also that of another query of any rank. The rows of equal captions
    count as one neighbour: which of them is nearest is a matter of rounding."""
    same_BN = neighbour_BD @ distributed.gather_rows(neighbour_BD).T > EQUAL
    return 100 * (same_BN.sum(dim=1) > 1).float().mean()
