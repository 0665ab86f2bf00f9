"""Perturb and Recover (PAR, Singh et al. 2024): cleaning that moves the features away from the poisoned model's."""

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
    """L = MMCL − ½[d_I·1(d_I ≤ τ) + d_T·1(d_T ≤ τ)], with the logit scale constant (nmndeep/PerturbAndRecover, train.py).

    d_I and d_T are the mean squared distances of the batch's unit features, of pictures and of captions, from those of the model before
    cleaning. Up to τ the loss pushes the model away from its start and keeps its pictures and captions together; beyond τ it only does the
    latter. Published settings: batches of 2 048, 2 epochs of 250 000 pairs, lr 3e-5, betas .9 and .98, weight decay 1e-4. The published
    views (pictures brightened and a small square erased, each with probability ½) are not implemented: pictures get the experiment's
    `views`.
    """

    limit: Positive = 2.15
    """τ; a squared distance of unit vectors, in 0 … 4"""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: normalise by the running statistics and leave them unchanged, as happened in the published training of the ResNet | train:
    use each batch's statistics"""
    rate: Literal["published", "stage"] = "published"
    """learning rate. published: after the stage's warm-up, linear to a tenth over the first half, then cosine to 0 | stage: the stage's
    schedule"""

    def train(self, model: Encoder, run: Run) -> Encoder:
        changes: dict[str, Any] = {"schedule": "linear_cosine"} if self.rate == "published" else {}
        with still_scale(model), still_batchnorm(model) if self.batch_norm == "frozen" else nullcontext():
            return run.fit(model, Apart(limit=self.limit), **changes)
