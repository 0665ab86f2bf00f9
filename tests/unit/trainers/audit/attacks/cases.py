"""What attacks are tested on: a linear classifier, of which every answer is known, and a small network.

Shape suffixes: N pictures, C = 3 channels, H = W = 6 pixels, M = 3·36, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.seeding import rng
from trainers.audit.attacks.base import Attack, Attacked, lengths
from trainers.audit.classifier import Classifier

SHAPE = (3, 6, 6)


class Linear:
    """Logits x·W + b of K classes, the pictures it classifies, and their exact distances, in float64 and without the box of pixels."""

    def __init__(
        self, count: int = 40, classes: int = 6, spread: float = 0.1, scale: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> None:
        draw = rng("linear", count, classes, spread)
        pixels = int(np.prod(SHAPE))
        self.weight_MK = scale * draw.standard_normal((pixels, classes))
        self.bias_K = -0.5 * self.weight_MK.sum(0) + 0.2 * scale * draw.standard_normal(classes)
        self.picture_NM = 0.5 + spread * draw.uniform(-1, 1, (count, pixels))
        self.logit_NK = self.picture_NM @ self.weight_MK + self.bias_K
        self.label_N = self.logit_NK.argmax(1)
        self.classes, self.dtype = classes, dtype
        self.keys = tuple(f"key{number}" for number in range(count))

    @property
    def pictures(self) -> Tensor:
        return torch.from_numpy(self.picture_NM).reshape(-1, *SHAPE).to(self.dtype)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.label_N)

    def classifier(self) -> Classifier:
        weight_MK, bias_K = (torch.from_numpy(value).to(self.dtype) for value in (self.weight_MK, self.bias_K))
        return Classifier(lambda picture_BCHW, _: picture_BCHW.flatten(1) @ weight_MK + bias_K, self.classes, dtype=self.dtype)

    def distances(self, norm: str) -> np.ndarray:
        """min over k of (z_y − z_k)/‖w_y − w_k‖ in the dual norm, [N]."""
        found_N = np.empty(len(self.label_N))
        for number, own in enumerate(self.label_N):
            ways_KM = (self.weight_MK[:, [own]] - self.weight_MK).T
            size_K = np.abs(ways_KM).sum(1) if norm == "linf" else np.sqrt((ways_KM**2).sum(1))
            gap_K = self.logit_NK[number, own] - self.logit_NK[number]
            found_N[number] = min(gap_K[k] / size_K[k] for k in range(self.classes) if k != own)
        return found_N

    def middle(self, norm: str) -> float:
        """An ε that about half of the pictures survive, far from any single picture's distance."""
        ordered_N = np.sort(self.distances(norm))
        half = len(ordered_N) // 2
        at = half - 3 + int(np.argmax(np.diff(ordered_N[half - 3 : half + 4])))
        return float(ordered_N[at] + ordered_N[at + 1]) / 2


class Network:
    """A small network with random weights and pictures that it classifies with some margin."""

    def __init__(self, count: int = 24, classes: int = 6, dtype: torch.dtype = torch.float64) -> None:
        draw = rng("network", classes)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(32, classes)]
        self.model = nn.Sequential(*layers).to(dtype).requires_grad_(False).eval()
        for weight in self.model.parameters():
            fan = max(weight[0].numel(), 1)
            weight.copy_(torch.from_numpy(draw.standard_normal(tuple(weight.shape)) * 1.5 / np.sqrt(fan)))
        self.pictures = torch.from_numpy(draw.uniform(0.1, 0.9, (count, *SHAPE))).to(dtype)
        self.model[-1].bias.copy_(self.model[-1].bias - self.model(self.pictures).mean(0))
        self.labels = self.model(self.pictures).argmax(1)
        self.keys = tuple(f"key{number}" for number in range(count))
        self.classes, self.dtype = classes, dtype

    def classifier(self) -> Classifier:
        return Classifier(lambda picture_BCHW, _: self.model(picture_BCHW), self.classes, dtype=self.dtype)


Case = Linear | Network


def attacked(attack: Attack, case: Case, batch: int | None = None) -> Attacked:
    """What the attack makes of all the case's pictures. Its queries are exact, its pictures lie in 0 … 1."""
    classifier = case.classifier()
    size, parts = batch or len(case.keys), []
    for start in range(0, len(case.keys), size):
        at = slice(start, start + size)
        parts.append(attack.perturb(classifier, case.pictures[at], case.labels[at], case.keys[at]))
    found = Attacked(*(torch.cat([getattr(part, name) for part in parts]) for name in ("picture_BCHW", "queries_B", "zero_gradient_B")))
    assert int(found.queries_B.sum()) == classifier.queries
    assert found.picture_BCHW.dtype == case.dtype and found.picture_BCHW.shape == case.pictures.shape
    assert found.picture_BCHW.min() >= 0 and found.picture_BCHW.max() <= 1
    return found


def changes(found: Attacked, case: Case, norm: str) -> np.ndarray:
    """How long each change is, [N]."""
    return lengths(found.picture_BCHW - case.pictures, norm).numpy()


def fooled(picture_NCHW: Tensor, case: Case, labels: Sequence[int] | Tensor | None = None) -> np.ndarray:
    """Whether each picture is misclassified, bool [N]."""
    predicted = case.classifier().predict(picture_NCHW, case.keys)
    return (predicted != torch.as_tensor(case.labels if labels is None else labels)).numpy()
