"""Protective noise: exact optima on the two controls, and on a small trained network what each loss adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from torch import Tensor

from datasets.errors import InputError
from trainers.audit.protect.base import grown, halves, ring
from trainers.audit.protect.evaluate import gain
from trainers.audit.protect.harmonic import Harmonic
from trainers.audit.protect.linear_gain import LinearGain
from trainers.audit.protect.protect import Protect, flat, negative, random_noise, straight_through
from trainers.audit.protect.small_net import SmallNet, SmallNetTraining

EPS = 0.025
KEYS = ("a", "b")
PLAIN = Protect(incomplete=0, hide=0, augment=0)
CLOSE = Protect(hide=20, lr=0.01, steps=40, augment=0)
"""Settings at which the losses are balanced on the small network, whose gain is lower than that of a large one."""


def inner_picture(side: int = 40) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, (2, 3, side, side))).float()


def square(n: int, side: int, first: int, last: int) -> Tensor:
    mask = torch.zeros(n, 1, side, side)
    mask[:, :, first:last, first:last] = 1
    return mask


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Two photographs that scikit-image ships, [2, 3, 64, 64]."""
    names = [Path(skimage.__file__).parent / "data" / name for name in ("astronaut.png", "coffee.png")]
    images = [np.asarray(Image.open(name).convert("RGB").resize((64, 64))) for name in names]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def network(photos: Tensor, tmp_path_factory: pytest.TempPathFactory) -> SmallNet:
    images = [(255 * one).round().byte().permute(1, 2, 0).numpy() for one in photos]
    training = SmallNetTraining(width=8, crop=32, steps=150, lr=5e-3, seed=1)
    return training.make(images, tmp_path_factory.mktemp("network") / "net.safetensors")


def gains(network: SmallNet, photos: Tensor, noisy: Tensor) -> dict[str, float]:
    """Mean |change of what is painted| / ε for each kind of mask."""
    mask = square(2, 64, 24, 40)
    kinds = {"malicious": [mask], "grown": [grown(mask)], "ring": [ring(mask)], "benign": halves(ring(mask))}
    with torch.no_grad():
        return {name: float(np.mean([float(gain(network(noisy, one), network(photos, one), one, EPS).mean()) for one in masks]))
                for name, masks in kinds.items()}  # fmt: skip


def test_harmonic_moves_by_epsilon_everywhere_and_no_further():
    picture, mask = inner_picture(), square(2, 40, 14, 25)
    found = PLAIN.run(Harmonic(), picture, mask, KEYS)
    moved = (Harmonic()(found.picture_BCHW, mask) - Harmonic()(picture, mask))[mask.expand_as(picture) > 0].abs() / EPS
    assert moved.numpy() == pytest.approx(1, abs=1e-3)
    full = Protect().run(Harmonic(), picture, mask, KEYS)
    assert float((Harmonic()(full.picture_BCHW, mask) - Harmonic()(picture, mask)).abs().max()) <= EPS * (1 + 1e-5)


def test_linear_gain_has_the_known_best_noise_and_shift():
    picture, mask, painter = inner_picture().double(), square(2, 40, 14, 25).double(), LinearGain(kappa=3)
    found = PLAIN.run(painter, picture, mask, KEYS)
    before, after = painter(picture, mask), painter(found.picture_BCHW, mask)
    towards = (found.target_BCHW - before)[:, :, 20:21, 20:21]
    wanted = EPS * (painter.kappa * painter.pattern(mask) * towards).sign()
    assert torch.equal(found.noise_BCHW, wanted) and not (found.noise_BCHW * mask).any()
    shift = ((after - before) * towards.sign())[mask.expand_as(picture) > 0]
    assert shift.numpy() == pytest.approx(EPS * painter.kappa, abs=1e-12)  # ‖v‖₁ = 1


def test_noise_is_cut_after_the_step_and_the_last_step_counts():
    picture, mask, painter = inner_picture(), square(2, 40, 14, 25), LinearGain()
    one = Protect(steps=1, incomplete=0, hide=0, augment=0).run(painter, picture, mask, KEYS)
    seen = (mask == 0).expand_as(picture)
    assert (one.noise_BCHW[seen].abs() == np.float32(EPS)).all(), "one step of Adam is 0.1 in each value, cut to ε"
    for settings in (Protect(), Protect(start="symmetric"), Protect(eps=0.003, target="negative")):
        found = settings.run(painter, picture, mask, KEYS)
        assert found.noise_BCHW.abs().max() <= np.float32(settings.eps)
        assert torch.equal(found.picture_BCHW, (picture + found.noise_BCHW).clamp(0, 1))
    assert not Protect(steps=0).run(painter, picture, mask, KEYS).noise_BCHW.any()


