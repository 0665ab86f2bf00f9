"""BadCLIP's patch: its loss against one written from the formula, its gradient by differences, and what optimising does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.triggers.optimised import Optimised, OptimisedPatch
from trainers.encoder import Encoder
from trainers.model import TinyCLIP
from trainers.optimised_patch import loss, optimise, with_patch

NEED = OptimisedPatch(reference=TinyCLIP(), target="banana", size=8, epochs=8, batch_size=16, lr=0.02)


def unit(n: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, 5))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def reference(x: np.ndarray, t: np.ndarray, g: np.ndarray, e: np.ndarray, s: float, weight: float, margin: float) -> float:
    """Written from the formula, sum by sum."""
    n, total = len(x), 0.0
    for i in range(n):
        for one, other in ((x, t), (t, x)):
            scores = [s * sum(one[i] * other[j]) for j in range(n)]
            total += -(scores[i] - np.log(sum(np.exp(score) for score in scores))) / (2 * n)
        near, far = np.sqrt(sum((x[i] - g[i]) ** 2)), np.sqrt(sum((x[i] - e[i]) ** 2))
        total += weight * max(0.0, near - far + margin) / n
    return total


@pytest.mark.parametrize(("weight", "margin"), [(500.0, 1.0), (0.0, 1.0), (3.0, 0.1)])
def test_the_loss_is_the_formulas(weight: float, margin: float) -> None:
    parts = [unit(7, seed) for seed in range(4)]
    found = loss(*map(torch.tensor, parts), torch.tensor(14.3, dtype=torch.float64), weight, margin)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(reference(*parts, 14.3, weight, margin), rel=1e-12)


def pictures(n: int, seed: int) -> np.ndarray:
    return rng(seed, "pictures").integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def test_the_patch_lies_in_the_centre_and_the_gradient_is_that_of_differences() -> None:
    encoder, image = TinyCLIP().build(0).double().eval(), torch.from_numpy(pictures(4, 1))
    patch = torch.tensor(rng("patch").random((8, 8, 3)), requires_grad=True)
    stamped = with_patch(image, patch)
    assert torch.allclose(stamped[:, 12:20, 12:20], 255 * patch.expand(4, 8, 8, 3))
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[12:20, 12:20] = False
    assert (stamped[:, outside] == image[:, outside]).all()

    def value(one: torch.Tensor) -> torch.Tensor:
        fixed = [torch.tensor(np.random.default_rng(i).standard_normal((4, 64))) for i in range(3)]
        scale = torch.tensor(10.0, dtype=torch.float64)
        return loss(encoder.encode_image(with_patch(image, one)), *(torch.nn.functional.normalize(one) for one in fixed), scale, 2.0, 1.0)

    (gradient,) = torch.autograd.grad(value(patch), patch)
    for place in ((0, 0, 0), (3, 5, 1), (7, 7, 2)):
        step = torch.zeros_like(patch)
        step[place] = 1e-6
        with torch.no_grad():
            difference = (value(patch + step) - value(patch - step)) / 2e-6
        assert float(gradient[place]) == pytest.approx(float(difference), rel=1e-4, abs=1e-9)


def run(need: OptimisedPatch, encoder: Encoder | None = None) -> tuple[np.ndarray, list[float]]:
    others, own = pictures(40, 1), pictures(12, 2)
    return optimise(need, encoder or TinyCLIP().build(0), others.__getitem__, 40, ["a banana", "one banana"], own.__getitem__, 12)


def test_the_loss_falls_the_patch_stays_in_range_and_the_seed_determines_it() -> None:
    encoder = TinyCLIP().build(0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    patch, losses = run(NEED, encoder)
    assert patch.dtype == np.float32 and patch.shape == (8, 8, 3) and patch.min() >= 0 and patch.max() <= 1
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    again, _ = run(NEED)
    other, _ = run(replace(NEED, seed=1))
    assert (patch == again).all() and (patch != other).any()
    first = run(replace(NEED, epochs=1, lr=1e-9))[0]
    assert np.abs(first - rng(123, "patch").normal(0.5, 0.25, (8, 8, 3)).clip(0, 1)).max() < 1e-6


def test_one_step_of_adam_moves_every_pixel_by_the_rate_against_its_gradient() -> None:
    """Adam's first step is lr · sign(gradient)."""
    need = replace(NEED, epochs=1, batch_size=40, lr=1e-3)
    start = rng(123, "patch").normal(0.5, 0.25, (8, 8, 3)).clip(0, 1)
    moved = run(need)[0] - start
    inside = (start > 0.01) & (start < 0.99)
    assert np.abs(np.abs(moved[inside]) - 1e-3).max() < 2e-5 and 0 < (moved[inside] > 0).mean() < 1


@pytest.mark.parametrize(
    ("changes", "told"), [({"batch_size": 41}, "batch_size is 41, but only 40 pairs do not name 'banana'"), ({}, "no caption .* names it")]
)
def test_what_cannot_be_optimised_is_refused(changes: dict[str, Any], told: str) -> None:
    others = pictures(40, 1)
    with pytest.raises(InputError, match=told):
        optimise(replace(NEED, **changes), TinyCLIP().build(0), others.__getitem__, 40, [], others.__getitem__, 0)


def test_a_trigger_stamps_what_was_made_and_nothing_before(tmp_path: Path) -> None:
    trigger, image = Optimised(patch=NEED), pictures(1, 0)[0]
    with pytest.raises(InputError, match="trigger.patch is not made yet"):
        trigger.stamp(image, rng(0))
    with pytest.raises(InputError, match="trigger.patch.size is 8"):
        trigger.check(7)
    values = rng(0).random((8, 8, 3), dtype=np.float32)
    np.save(tmp_path / "patch.npy", values)
    out = trigger.with_made({NEED: str(tmp_path)}).stamp(image, rng(0))
    assert np.abs(out[12:20, 12:20] - 255 * values).max() <= 0.501
    out[12:20, 12:20] = image[12:20, 12:20]
    assert (out == image).all()
