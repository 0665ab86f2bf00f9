"""What inpainting models make of protected pictures, under seen and unseen masks, and after the pictures were saved or treated.

Shape suffixes: B pictures, C channels, H and W height and width. Masks are floats that are 1 where a model paints, else 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage.metrics import structural_similarity
from torch import Tensor

from datasets.component import Component
from datasets.images.view import as_jpeg
from trainers.audit.classifier import as_bytes, as_floats
from trainers.audit.protect.base import Inpainter, binary, grown, halves, masked_mse, ring
from trainers.audit.protect.distances import distances, features
from trainers.audit.protect.protect import Protected, random_noise
from trainers.encoder import Encoder

Kind = Literal["malicious", "incomplete", "benign", "unseen"]
Treatment = Literal["8bit", "jpeg95", "jpeg75", "blur", "bits5"]
BEST_PSNR = 100.0
"""Of equal pictures, in dB."""


def _jpeg(quality: int, image_HWC: np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(as_jpeg(image_HWC, quality))) as picture:
        return np.asarray(picture.convert("RGB"))


TREATMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "8bit": lambda image_HWC: image_HWC,
    "jpeg95": partial(_jpeg, 95),
    "jpeg75": partial(_jpeg, 75),
    "blur": lambda image_HWC: np.asarray(Image.fromarray(image_HWC).filter(ImageFilter.GaussianBlur(1))),
    "bits5": lambda image_HWC: np.rint(np.rint(image_HWC / 255 * 31) / 31 * 255).astype(np.uint8),
}
"""Of a picture as it was saved, uint8 [H, W, 3]: itself, as JPEG of a quality, blurred (Gauss, σ = 1 pixel), with 32 levels a channel."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Component):
    """Compares what a model paints in protected pictures with what it paints in the originals, treated alike.

    Pictures with random noise of ±ε stand beside the protected ones in every table: a protection that does not beat them is none.
    """

    kinds: tuple[Kind, ...] = ("malicious", "incomplete", "benign", "unseen")
    """of masks: m; the halves of m and E(m); the halves of the ring E'; masks of other shapes over m (`masks_of`)"""
    treatments: tuple[Treatment, ...] = ("8bit", "jpeg95", "jpeg75", "blur", "bits5")
    """of the pictures before the model sees them; all are first rounded to 8 bits"""
    seed: int = 0
    """of the random noise"""

    @torch.no_grad()
    def rows(
        self, inpainter: Inpainter, picture_BCHW: Tensor, mask_B1HW: Tensor, protected: Protected, eps: float, keys: Sequence[str],
        encoder: Encoder | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """A row for each noise (protected | random), treatment and kind of mask; numbers are means over the masks and the pictures:

        gain: mean |change of what is painted| / ε. ssim, psnr: between what is painted with and without noise. ssim_original: between
        what is painted and the original. mse_target: MSE_M to φ. The last two also without noise (`…_without`). psnr_picture: of the
        noisy picture to the original, both treated. n: pictures. masks: masks of each.
        With an encoder also clip_kid, clip_fid and, where there is no FID, clip_note.
        """
        versions = {"protected": protected.picture_BCHW, "random": random_noise(picture_BCHW, eps, keys, self.seed)}
        found: list[dict[str, Any]] = []
        for treatment in self.treatments:
            plain_BCHW = treated(picture_BCHW, treatment)
            noisy = {name: treated(one_BCHW, treatment) for name, one_BCHW in versions.items()}
            for kind in self.kinds:
                masks = masks_of(mask_B1HW, kind)
                plain = [inpainter(plain_BCHW, one_B1HW) for one_B1HW in masks]
                for name, noisy_BCHW in noisy.items():
                    painted = [inpainter(noisy_BCHW, one_B1HW) for one_B1HW in masks]
                    numbers = [_compared(a_BCHW, b_BCHW, one_B1HW, picture_BCHW, protected.target_BCHW, eps)
                               for a_BCHW, b_BCHW, one_B1HW in zip(painted, plain, masks)]
                    found.append({
                        "noise": name, "treatment": treatment, "mask": kind, "n": len(picture_BCHW), "masks": len(masks),
                        **{key: float(np.mean([one[key] for one in numbers])) for key in numbers[0]},
                        "psnr_picture": float(np.mean(psnr(noisy_BCHW, plain_BCHW))),
                        **({} if encoder is None else _apart(encoder, painted, plain)),
                    })  # fmt: skip
        return found


def masks_of(mask_B1HW: Tensor, kind: str) -> list[Tensor]:
    """The masks of a kind. Unseen ones are of shapes that `Protect.augment` never draws: m moved by 6 pixels, three bars over E(m), two
    discs in opposite corners of E(m)'s box, and a triangle of half that box."""
    mask_B1HW, large_B1HW = binary(mask_B1HW), grown(mask_B1HW)
    if kind == "malicious":
        return [mask_B1HW]
    if kind == "incomplete":
        return halves(mask_B1HW) + halves(large_B1HW)
    if kind == "benign":
        return halves(ring(mask_B1HW))
    moved_B1HW = torch.zeros_like(mask_B1HW)
    moved_B1HW[:, :, 6:, 6:] = mask_B1HW[:, :, :-6, :-6]
    y_B1HW, x_B1HW = _within(large_B1HW)
    inside_B1HW = (y_B1HW >= 0) & (y_B1HW <= 1) & (x_B1HW >= 0) & (x_B1HW <= 1)
    discs = [torch.hypot(y_B1HW - at, x_B1HW - at) <= 0.25 for at in (0.25, 0.75)]
    shapes = [((y_B1HW * 6).floor() % 2 == 0) & (large_B1HW > 0), discs[0] | discs[1], inside_B1HW & (x_B1HW <= y_B1HW)]
    usable = lambda one_B1HW: bool(one_B1HW.flatten(1).any(1).all()) and not bool(one_B1HW.flatten(1).all(1).any())
    return [one_B1HW.to(mask_B1HW) for one_B1HW in [moved_B1HW > 0, *shapes] if usable(one_B1HW)]


def _within(mask_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's place in its mask's bounding box, down and across: 0 at the first row or column of the box, 1 at its last."""
    found = []
    for axis in (2, 3):
        size = mask_B1HW.shape[axis]
        at_M = torch.arange(size, device=mask_B1HW.device)
        filled_BM = mask_B1HW.amax((1, 5 - axis)) > 0
        first_B1 = torch.where(filled_BM, at_M, size).amin(1, keepdim=True)
        last_B1 = torch.where(filled_BM, at_M, -1).amax(1, keepdim=True)
        place_BM = (at_M - first_B1) / (last_B1 - first_B1).clamp_min(1)
        shape = (-1, 1, size, 1) if axis == 2 else (-1, 1, 1, size)
        found.append(place_BM.view(shape).expand_as(mask_B1HW))
    return found[0], found[1]


def treated(picture_BCHW: Tensor, treatment: str) -> Tensor:
    """The pictures rounded to 8 bits and then treated (`TREATMENTS`), floats in 0 … 1."""
    images = [TREATMENTS[treatment](image_HWC) for image_HWC in as_bytes(picture_BCHW).numpy()]
    return as_floats(torch.from_numpy(np.stack(images)).to(picture_BCHW.device), picture_BCHW.dtype)


def ssim(a_BCHW: Tensor, b_BCHW: Tensor) -> list[float]:
    """Structural similarity of each pair of pictures (Wang et al. 2004): Gaussian windows of 11 × 11 pixels, σ = 1.5, population
    covariances, mean over pixels and channels. Both sides have at least 11 pixels."""
    return [
        float(structural_similarity(a_CHW, b_CHW, win_size=11, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                    data_range=1.0, channel_axis=0))
        for a_CHW, b_CHW in zip(a_BCHW.double().cpu().numpy(), b_BCHW.double().cpu().numpy())
    ]  # fmt: skip


def psnr(a_BCHW: Tensor, b_BCHW: Tensor) -> list[float]:
    """10·log₁₀(1/MSE) of each pair of pictures in dB, at most `BEST_PSNR`."""
    errors = ((a_BCHW - b_BCHW).double() ** 2).flatten(1).mean(1).tolist()
    return [min(BEST_PSNR, -10 * math.log10(error)) if error else BEST_PSNR for error in errors]


def gain(a_BCHW: Tensor, b_BCHW: Tensor, mask_B1HW: Tensor, eps: float) -> Tensor:
    """Mean |a − b| under the mask over ε, floats [B]."""
    count_B = a_BCHW.shape[1] * mask_B1HW.flatten(1).sum(1)
    return (mask_B1HW * (a_BCHW - b_BCHW).abs()).flatten(1).sum(1) / count_B / eps


def _compared(
    noisy_BCHW: Tensor, plain_BCHW: Tensor, mask_B1HW: Tensor, picture_BCHW: Tensor, target_BCHW: Tensor, eps: float
) -> Mapping[str, float]:
    mean = lambda values: float(np.mean(values))
    return {
        "gain": float(gain(noisy_BCHW, plain_BCHW, mask_B1HW, eps).mean()),
        "ssim": mean(ssim(noisy_BCHW, plain_BCHW)),
        "psnr": mean(psnr(noisy_BCHW, plain_BCHW)),
        "ssim_original": mean(ssim(noisy_BCHW, picture_BCHW)),
        "ssim_original_without": mean(ssim(plain_BCHW, picture_BCHW)),
        "mse_target": float(masked_mse(noisy_BCHW, target_BCHW, mask_B1HW).mean()),
        "mse_target_without": float(masked_mse(plain_BCHW, target_BCHW, mask_B1HW).mean()),
    }


def _apart(encoder: Encoder, noisy: Sequence[Tensor], plain: Sequence[Tensor]) -> dict[str, Any]:
    """Distances between all paintings with and without noise, each mask by itself and then averaged."""
    all_apart = [distances(features(encoder, a_BCHW), features(encoder, b_BCHW)) for a_BCHW, b_BCHW in zip(noisy, plain)]
    note = all_apart[0].note
    numbers = {"clip_kid": float(np.mean([one.kid for one in all_apart])), "clip_fid": float(np.mean([one.fid for one in all_apart]))}
    return numbers | ({"clip_note": note} if note else {})
