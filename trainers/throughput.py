"""How many operations a training step takes, and which share of the device's peak it reaches."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from trainers.encoder import Encoder

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "A10G": 70.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0, "T4": 65.0}
"""Peak of dense bf16 matrix multiplication (fp16 on V100 and T4) in TFLOP/s, from the makers' data sheets (SXM parts)."""


def flops_per_sample(encoder: Encoder, two_views: bool = False, rows: int = 2) -> float:
    """Floating-point operations (a multiply-add counts as two) of forward and backward pass through both encoders, per pair.

    Counts matrix products, convolutions and attention on a copy of the model, on its device. Leaves out recomputation and the loss's own
    product, which grows with the batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(encoder).train()
    size, device = model.image_size, model.device
    batch = {"image": torch.zeros(rows, size, size, 3, dtype=torch.uint8, device=device),
             "text": model.tokenize(["a picture"] * rows).to(device)}
    if two_views:
        batch |= {"image_aug": batch["image"], "text_aug": batch["text"]}
    counter = FlopCounterMode(display=False)
    with counter:
        out = model(batch)
        sum(value.float().sum() for value in out.values()).backward()  # type: ignore[union-attr]
    return counter.get_total_flops() / rows


def peak_flops(device: torch.device) -> float | None:
    """The device's bf16 peak in FLOP/s; None for a device that is not in the table, such as a CPU."""
    import torch

    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = [peak for part, peak in PEAK_TFLOPS.items() if part in name]
    return peaks[0] * 1e12 if peaks else None


def mfu(samples_per_second: float, flops: float, peak: float) -> float:
    """Model FLOPs utilisation in percent: FLOP/s that the samples need over the device's peak. `flops` is per sample, `peak` per second."""
    return 100 * samples_per_second * flops / peak
