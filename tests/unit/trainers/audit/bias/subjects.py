"""Models whose answers are known, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets.seeding import rng
from datasets.synthetic import COLOURS, SHAPES
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier
from trainers.encoder import Encoder

WIDTH = 48


class Plain(nn.Module):
    """Features are random directions of a picture's pixels, and the sum of a caption's words' random vectors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.visual = nn.Module()
        self.visual.image_size = size
        self.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        self.matrix = torch.from_numpy(rng("plain").standard_normal((WIDTH, size * size * 3)))
        self.words = torch.from_numpy(rng("words").standard_normal((10_000, WIDTH)))

    def encode_image(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return pixels_BCHW.flatten(1) @ self.matrix.T

    def encode_text(self, token_BL: torch.Tensor) -> torch.Tensor:
        return self.words[token_BL].sum(1)


def tokens(captions: list[str]) -> torch.Tensor:
    rows = [[int(rng(word).integers(1, 10_000)) for word in caption.lower().strip(".").split()] for caption in captions]
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def encoder(size: int = 16) -> Encoder:
    return Encoder(Plain(size), {"embed_dim": WIDTH}, tokens).double().eval()


def pictures(image_NHWC: np.ndarray, label_N: Any = None, prefix: str = "k") -> Pictures:
    label_N = np.zeros(len(image_NHWC), np.int64) if label_N is None else np.asarray(label_N, np.int64)
    return Pictures(tuple(f"{prefix}{i}" for i in range(len(image_NHWC))), image_NHWC, label_N)


def noise(n: int, seed: int = 0, size: int = 16) -> np.ndarray:
    return rng("pictures", seed).integers(60, 190, (n, size, size, 3)).astype(np.uint8)


def subject(given: Pictures, answer: Callable[[np.ndarray], np.ndarray], names: tuple[str, ...], **more: Any) -> Subject:
    """A model that takes pictures (float64 [B, H, W, 3] in 0 … 255) for the classes that `answer` gives (int64 [B])."""

    def logits(picture_BCHW: torch.Tensor, _: Any) -> torch.Tensor:
        image_BHWC = 255 * picture_BCHW.permute(0, 2, 3, 1).double().numpy()
        return torch.eye(len(names))[torch.from_numpy(np.asarray(answer(image_BHWC), np.int64))]

    size = given.image_NHWC.shape[1]
    return Subject(encoder(size), Classifier(logits, len(names)), given, names, **more)


def by_row(given: Pictures, answer_N: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Gives these answers to these pictures, whatever the batch."""
    known = {image.tobytes(): answer for image, answer in zip(given.image_NHWC, answer_N)}
    return lambda image_BHWC: np.array([known[np.rint(image).astype(np.uint8).tobytes()] for image in image_BHWC])


def shapes(names: tuple[str, ...], colours: tuple[str, ...], count: int, size: int = 32, ground: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, S, S, 3], int64 [N]): shape i in colour i, `count` of each class, in slightly different places."""
    images, labels = [], []
    draw = rng("shapes")
    for i in range(count * len(names)):
        label = i % len(names)
        steps = (np.arange(size) + 0.5) / size
        across, down = draw.uniform(-0.04, 0.04, 2)
        x, y = (plane.reshape(1, -1) / 0.38 for plane in np.meshgrid(steps - 0.5 - across, steps - 0.5 - down))
        mask = np.clip(0.5 - SHAPES[names[label]](x, y) * 0.38 * size, 0, 1).reshape(size, size, 1)
        image = ground * (1 - mask) + np.array(COLOURS[colours[label]]) * mask
        images.append(np.rint(image + draw.uniform(-3, 3, (size, size, 1))).clip(0, 255).astype(np.uint8))
        labels.append(label)
    return np.stack(images), np.array(labels)
