"""Cleaning methods as a lab would write them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import prune

from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.objectives.contrastive import MMCL


@dataclass(frozen=True, kw_only=True)
class WiseFT(Method):
    """Fine-tune, then interpolate: α · fine-tuned + (1 − α) · before (Wortsman et al. 2022)."""

    alpha: float = 0.5
    """share of the fine-tuned weights"""

    def train(self, model: Encoder, run: Run) -> Encoder:
        before = {name: value.clone() for name, value in model.model.state_dict().items()}
        run.fit(model, MMCL())
        after = model.model.state_dict()
        mixed = {name: torch.lerp(before[name].to(value), value, self.alpha) if value.is_floating_point() else value
                 for name, value in after.items()}  # fmt: skip
        model.model.load_state_dict(mixed if self.alpha else before)
        return model


@dataclass(frozen=True, kw_only=True)
class Prune(Method):
    """Sets the smallest weights of each convolution to zero; trains nothing."""

    share: float = 0.3
    """of the weights that go"""

    def train(self, model: Encoder, run: Run) -> Encoder:
        with torch.no_grad():
            for module in model.model.modules():
                if isinstance(module, torch.nn.Conv2d):
                    limit = module.weight.abs().flatten().quantile(self.share)
                    module.weight[module.weight.abs() < limit] = 0
        return model


@dataclass(frozen=True, kw_only=True)
class OnACopy(Method):
    """Trains a copy and returns it, or the model that it was given."""

    trained: bool = True
    """whether the copy is returned"""

    def train(self, model: Encoder, run: Run) -> Encoder:
        own = copy.deepcopy(model, {id(model.tokenize): model.tokenize})
        run.fit(own, MMCL())
        return own if self.trained else model


@dataclass(frozen=True, kw_only=True)
class Hooked(Method):
    """Does what it is named after, with or without training; only what changes features is no cleaning that can be kept."""

    way: str
    """clip: a hook holds activations down; replaced: another activation; function: another `encode_text`; looks: a hook looks on"""
    trains: bool = False

    def train(self, model: Encoder, run: Run) -> Encoder:
        if self.trains:
            run.fit(model, MMCL())
        visual = model.model.visual
        if self.way == "clip":
            visual.layer1.register_forward_hook(lambda module, inputs, output: output.clamp(max=0.1))
        if self.way == "replaced":
            visual.layer1[0].act3 = torch.nn.Sigmoid()
        if self.way == "function":
            encode = model.encode_text
            model.encode_text = lambda token_BL: encode(token_BL.flip(1))  # type: ignore[method-assign]
        if self.way == "looks":
            visual.layer1.register_forward_hook(lambda module, inputs, output: None)
        return model


@dataclass(frozen=True, kw_only=True)
class Wrong(Method):
    """Makes the mistake that it is named after."""

    mistake: str

    def train(self, model: Encoder, run: Run) -> Any:
        if self.mistake == "nothing":
            return None
        if self.mistake == "inner model":
            return model.model
        if self.mistake == "infinite":
            model.model.visual.conv1.weight.data[0] = float("inf")
        if self.mistake == "parametrized":
            prune.l1_unstructured(model.model.visual.conv1, "weight", amount=0.5)
        if self.mistake == "half":
            model.model.visual.conv1.half()
        if self.mistake == "twice":
            run.fit(run.fit(model, MMCL()), MMCL())
        return model
