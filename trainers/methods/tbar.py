"""TBAR, task arithmetic against a backdoor: train the backdoor into a copy, then move the weights the opposite way (arXiv 2510.14845)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from safetensors import SafetensorError, safe_open

from datasets import seeding
from datasets.component import Count, NotNegative
from datasets.errors import InputError
from datasets.storage import write_whole
from datasets.triggers.base import Trigger, put_on
from trainers import distributed
from trainers.batch import image_tensor
from trainers.evaluate.decree import Inversion, blended
from trainers.evaluate.inputs import fixed_pictures
from trainers.methods.base import Method, Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.intact import damaged, digest
from trainers.methods.still import still_batchnorm, still_scale
from trainers.objectives.triggered import Triggered

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder

FILE = "inverted.safetensors"
"""File in the stage's folder: mask [H, W], pattern [H, W, 3], and the captions that stand for the attack."""
TEXTS = 512
"""Captions to encode at a time."""


@dataclass(frozen=True, kw_only=True)
class TBAR(Method):
    """θ ← θ − α(θ_trigger − θ), where θ_trigger is a copy fine-tuned on triggered pictures with the attack's captions (`Triggered`).

    All of the stage's epochs train the copy, and their lines of metrics describe it. The last line and the checkpoint are those of the
    returned model. The logit scale and the statistics of batch normalisation do not change.

    With `inverted` the method knows nothing of the attack: it searches mask and pattern on the cleaning pictures as `Decree` does, and
    takes as captions those of the cleaning set that are most similar to the mean feature of pictures with that mark. With `oracle` it uses
    the experiment's own trigger and the captions of its victims, which a defender does not have.
    """

    trigger: Literal["inverted", "oracle"] = "inverted"
    """inverted: searched on the model | oracle: the experiment's own"""
    alpha: NotNegative = 1.0
    """α, step length; 0 leaves the model as it is"""
    inversion: Inversion = Inversion()
    """how the mark is searched, with the trigger `inverted`"""
    pictures: Annotated[int, Ge(2)] = 512
    """how many cleaning pictures to search the mark on, chosen by the hash of their keys"""
    captions: Count = 16
    """how many captions stand for the inverted attack"""

    @property
    def label(self) -> str:
        return "TBAR, true trigger (oracle)" if self.trigger == "oracle" else "TBAR, inverted trigger"

    @property
    def slug(self) -> str:
        return f"tbar-{self.trigger}"

    def train(self, model: Encoder, run: Run) -> Encoder:
        import torch

        if run.training.accumulate > 1:
            raise InputError(f"TBAR puts the trigger on whole batches: accumulate must be 1, not {run.training.accumulate}.")
        model.place(run.world.device, precision=run.training.precision, channels_last=run.training.channels_last)
        stamp, captions = oracle(run) if self.trigger == "oracle" else self._inverted(model, run)
        token_KL = model.tokenize(captions).to(model.device)
        number = len(run.keys())

        def begin_epoch(model: Encoder, epoch: int) -> EpochPlan:
            return EpochPlan(values={"draw": run.rng(f"triggers {epoch}").integers(2**62, size=number)})

        def on(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {**batch, "image": stamp(batch), "text_aug": token_KL[batch["draw"] % len(token_KL)]}

        poisoned = copy.deepcopy(model, {id(model.tokenize): model.tokenize})
        with still_scale(poisoned), still_batchnorm(poisoned):
            run.fit(poisoned, Triggered(stamp=on), begin_epoch=begin_epoch)
        learnt = dict(poisoned.model.named_parameters())
        with torch.no_grad():
            for name, weight in model.model.named_parameters():
                if name != "logit_scale":
                    weight.sub_(self.alpha * (learnt[name] - weight))
        return model

    def _inverted(self, model: Encoder, run: Run) -> tuple[Stamp, list[str]]:
        """(function that puts the inverted mark on pictures, captions that stand for the attack); stored in the stage's folder."""
        import torch
        from safetensors.torch import save

        file = None if run.folder is None else run.folder / FILE
        stored = distributed.from_main(_read(file) if file is not None and file.exists() and run.world.main else None, run.world)
        if stored is None:
            image_NHW3 = fixed_pictures(run.pairs(), self.pictures, self.inversion.seed, run.world)
            inverted = distributed.from_main(self.inversion.of(model, image_NHW3), run.world)
            stored = inverted.mask_HW, inverted.pattern_HW3, self._nearest(model, run, image_NHW3, inverted)
            if file is not None and run.world.main:
                tensors = {"mask": torch.from_numpy(stored[0]), "pattern": torch.from_numpy(stored[1])}
                captions = json.dumps(stored[2])
                write_whole(file, save(tensors, metadata={"captions": captions, "digest": digest(*stored[:2], captions)}))
        mask_HW, pattern_HW3, captions = stored
        mask, pattern = torch.from_numpy(mask_HW).to(model.device), torch.from_numpy(pattern_HW3).to(model.device)
        return (lambda batch: blended(batch["image"], mask, pattern)), captions

    def _nearest(self, model: Encoder, run: Run, image_NHW3: np.ndarray, inverted: Any) -> list[str]:
        """The pairs' captions that are most similar to the mean feature of pictures with the mark, most similar first."""
        import torch

        mask, pattern = (torch.from_numpy(value).to(model.device) for value in (inverted.mask_HW, inverted.pattern_HW3))
        captions = {str(caption) for batch in run.pairs() for caption in batch["caption"]}
        known = sorted(set(distributed.gather_lists(sorted(captions), run.world)))
        training = model.training
        model.eval()
        with torch.no_grad():
            parts = [model.encode_image(blended(part.to(model.device), mask, pattern)) for part in torch.from_numpy(image_NHW3).split(256)]
            mean_D = torch.cat(parts).mean(0)
            texts = (known[start : start + TEXTS] for start in range(0, len(known), TEXTS))
            cosine_K = torch.cat([model.encode_text(model.tokenize(some).to(model.device)) @ mean_D for some in texts])
        model.train(training)
        best = cosine_K.argsort(descending=True, stable=True)[: self.captions].tolist()
        return distributed.from_main([known[i] for i in best], run.world)


Stamp = Callable[[dict[str, "Tensor"]], "Tensor"]
"""A batch with "draw" [B] → its pictures with the mark."""


def oracle(run: Run) -> tuple[Stamp, list[str]]:
    """(function that puts the experiment's trigger on pictures, captions of its victims). InputError unless there is exactly one attack,
    with one target and a plan."""
    captions = sorted(run.victims_captions())
    if len(run.attacks) != 1 or run.attacks[0].all_to_all or not captions:
        raise InputError("the true trigger of an attack can be used where the experiment has one attack, with one target and a plan; "
                         f"this one has {len(run.attacks)}{' (all-to-all)' if any(one.all_to_all for one in run.attacks) else ''}.")
    trigger: Trigger = run.attacks[0].trigger

    def stamp(batch: dict[str, Tensor]) -> Tensor:
        pictures = batch["image"].cpu().numpy()
        draws: Sequence[int] = batch["draw"].tolist()
        stamped = [put_on(trigger, image, seeding.rng(draw, "trigger")) for image, draw in zip(pictures, draws)]
        return image_tensor(np.stack(stamped), batch["image"].device)

    return stamp, captions


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Mask, pattern and captions from the file. InputError if it is damaged."""
    try:
        with safe_open(file, framework="np") as opened:
            mask_HW, pattern_HW3, told = opened.get_tensor("mask"), opened.get_tensor("pattern"), opened.metadata()
        whole = told["digest"] == digest(mask_HW, pattern_HW3, told["captions"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(file) from error
    if not whole:
        raise damaged(file)
    return mask_HW, pattern_HW3, json.loads(told["captions"])
