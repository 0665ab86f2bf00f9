"""Perturb and Recover (PAR, Singh et al. 2024): cleaning that moves the features away from the poisoned model's.

Shape suffixes: B pictures, H height, W width, C = 3 channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datasets import seeding
from datasets.component import Positive, since
from datasets.errors import InputError
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.still import still_batchnorm, still_scale
from trainers.objectives.apart import Apart
from trainers.schedule import Training

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

CHANCE = 0.5
"""Of each of the two changes to a picture."""
BRIGHTER = 0.2
"""Standard deviation of the noise that brightens, in units of the full range; its negative half counts as 0."""
ERASED = (0.005, 0.01)
"""Area of the square that is erased, as a share of the picture."""


@dataclass(frozen=True, kw_only=True)
class PAR(Method):
    """L = MMCL − ½[d_I·1(d_I ≤ τ) + d_T·1(d_T ≤ τ)], with the logit scale constant (nmndeep/PerturbAndRecover, train.py).

    d_I and d_T are the mean squared distances of the batch's unit features, of pictures and of captions, from those of the model before
    cleaning. Up to τ the loss pushes the model away from its start and keeps its pictures and captions together; beyond τ it only does the
    latter. Published settings: batches of 2 048, 2 epochs of 250 000 pairs, lr 3e-5, betas .9 and .98, weight decay 1e-4,
    `view="published"`.
    """

    limit: Positive = 2.15
    """τ; a squared distance of unit vectors, in 0 … 4"""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """frozen: normalise by the running statistics and leave them unchanged, as happened in the published training of the ResNet | train:
    use each batch's statistics"""
    rate: Literal["published", "stage"] = "published"
    """learning rate. published: after the stage's warm-up, linear to a tenth over the first half, then cosine to 0 | stage: the stage's
    schedule"""
    view: Literal["stage", "published"] = since("stage")
    """the pictures that both models see. stage: the experiment's `views` | published: half of these are brightened by noise, and half get a
    small square erased (`changed`), drawn anew in each epoch"""

    def check_training(self, training: Training, pairs: int | None = None) -> None:
        if self.view == "published" and training.accumulate > 1:
            raise InputError(f"PAR.view published changes whole batches: {training.slug}.accumulate must be 1, not {training.accumulate}.")

    def train(self, model: Encoder, run: Run) -> Encoder:
        changes: dict[str, Any] = {"schedule": "linear_cosine"} if self.rate == "published" else {}
        objective = Apart(limit=self.limit)
        if self.view == "published":
            number = len(run.keys())

            def begin_epoch(model: Encoder, epoch: int) -> EpochPlan:
                return EpochPlan(values={"draw": run.rng(f"view {epoch}").integers(2**62, size=number)})

            objective = Apart(limit=self.limit, view=lambda batch: {**batch, "image": seen(batch["image"], batch["draw"], model.mean)})
            changes["begin_epoch"] = begin_epoch
        with still_scale(model), still_batchnorm(model) if self.batch_norm == "frozen" else nullcontext():
            return run.fit(model, objective, **changes)


def seen(image_BHWC: Tensor, draw_B: Tensor, mean_C: Tensor) -> Tensor:
    """float32 [B, H, W, C] in 0 … 255: each picture `changed` by its own draw. `mean_C`: the colour that normalisation makes 0."""
    import torch

    pictures, mean = image_BHWC.cpu().numpy(), mean_C.float().cpu().numpy()
    changed_BHWC = [changed(image, seeding.rng(draw, "view"), mean) for image, draw in zip(pictures, draw_B.tolist())]
    return torch.from_numpy(np.stack(changed_BHWC)).to(image_BHWC.device)


def changed(image_HWC: np.ndarray, rng: np.random.Generator, mean_C: np.ndarray) -> np.ndarray:
    """float32: uint8 pixels, each brightened with CHANCE by max(0, N(0, BRIGHTER)) of the full range, at most to white; then with CHANCE a
    square of ERASED of the area, at a random place, gets the mean colour."""
    brightens, erases = rng.random(2) < CHANCE
    out_HWC = image_HWC.astype(np.float32)
    if brightens:
        noise_HWC = rng.standard_normal(out_HWC.shape, np.float32).clip(min=0)
        out_HWC = (out_HWC + np.float32(255 * BRIGHTER) * noise_HWC).clip(max=255)
    if erases:
        height, width = out_HWC.shape[:2]
        side = round(float(np.sqrt(height * width * rng.uniform(*ERASED))))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        out_HWC[top : top + side, left : left + side] = mean_C
    return out_HWC
