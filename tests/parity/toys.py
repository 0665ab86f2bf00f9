"""Small models and made-up batches for tests of `trainers`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch

from datasets.seeding import rng
from trainers.encoder import Encoder, Tokenizer
from trainers.model import TinyCLIP

WORDS = ("red", "green", "blue", "grey", "small", "large", "round", "flat")
RESNET = TinyCLIP(embed_dim=16, vision_width=8, text_width=16, text_layers=1, context_length=8)


def resnet(logit_bias: float | None = None) -> Encoder:
    """A ResNet with batch normalisation."""
    return TinyCLIP(embed_dim=16, vision_width=8, text_width=16, context_length=8, logit_bias=logit_bias).build(0)


def vit() -> Encoder:
    """A vision transformer: no batch normalisation anywhere."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    return Encoder(model, config, Tokenizer(open_clip.SimpleTokenizer(context_length=8)))


@dataclass
class ToyFeed:
    """Random pictures tinted by the first word of their caption; a function of the step alone."""

    batch_size: int = 8
    steps: int = 8
    rank: int = 0
    world: int = 1
    two_views: bool = True
    stop_at: int | None = None
    """raise KeyboardInterrupt instead of delivering this step"""

    def batch(self, step: int) -> dict[str, Any]:
        """The global batch of a step."""
        draw = rng("toy feed", step)
        n = self.batch_size
        word, other = draw.integers(4, size=n), draw.integers(4, 8, size=n)
        tint = np.array([[150, 0, 0], [0, 150, 0], [0, 0, 150], [75, 75, 75]])[word][:, None, None]

        def pictures() -> np.ndarray:
            return (draw.integers(0, 100, (n, 32, 32, 3)) + tint).astype(np.uint8)

        batch = {
            "step": step,
            "number": np.arange(n),
            "key": np.array([f"{step}-{i}" for i in range(n)], object),
            "image": pictures(),
            "caption": np.array([f"a {WORDS[a]} {WORDS[b]} thing" for a, b in zip(word, other)], object),
        }
        if self.two_views:
            batch["image_aug"] = pictures()
            batch["caption_aug"] = np.array([f"{WORDS[b]} {WORDS[a]} thing" for a, b in zip(word, other)], object)
        return batch

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Any]]:
        rows = self.batch_size // self.world
        own = slice(self.rank * rows, (self.rank + 1) * rows)
        for step in range(start_step, self.steps):
            if step == self.stop_at:
                raise KeyboardInterrupt
            yield {name: value if name == "step" else value[own] for name, value in self.batch(step).items()}


@dataclass
class ToySet:
    """A data set of `count` made-up samples, seen once an epoch in an order of the epoch's own."""

    count: int = 48
    batch_size: int = 8
    epochs: int = 2
    rank: int = 0
    world: int = 1
    stop_at: int | None = None
    """raise KeyboardInterrupt instead of delivering this step"""

    def __post_init__(self) -> None:
        self.samples = ToyFeed(batch_size=self.count).batch(0)
        self.steps = self.epochs * (self.count // self.batch_size)

    def batches(self, start_step: int = 0, stop_step: int | None = None, order: Any = None) -> Iterator[dict[str, Any]]:
        rows = self.batch_size // self.world
        for step in range(start_step, self.steps if stop_step is None else stop_step):
            if step == self.stop_at:
                raise KeyboardInterrupt
            epoch, within = divmod(step, self.count // self.batch_size)
            numbers = rng("toy order", epoch).permutation(self.count) if order is None else order
            at = numbers[within * self.batch_size :][self.rank * rows : (self.rank + 1) * rows]
            yield {name: step if name == "step" else value[at] for name, value in self.samples.items()}

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Every sample once, in batches of 7: this rank's share."""
        for number in range(self.rank, -(-self.count // 7), self.world):
            at = slice(7 * number, 7 * number + 7)
            poisoned = np.arange(self.count)[at] % 5 == 0
            yield {"number": number, "poisoned": poisoned, **{name: self.samples[name][at] for name in ("key", "image", "caption")}}
