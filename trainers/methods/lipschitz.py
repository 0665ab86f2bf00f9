"""Regularisation by the Lipschitz constant: a penalty on the loss's gradient, in pre-training or in cleaning."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from datasets.component import Count, NotNegative
from datasets.errors import InputError
from trainers.methods.base import Method, Run
from trainers.methods.still import still_batchnorm
from trainers.objectives.lipschitz import Smooth
from trainers.schedule import Training

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Method):
    """Trains both towers with MMCL and one or both of two penalties (`Smooth`): the length of the loss's gradient with respect to the
    pixels (`weight`), and the largest singular values of the image tower's weights (`spectral_weight`).

    The first says how fast the loss grows at the training pictures, and costs about two more passes through the image tower; the second
    bounds single layers everywhere. Neither makes adversarial pictures. There are no published settings for CLIP: try several weights.
    """

    weight: NotNegative = 1.0
    """of the mean gradient length"""
    norm: Literal["l2", "l1"] = "l2"
    """l2: the squared L2 length | l1: the L1 length; with weight ε, adversarial training in L∞ to first order"""
    spectral_weight: NotNegative = 0.0
    """of half the sum of the squared largest singular values"""
    batch_norm: Literal["train", "frozen"] = "train"
    """train: use each batch's statistics, also in the gradients | frozen: normalise by the running statistics and leave them unchanged"""
    iterations: Count = 10
    """of the power iteration that finds the singular values, in each step"""

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        if training.accumulate > 1:
            raise InputError(f"Lipschitz needs the gradients of whole batches: {training.slug}.accumulate must be 1, not "
                             f"{training.accumulate}.")
        if training.compile and self.weight:
            raise InputError(f"Lipschitz.weight is {self.weight}, but compiled models have no second derivative: {training.slug}.compile "
                             "must be False.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        from torch.nn.modules.batchnorm import _BatchNorm

        frozen = self.batch_norm == "frozen"
        joined = run.world.size > 1 and run.world.device.type == "cuda" and run.training.sync_batchnorm
        if self.weight and joined and not frozen and any(isinstance(part, _BatchNorm) for part in model.modules()):
            raise InputError("Lipschitz.batch_norm is 'train', but batch normalisation over several GPUs has no second derivative: set it "
                             "to 'frozen', or sync_batchnorm to False.")
        objective = Smooth(weight=self.weight, norm=self.norm, spectral_weight=self.spectral_weight, iterations=self.iterations)
        with still_batchnorm(model) if frozen else nullcontext():
            return run.fit(model, objective)
