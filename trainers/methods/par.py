"""Perturb and Recover (PAR, Singh et al. 2024): cleaning that moves the features away from those of the poisoned model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from datasets.component import Positive
from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.methods.still import still_batchnorm, still_scale
from trainers.objectives.apart import Apart


@dataclass(frozen=True, kw_only=True)
class PAR(Method):
    """L = MMCL − ½[d_I·1(d_I ≤ τ) + d_T·1(d_T ≤ τ)], the logit scale held constant (nmndeep/PerturbAndRecover, train.py).

    d_I and d_T: mean squared distance of the batch's unit features of pictures and of captions to those of the model before cleaning.
    Below τ the model is pushed away from what it was and keeps its pictures and captions together; beyond τ it only recovers.
    Published with batches of 2 048, 2 epochs of 250 000 pairs, lr 3e-5, betas .9 and .98, weight decay 1e-4. Its views (pictures
    brightened, and a small square erased, each with probability ½) are not made here: pictures are those of the experiment's `views`.
    """

    limit: Positive = 2.15
    """τ; a squared distance of unit vectors, 0 … 4"""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: by its running statistics, which stay, as the published ResNet was trained in effect | train: by the batch's"""
    rate: Literal["published", "stage"] = "published"
    """Of learning. published: after the stage's warm-up it falls in a line to a tenth over the first half, then as a cosine to 0 | stage:
    the stage's own schedule"""

    def train(self, model: Encoder, run: Run) -> Encoder:
        changes: dict[str, Any] = {"schedule": "linear_cosine"} if self.rate == "published" else {}
        with still_scale(model), still_batchnorm(model) if self.batch_norm == "frozen" else nullcontext():
            return run.fit(model, Apart(limit=self.limit), **changes)
