"""EOT and BPDA: their gradients against formulas, and what an adaptive attack does that an oblivious one does not."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.attacks.base import gradient, margin, project
from trainers.audit.classifier import Classifier, as_bytes
from trainers.audit.defences.adaptive import EOT, adaptive, bpda
from trainers.audit.defences.base import Defence
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.defences.jpeg import JPEG
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation
from trainers.audit.defences.ttc import TTC

SIDE = 3
VALUES = 3 * SIDE * SIDE
KEYS = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Linear(Defence):
    """Multiplies the picture by a random matrix."""

    random: ClassVar[bool] = True

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        matrix = torch.from_numpy(np.stack([draw.standard_normal((VALUES, VALUES)) for draw in draws]))
        return (matrix @ picture_BCHW.flatten(1)[..., None]).reshape(picture_BCHW.shape)


@dataclass(frozen=True, kw_only=True)
class Shattered(Linear):
    """The same without a gradient; its surrogate doubles."""

    differentiable: ClassVar[bool] = False

    def apply(self, picture_BCHW: Tensor, draws: Sequence[np.random.Generator], classifier: Classifier) -> Tensor:
        return super().apply(picture_BCHW, draws, classifier).detach()

    def surrogate(self, picture_BCHW: Tensor) -> Tensor:
        return 2 * picture_BCHW


def line() -> tuple[Tensor, Classifier]:
    weight = torch.from_numpy(rng("w").standard_normal((2, VALUES)))
    return weight, Classifier(lambda x, _: x.flatten(1) @ weight.T, 2, dtype=torch.float64)


def pictures() -> Tensor:
    return torch.from_numpy(rng("x").random((2, 3, SIDE, SIDE)))


@pytest.mark.parametrize("k", [1, 4])
def test_eot_through_linear_transforms_is_the_mean_matrix(k):
    weight, bare = line()
    x, eot, defence = pictures().requires_grad_(), EOT(draws=k, seed=3), Linear()
    seen = adaptive(defence, bare, eot)
    for call in range(2):
        found = torch.autograd.grad(seen(x, KEYS)[:, 1].sum(), x)[0]
        for i, key in enumerate(KEYS):
            matrices = np.stack([eot.draw(defence, key, call * k + number).standard_normal((VALUES, VALUES)) for number in range(k)])
            np.testing.assert_allclose(found[i].flatten(), matrices.mean(0).T @ weight[1].numpy(), rtol=1e-12)
    assert seen.queries == 4 and bare.queries == 4 * k


def test_bpda_goes_forward_by_the_one_and_backward_by_the_other():
    x = pictures().requires_grad_()
    upstream = torch.from_numpy(rng("up").standard_normal(x.shape))
    out = bpda(x, torch.round)
    assert torch.equal(out, x.round())
    assert torch.equal(torch.autograd.grad(out, x, upstream)[0], upstream)
    out = bpda(x, torch.round, lambda x: x**3)
    torch.testing.assert_close(torch.autograd.grad(out, x, upstream)[0], 3 * x.detach() ** 2 * upstream)
    own = bpda(x, lambda x: x)
    own.mul(1.0)
    assert own.data_ptr() != x.data_ptr()


def test_a_defence_without_a_gradient_is_seen_through_its_surrogate():
    """The surrogate doubles, so the gradient is twice the weights whatever was drawn; the logits are those of the true transform."""
    weight, bare = line()
    x, eot, defence = pictures().requires_grad_(), EOT(draws=3), Shattered()
    logits = adaptive(defence, bare, eot)(x, KEYS)
    drawn = [defence.apply(x, [eot.draw(defence, key, number) for key in KEYS], bare).flatten(1) @ weight.T for number in range(3)]
    torch.testing.assert_close(logits, torch.stack(drawn).mean(0))
    torch.testing.assert_close(torch.autograd.grad(logits[:, 0].sum(), x)[0].flatten(1), 2 * weight[0].expand(2, -1))


def test_the_attacker_never_knows_the_defences_draws():
    _, bare = line()
    x, defence = pictures(), Linear()
    guarded, seen = defence.guard(bare), adaptive(defence, bare, EOT(draws=1))
    used, guessed = [guarded(x, KEYS) for _ in range(20)], [seen(x, KEYS) for _ in range(20)]
    assert not any(torch.equal(one, other) for one in used for other in guessed)
    assert torch.equal(guessed[0], adaptive(defence, bare, EOT(draws=1))(x, KEYS))
    assert not torch.equal(guessed[0], adaptive(defence, bare, EOT(draws=1, seed=1))(x, KEYS))


def test_a_defence_that_is_not_random_is_asked_once():
    _, bare = line()
    assert torch.equal(adaptive(BitDepth(), bare, EOT(draws=7))(pictures(), KEYS), BitDepth().guard(bare)(pictures(), KEYS))
    assert bare.queries == 4


def test_the_same_key_twice_in_a_batch_has_draws_of_its_own():
    _, bare = line()
    x = pictures()[:1].repeat(2, 1, 1, 1)
    for seen in (adaptive(Linear(), bare, EOT(draws=2)), Linear().guard(bare)):
        first, second = seen(x, ("a", "a"))
        assert not torch.equal(first, second)


def test_the_number_of_draws_is_at_least_one():
    with pytest.raises(InputError, match="EOT.draws is 0"):
        EOT(draws=0)


SIZE, CLASSES, EPS = 12, 3, 16 / 255


@cache
def network() -> tuple[nn.Module, Tensor, Tensor]:
    """A small trained network, and pictures of its three classes that it was not trained on."""
    coarse = torch.from_numpy(rng("classes").standard_normal((CLASSES, 3, 4, 4)).astype(np.float32))
    centre = 0.5 + 0.1 * nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    label = torch.arange(360) % CLASSES
    noise = torch.from_numpy(rng("pictures").standard_normal((360, 3, SIZE, SIZE)).astype(np.float32))
    x = (centre[label] + 0.08 * noise).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8 * 16, 16),
                            nn.Softplus(), nn.Linear(16, CLASSES))  # fmt: skip
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(4 * (x[60:] - 0.5)), label[60:]).backward()
        adam.step()
    return net.requires_grad_(False), x[:60], label[:60]


def classifier() -> Classifier:
    net = network()[0]
    return Classifier(lambda x, _: net(4 * (x - 0.5)), CLASSES, features=lambda x: net[:5](4 * (x - 0.5)))


def attacked(seen: Classifier, eps: float, given: tuple[Tensor, Tensor] | None = None, steps: int = 10) -> Tensor:
    """PGD on the margin."""
    clean, label = given or network()[1:]
    keys, x = tuple(map(str, range(len(clean)))), clean
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = seen(x, keys)
        slope = gradient(margin(logits, label), x) if logits.requires_grad else torch.zeros_like(x)
        x = project(x.detach() + 2.5 * eps / steps * slope.sign(), clean, eps, "linf")
    return x


def predicted(defence: Defence, x: Tensor) -> Tensor:
    return defence.guard(classifier()).predict(x, tuple(map(str, range(len(x)))))


@pytest.mark.parametrize("defence", [
    JPEG(), BitDepth(), Crops(crops=4), TotalVariation(steps=30), Quilting(neighbours=3, size=300), TTC(tau=10.0),
], ids=lambda defence: defence.label)  # fmt: skip
def test_a_defence_is_no_more_robust_when_the_attacker_knows_it(defence):
    """Of the pictures on which the two attacks differ, no significant majority resists the adaptive one (sign test)."""
    _, clean, label = network()
    defence = defence.ready(as_bytes(clean).numpy()[:20])
    oblivious, knowing = attacked(classifier(), EPS), attacked(adaptive(defence, classifier(), EOT(draws=4)), EPS)
    assert (knowing - clean).abs().max() <= EPS + 1e-6
    right, after, against = (predicted(defence, x) == label for x in (clean, oblivious, knowing))
    assert right.float().mean() > 0.9 and against.float().mean() < 0.7
    better, worse = int((against & ~after).sum()), int((after & ~against).sum())
    assert better + worse == 0 or binomtest(better, better + worse, alternative="greater").pvalue > 0.05


def test_bit_depth_hides_its_gradient_and_falls_under_bpda():
    _, clean, label = network()
    looks = attacked(BitDepth().guard(classifier()), EPS)  # follows the gradient there is, which is 0
    broken = attacked(adaptive(BitDepth(), classifier()), EPS)
    assert torch.equal(looks, clean)
    assert (predicted(BitDepth(), looks) == label).float().mean() > 0.9 and (predicted(BitDepth(), broken) == label).float().mean() < 0.3


BOARD = torch.ones(16, 16)
BOARD[::2, ::2] = BOARD[1::2, 1::2] = -1
GROSS = torch.linspace(-1.5, 1.5, 16).tanh().expand(16, 16)


def decoy() -> tuple[Classifier, Tensor, Tensor]:
    """Two classes told apart by a gradual change from left to right, and a third one that a fine chequerboard imitates cheaply; the
    pictures have a faint one."""
    label = torch.arange(8) % 2
    x = (0.5 + 0.03 * (1 - 2 * label)[:, None, None] * GROSS / GROSS.square().mean() + 0.02 * BOARD)[:, None].repeat(1, 3, 1, 1)

    def logits(x: Tensor, keys: Sequence[str]) -> Tensor:
        gross, fine = (GROSS * (x - 0.5)).mean((1, 2, 3)), (BOARD * x).mean((1, 2, 3))
        return torch.stack([gross, -gross, 5 * (fine - 0.018).relu()], 1)

    return Classifier(logits, 3), x, label


@pytest.mark.parametrize("defence", [Crops(crops=4, share=0.8), TotalVariation(), Quilting(neighbours=2)], ids=lambda one: one.label)
def test_a_defence_against_what_an_oblivious_attack_uses_does_not_stop_one_that_knows_it(defence):
    bare, x, label = decoy()
    keys = tuple(map(str, range(8)))
    defence = defence.ready(as_bytes(0.5 + torch.linspace(-0.1, 0.1, 9)[:, None, None, None] * GROSS.expand(9, 3, 16, 16)).numpy())
    oblivious, knowing = (attacked(seen, 0.08, (x, label)) for seen in (bare, adaptive(defence, bare, EOT(draws=4))))
    guarded = defence.guard(bare)
    assert torch.equal(bare.predict(x, keys), label) and torch.equal(guarded.predict(x, keys), label)
    assert (bare.predict(oblivious, keys) == 2).all()
    assert torch.equal(guarded.predict(oblivious, keys), label)
    assert (guarded.predict(knowing, keys) != label).all()
