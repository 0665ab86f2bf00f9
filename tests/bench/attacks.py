"""Adversarial pictures: PGD against foolbox's and APGD against adv-lib's, on a zero-shot classifier that was trained for a moment.

Both sides attack the same pictures in the same batches with the same number of steps and the same step size, within an ε that fools
about half of the pictures. Ours leaves a picture alone as soon as it is fooled; "to the end" is PGD without that. An attack is only better
if it is no weaker, so the shares of pictures that stand are rows too.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.seeding import rng
from tests.bench.measure import Meter, Row, alternate
from trainers.audit.attacks.apgd import APGD
from trainers.audit.attacks.base import Attack
from trainers.audit.attacks.fmn import FMN
from trainers.audit.attacks.pgd import PGD
from trainers.audit.classifier import Classifier, zero_shot
from trainers.encoder import Encoder
from trainers.model import TinyCLIP

CLASSES, BATCH, STEPS, LONG = 10, 64, 20, 100
NAMES = tuple(f"pattern number {number}" for number in range(CLASSES))
TEMPLATES = ("a photo of a {}.",)
SIZES = {"full": (192, 100), "quick": (32, 10)}
"""Pictures, steps of training."""


def pictures(count: int, name: str) -> tuple[Tensor, Tensor]:
    """(noisy pictures of a smooth pattern for each class, floats [N, 3, 32, 32]; the classes [N])."""
    draw = rng("attacks", name)
    pattern_KCHW = torch.from_numpy(rng("attacks", "patterns").standard_normal((CLASSES, 3, 4, 4)).astype(np.float32))
    pattern_KCHW = F.interpolate(pattern_KCHW, size=32, mode="bilinear")
    label_N = torch.from_numpy(draw.integers(CLASSES, size=count))
    noise_NCHW = torch.from_numpy(draw.standard_normal((count, 3, 32, 32)).astype(np.float32))
    return (0.5 + 0.06 * pattern_KCHW[label_N] + 0.15 * noise_NCHW).clamp(0, 1), label_N


def trained(steps: int) -> Encoder:
    """A small CLIP that was trained to tell the patterns apart by their prompts."""
    encoder = TinyCLIP().build(0)
    token_KL = encoder.tokenize([TEMPLATES[0].format(name) for name in NAMES])
    adam = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    picture_NCHW, label_N = pictures(2048, "training")
    draw = rng("attacks", "order")
    for _ in range(steps):
        at_B = torch.from_numpy(draw.integers(len(label_N), size=128))
        feature_BD = encoder.encode_image(255 * picture_NCHW[at_B].permute(0, 2, 3, 1))
        logit_BK = encoder.model.logit_scale.exp() * feature_BD @ encoder.encode_text(token_KL).T
        adam.zero_grad()
        F.cross_entropy(logit_BK, label_N[at_B]).backward()
        adam.step()
    return encoder.eval()


class Bare(nn.Module):
    """The classifier as a module, as the other libraries want it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, picture_BCHW: Tensor) -> Tensor:
        return self.classifier(picture_BCHW, [""] * len(picture_BCHW))


def run(size: str, rounds: int) -> list[Row]:
    import foolbox

    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib plots with it, which no attack needs
    from adv_lib.attacks import apgd

    torch.set_num_threads(1)
    count, steps = SIZES[size]
    picture_NCHW, label_N = pictures(count, "attacked")
    keys = tuple(f"{number:06d}" for number in range(count))
    parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    with zero_shot(trained(steps), NAMES, TEMPLATES) as classifier:
        smallest = FMN(norm="linf", steps=50).perturb(classifier, picture_NCHW, label_N, keys)
        eps = float((smallest.picture_BCHW - picture_NCHW).abs().flatten(1).amax(1).median())
        accuracy = 100 * float((classifier.predict(picture_NCHW, keys) == label_N).float().mean())
        print(f"  accuracy {accuracy:.1f} %, eps {255 * eps:.2f}/255", flush=True)
        bare = Bare(classifier).eval()
        model = foolbox.PyTorchModel(bare, bounds=(0, 1), device="cpu")
        theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=2.5 * eps / STEPS, steps=STEPS, random_start=True)

        def ours(attack: Attack) -> Callable[[slice], Tensor]:
            return lambda at: attack.perturb(classifier, picture_NCHW[at], label_N[at], keys[at]).picture_BCHW

        def timed(attack: Callable[[slice], Tensor]) -> dict[str, float]:
            with Meter() as used:
                made_NCHW = torch.cat([attack(at) for at in parts])
            stands = float((classifier.predict(made_NCHW, keys) == label_N).float().mean())
            return {"per_cpu": count / used.cpu, "stands": 100 * stands}

        def by_foolbox(at: slice) -> Tensor:
            return theirs(model, picture_NCHW[at], label_N[at], epsilons=eps)[1]

        def by_adv_lib(at: slice) -> Tensor:
            return apgd(bare, picture_NCHW[at], label_N[at], eps=eps, norm=float("inf"), n_iter=LONG, loss_function="ce")

        rows = []
        for what, attack, other, mark in (
            (f"PGD, {STEPS} steps", PGD(eps=eps, steps=STEPS), by_foolbox, 1.0),
            (f"PGD, {STEPS} steps, to the end", PGD(eps=eps, steps=STEPS, stop=False), by_foolbox, None),
            (f"APGD, {LONG} steps", APGD(eps=eps, steps=LONG), by_adv_lib, 1.0),
        ):
            us, them = alternate(lambda attack=attack: timed(ours(attack)), lambda other=other: timed(other), rounds)
            rows.append(Row(what, "pictures/CPU-s", us["per_cpu"], them["per_cpu"], mark=mark))
            one_more = 1 + 100 / count / max(them["stands"][0], 1e-9)
            rows.append(Row(f"{what}: standing", "%", us["stands"], them["stands"], mark=one_more, at_least=False))
    return rows
