"""What an attack sees of a model: float pixels in, logits out, every picture counted.

Shape suffixes: B pictures, C channels, H and W height and width, K classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from datasets.errors import InputError
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.inputs import by_pixels
from trainers.evaluate.zeroshot import class_head

Logits = Callable[[Tensor, Sequence[str]], Tensor]
"""(floats [B, C, H, W] in 0 … 1, the pictures' keys) -> logits [B, K]. Only classifiers with random parts use the keys."""


class Classifier:
    """Logits of pictures as floats of 0 … 1, differentiable with respect to the pixels."""

    def __init__(
        self,
        logits: Logits,
        classes: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._logits = logits
        self._features = features
        self.classes = classes
        """K, the number of classes."""
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        """Of pictures and logits."""
        self.queries = 0
        """Pictures that were classified so far; a gradient does not count again."""

    def __call__(self, picture_BCHW: Tensor, keys_B: Sequence[str]) -> Tensor:
        """Logits [B, K]."""
        assert len(keys_B) == len(picture_BCHW), "a key for each picture"
        self.queries += len(picture_BCHW)
        return self._logits(picture_BCHW, keys_B)

    def features(self, picture_BCHW: Tensor) -> Tensor:
        """The model's features of the pictures, not scaled to length 1, floats [B, D]. They count as queries, because the encoder computes
        them. InputError for a classifier without an encoder."""
        if self._features is None:
            raise InputError("this classifier gives logits alone, and a defence asked it for features; accepted: a zero-shot classifier.")
        self.queries += len(picture_BCHW)
        return self._features(picture_BCHW)

    @torch.no_grad()
    def predict(self, picture_BCHW: Tensor, keys_B: Sequence[str]) -> Tensor:
        """The class with the largest logit, int64 [B]; among equals the lowest index. FloatingPointError if logits are not finite."""
        logit_BK = self(picture_BCHW, keys_B)
        if not torch.isfinite(logit_BK).all():
            raise FloatingPointError("the model's logits of the audited pictures are not finite")
        return logit_BK.argmax(1)


@contextmanager
def zero_shot(model: Encoder, class_names: tuple[str, ...], templates: tuple[str, ...]) -> Iterator[Classifier]:
    """Within the block: the model's zero-shot classifier, cosines of picture and class times the logit scale.

    The model is in evaluation mode and fp32, and its weights get no gradient; afterwards it is as before.
    """
    with by_pixels(model):
        with torch.no_grad():
            head_KD = class_head(model, class_names, templates, World(device=model.device))
            scale = model.model.logit_scale.exp()

        def logits(picture_BCHW: Tensor, _: Sequence[str]) -> Tensor:
            return scale * model.encode_image(255 * picture_BCHW.permute(0, 2, 3, 1)) @ head_KD.T

        def features(picture_BCHW: Tensor) -> Tensor:
            return model.encode_image(255 * picture_BCHW.permute(0, 2, 3, 1), unit=False)

        yield Classifier(logits, len(class_names), model.device, model.mean.dtype, features)


def as_floats(image_BHWC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [B, H, W, C] -> floats [B, C, H, W] in 0 … 1."""
    return image_BHWC.permute(0, 3, 1, 2).to(dtype) / 255


def as_bytes(picture_BCHW: Tensor) -> Tensor:
    """Floats [B, C, H, W] in 0 … 1 -> uint8 [B, H, W, C] on the CPU, rounded."""
    return (255 * picture_BCHW.detach()).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
