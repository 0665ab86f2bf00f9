"""The model that is trained and measured: an open_clip model that takes uint8 pictures and returns unit features.

Shape suffixes: B rows, H and W height and width, C channels, L tokens, D features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datasets.errors import InputError

MAX_LOGIT_SCALE = math.log(100)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Channel means and standard deviations of OpenAI's training pictures, for pixels in 0 … 1."""
CACHED_CAPTIONS = 200_000

TOWERS = ("text_cfg", "vision_cfg")
"""The two encoders in open_clip's configurations."""


def tower_defaults(tower: str) -> dict[str, Any]:
    """open_clip's default for each field of a tower. A configuration may leave fields out."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return {field.name: field.default for field in fields(CLIPTextCfg if tower == "text_cfg" else CLIPVisionCfg)}


def twin(name: str) -> str:
    """open_clip's name for the same architecture with the other activation (QuickGELU or GELU); "" if it has none."""
    import open_clip

    other = name.removesuffix("-quickgelu") if name.endswith("-quickgelu") else f"{name}-quickgelu"
    return other if other in open_clip.list_models() else ""


class Tokenizer:
    """A tokenizer that caches captions it has seen, at most CACHED_CAPTIONS: list of B captions -> int64 [B, L]."""

    def __init__(self, tokenize: Any) -> None:
        self._tokenize = tokenize
        self._seen: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._seen]
        fresh = dict(zip(new, self._tokenize(new))) if new else {}
        tokens_BL = torch.stack([fresh[c] if c in fresh else self._seen[c] for c in captions])
        if len(self._seen) + len(fresh) > CACHED_CAPTIONS:
            self._seen.clear()
        self._seen.update((caption, row.clone()) for caption, row in fresh.items())
        return tokens_BL


class Encoder(nn.Module):
    """An open_clip model that takes uint8 pictures and returns unit features as floats.

    `model` is the open_clip model; checkpoints hold its state dict. `config` is its open_clip configuration. `head`, if a cleaning method
    added one, is a linear classifier of picture features that is trained with the model but is not part of it. `twin` is open_clip's name
    for the same architecture with the other activation (QuickGELU or GELU), or "".
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, config: dict[str, Any], tokenizer: Tokenizer, twin: str = "") -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.twin = twin
        self.tokenize = tokenizer
        preprocess = getattr(self.model.visual, "preprocess_cfg", {})
        self.preprocess = {"mean": tuple(preprocess.get("mean", MEAN)),
                           "std": tuple(preprocess.get("std", STD)),
                           "interpolation": "bicubic", "resize_mode": "shortest"}
        self.register_buffer("mean", torch.tensor(self.preprocess["mean"]) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess["std"]) * 255, persistent=False)
        self.head: Any = None
        self.autocast: torch.dtype | None = None
        self.channels_last = True
        self._image_tower = self.model.encode_image
        self._text_tower = self.model.encode_text

    def normalise_by(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        """From now on normalise pictures with these channel means and standard deviations, for pixels in 0 … 1. The default is OpenAI's."""
        self.preprocess |= {"mean": tuple(mean), "std": tuple(std)}
        self.mean.copy_(torch.tensor(self.preprocess["mean"]) * 255)
        self.std.copy_(torch.tensor(self.preprocess["std"]) * 255)

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return self.model.logit_scale.device

    def draw_head(self, classes: int, rng: np.random.Generator) -> list[nn.Parameter]:
        """Add a linear head with that many classes, or redraw the one there is in place: weights N(0, 0.01), bias 0. Return its
        parameters."""
        width = self.config["embed_dim"]
        if self.head is None:
            self.head = nn.Linear(width, classes, device=self.device, dtype=self.mean.dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(0.01 * rng.standard_normal((classes, width))))
            self.head.bias.zero_()
        return list(self.head.parameters())

    def frozen(self) -> Encoder:
        """A copy in evaluation mode, without gradients and not compiled, on the same device and at the same precision."""
        clone = copy.deepcopy(self, {id(self.tokenize): self.tokenize}).eval().requires_grad_(False)
        clone._image_tower, clone._text_tower = clone.model.encode_image, clone.model.encode_text
        return clone

    def place(
        self, device: torch.device, *, precision: str = "auto", channels_last: bool = True, compile: bool = False
    ) -> Encoder:
        """Move the model to a device, set precision and memory layout, and return it. InputError for bf16 on a GPU that does not have
        it."""
        on_gpu = device.type == "cuda"
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and on_gpu and not has_bf16:
            raise InputError(f"training.precision is bf16, which {torch.cuda.get_device_name(device)} has not; use fp32")
        self.autocast = torch.bfloat16 if precision == "bf16" or (precision == "auto" and has_bf16) else None
        self.channels_last = channels_last
        self.to(device)
        self.model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        if compile:
            self._image_tower = torch.compile(self.model.encode_image)
            self._text_tower = torch.compile(self.model.encode_text)
        return self

    def encode_image(self, image_BHWC: Tensor, unit: bool = True) -> Tensor:
        """uint8 [B, H, W, 3] -> features [B, D], of length 1 unless `unit` is false. Pictures are normalised on the device and encoded
        under autocast if that is set."""
        pixels_BCHW = ((image_BHWC.to(self.mean.dtype) - self.mean) / self.std).permute(0, 3, 1, 2)
        if not self.channels_last:
            pixels_BCHW = pixels_BCHW.contiguous()
        with self._precision():
            feature_BD = self._image_tower(pixels_BCHW)
        return _unit(feature_BD) if unit else feature_BD

    def encode_text(self, token_BL: Tensor, unit: bool = True) -> Tensor:
        """int64 [B, L] -> features [B, D], of length 1 unless `unit` is false."""
        with self._precision():
            feature_BD = self._text_tower(token_BL)
        return _unit(feature_BD) if unit else feature_BD

    def forward(self, batch: Mapping[str, Tensor], unit: bool = True) -> dict[str, Tensor]:
        """Features [B, D] of whatever the batch holds among image, text, image_aug and text_aug, of length 1 unless `unit` is false; the
        scalars logit_scale (exponentiated) and, if the model has one, logit_bias; with a head also class_logits [B, K] of image.

        Both views of a modality are encoded as one batch, so batch normalisation uses their joint statistics, as in CleanCLIP.
        """
        out: dict[str, Tensor] = {}
        for name, encode in (("image", self.encode_image), ("text", self.encode_text)):
            views = [view for view in (name, f"{name}_aug") if view in batch]
            if views:
                feature_BD = encode(torch.cat([batch[view] for view in views]) if len(views) > 1 else batch[views[0]], unit)
                out.update(zip(views, feature_BD.chunk(len(views))))
        if self.head is not None and "image" in out:
            out["class_logits"] = self.head(out["image"])
        out["logit_scale"] = self.model.logit_scale.exp().reshape(())
        if self.model.logit_bias is not None:
            out["logit_bias"] = self.model.logit_bias.reshape(())
        return out

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the logarithm of the logit scale to [0, ln 100]."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()


def wide(feature_BD: Tensor) -> Tensor:
    """In fp32, unless it is that or wider."""
    return feature_BD.float() if feature_BD.dtype in (torch.float16, torch.bfloat16) else feature_BD


def _unit(feature_BD: Tensor) -> Tensor:
    """Scale each row to length 1, in fp32 or better."""
    return F.normalize(wide(feature_BD), dim=-1)