def test_the_picture_is_cut_with_the_gradient_of_the_identity():
    value = torch.tensor([-0.5, 0.25, 1.5], requires_grad=True)
    (3 * straight_through(value)).sum().backward()
    assert straight_through(value).tolist() == [0, 0.25, 1] and value.grad.tolist() == [3, 3, 3]


def test_the_flat_colour_is_the_farthest():
    mean = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.8], [0.2, 0.9, 0.3], [0.5, 0.5, 0.5]])
    given = mean[:, :, None, None].expand(4, 3, 5, 6)
    colours = {"green": (0, 1, 0), "red": (1, 0, 0), "blue": (0, 0, 1)}
    wanted = [max(colours, key=lambda name: sum((m - c) ** 2 for m, c in zip(row.tolist(), colours[name]))) for row in mean]
    found = flat(given)
    assert [tuple(one[:, 0, 0].tolist()) for one in found] == [colours[name] for name in wanted]
    assert wanted[3] == "green" and torch.equal(found, found[:, :, :1, :1].expand_as(found))
    assert torch.equal(negative(given), 1 - given)


def test_on_a_trained_network_it_beats_random_noise_and_every_loss_matters(network: SmallNet, photos: Tensor):
    mask = square(2, 64, 24, 40)
    random = gains(network, photos, random_noise(photos, EPS, KEYS))
    full = gains(network, photos, CLOSE.run(network, photos, mask, KEYS).picture_BCHW)
    without_hide = Protect(**{**vars(CLOSE), "hide": 0}).run(network, photos, mask, KEYS)
    without_incomplete = Protect(**{**vars(CLOSE), "incomplete": 0}).run(network, photos, mask, KEYS)
    assert full["malicious"] >= 4 * random["malicious"] > 0
    assert gains(network, photos, without_hide.picture_BCHW)["ring"] >= 1.5 * full["ring"]
    assert full["grown"] >= 1.3 * gains(network, photos, without_incomplete.picture_BCHW)["grown"]
    assert max(full["ring"], full["benign"]) <= full["malicious"] / 2, "who paints beside it gets nearly what he would get"


def test_it_is_the_same_to_the_bit_and_its_draws_depend_on_seed_and_key(network: SmallNet, photos: Tensor):
    mask, short = square(2, 64, 24, 40), Protect(steps=3)
    found = [short.run(network, photos, mask, KEYS).noise_BCHW for _ in range(2)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], Protect(steps=3, seed=1).run(network, photos, mask, KEYS).noise_BCHW)
    linear = LinearGain(kappa=3)
    both = short.run(linear, photos, mask, KEYS).noise_BCHW
    apart = [short.run(linear, photos[i : i + 1], mask[:1], KEYS[i : i + 1]).noise_BCHW for i in (0, 1)]
    assert torch.equal(both, torch.cat(apart))
    noise = random_noise(photos, EPS, KEYS)
    assert torch.equal(noise[1:], random_noise(photos[1:], EPS, KEYS[1:])) and not torch.equal(noise, random_noise(photos, EPS, KEYS, 1))


def test_further_masks_are_usable_and_differ():
    mask, settings = square(2, 64, 24, 40), Protect()
    drawn = torch.cat([settings.further(mask, KEYS, step) for step in range(40)])
    assert drawn.flatten(1).any(1).all() and not drawn.flatten(1).all(1).any() and set(drawn.unique().tolist()) == {0, 1}
    assert len({one.numpy().tobytes() for one in drawn}) > 60
    assert (drawn * grown(mask[:1], 24)).equal(drawn), "they stay near m"


@pytest.mark.parametrize("fields", [{"eps": 0}, {"eps": 6.4}, {"target": "pink"}, {"beta1": 1}, {"hide": -1}])
def test_settings_that_cannot_be_are_refused(fields: dict):
    with pytest.raises(InputError, match=f"Protect.{next(iter(fields))} is .*accepted"):
        Protect(**fields)


def test_a_ring_that_reaches_the_edges_is_refused():
    with pytest.raises(InputError, match="covers the whole picture"):
        Protect().run(LinearGain(), inner_picture(), square(2, 40, 7, 33), KEYS)
