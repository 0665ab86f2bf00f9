"""JPEG as a formula: near Pillow's, with a gradient that is known for grey pictures and that an attack can use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.attacks.pgd import PGD
from trainers.audit.classifier import Classifier, as_floats
from trainers.audit.defences.adaptive import adaptive
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.soft_jpeg import LUMA, soft_jpeg


def smooth(height: int, width: int, count: int = 20) -> torch.Tensor:
    """Pictures of waves at least 32 pixels long, in bytes, as floats of 0 … 1."""
    draw, y, x = rng("smooth"), np.arange(height)[:, None] / 32, np.arange(width) / 32
    image_NHWC = np.full((count, height, width, 3), 127.5)
    for number in range(count):
        for channel in range(3):
            for down, right, phase in draw.uniform(0, 1, (4, 3)):
                image_NHWC[number, :, :, channel] += 25 * np.cos(2 * np.pi * (down * y + right * x + phase))
    return as_floats(torch.from_numpy(image_NHWC.round().clip(0, 255).astype(np.uint8)), torch.float64)


@pytest.mark.parametrize("size", [(32, 32), (37, 51), (8, 24), (5, 64)])
def test_it_is_near_pillows(size: tuple[int, int]) -> None:
    """On average within 1.25 grey levels: Pillow rounds planes and pictures to whole numbers on the way."""
    for quality in (10, 30, 49, 50, 75, 95, 100):
        real = JPEG(quality=quality)
        x = smooth(*size)
        off = 255 * (real.apply(x, [], Classifier(lambda x, _: x, 1)) - soft_jpeg(x, quality)).abs()
        assert off.mean() < 1.25, (quality, float(off.mean()))


def test_the_gradient_of_a_grey_block_is_that_of_the_formula() -> None:
    """Y alone has coefficients that are not 0, so ∂/∂Y of Σ w·out is IDCT(3·(c/q − round(c/q))²·DCT(Σ_c w)) in each block."""
    draw = rng("grey")
    grey, w = draw.uniform(0.3, 0.7, (8, 8)), draw.standard_normal((3, 8, 8))
    x = torch.from_numpy(np.broadcast_to(grey, (1, 3, 8, 8)).copy()).requires_grad_()
    (soft_jpeg(x, 50) * torch.from_numpy(w)).sum().backward()
    scaled = dctn(255 * grey - 128, norm="ortho") / np.array(LUMA)
    of_y = idctn(3 * (scaled - scaled.round()) ** 2 * dctn(w.sum(0), norm="ortho"), norm="ortho")
    assert x.grad is not None and np.abs(of_y).max() > 0.1
    np.testing.assert_allclose(x.grad[0].numpy(), np.array([0.299, 0.587, 0.114])[:, None, None] * of_y, rtol=0, atol=1e-4)


def test_its_gradient_is_finite() -> None:
    for x in (torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 1, 1), smooth(9, 16)):
        x = x.clone().requires_grad_()
        soft_jpeg(x, 75).square().sum().backward()
        assert x.grad is not None and torch.isfinite(x.grad).all()


def test_an_adaptive_attack_through_the_formula_beats_one_through_nothing() -> None:
    draw = rng("linear behind JPEG")
    weight = torch.from_numpy(draw.standard_normal((2, 3 * 16 * 16)))
    bare = Classifier(lambda x, _: (x - 0.5).flatten(1) @ weight.T, 2, dtype=torch.float64)
    x = torch.from_numpy(0.5 + 0.1 * draw.standard_normal((20, 3, 1, 1)) + 0.03 * draw.standard_normal((20, 3, 16, 16))).clamp(0, 1)
    keys = [str(number) for number in range(len(x))]
    fooled = {}
    for defence in (JPEG(), JPEG(backward="identity")):
        judge = defence.guard(bare)
        label = judge.predict(x, keys)
        found = PGD(eps=2 / 255, steps=10, loss="margin", stop=False).perturb(adaptive(defence, bare), x, label, keys)
        fooled[defence.backward] = int((judge.predict(found.picture_BCHW, keys) != label).sum())
    assert fooled["formula"] >= fooled["identity"] + 5, fooled
    with pytest.raises(InputError, match="JPEG.backward"):
        JPEG(backward="none")  # type: ignore[arg-type]
