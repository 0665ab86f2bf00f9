"""Targeted poisoning: how many of the chosen pictures are classified as the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets.component import Count
from datasets.errors import InputError
from datasets.triggers.base import Trigger
from datasets.triggers.targeted import Targeted
from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.zeroshot import class_head, place_of, wilson

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class TargetedSuccess(Evaluator):
    """How many of the chosen pictures zero-shot classification takes for the target, with the Wilson interval: 0 of 16 still leaves up to
    19 %. Measures the first attack with the trigger `Targeted`."""

    text_batch: Count = 512
    """Captions to encode at a time."""

    def check(self, triggers: Mapping[str, Trigger]) -> None:
        if not any(isinstance(trigger, Targeted) for trigger in triggers.values()):
            has = ", ".join(type(one).__name__ for one in triggers.values())
            raise InputError(f"evaluate.evaluators: TargetedSuccess measures an attack with the trigger Targeted; there is {has}.")

    def open(self, material: Material) -> list[dict[str, Any]]:
        """One batch, the same on all ranks: the chosen pictures with target, class names and prompts."""
        self.check({aim.name: aim.trigger for aim in material.aims if aim.trigger is not None})
        aim = next(aim for aim in material.aims if isinstance(aim.trigger, Targeted))
        assert isinstance(aim.trigger, Targeted)
        asked = {"target": aim.target, "class_names": material.class_names, "templates": material.templates}
        return [{"image": aim.trigger.pictures(), **asked}]

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """targeted/success, targeted/success_low and targeted/success_high in percent; targeted/success_count, targeted/n."""
        import torch

        (batch,), training = batches, model.training
        model.eval()
        with torch.no_grad():
            head_KD = class_head(model, batch["class_names"], batch["templates"], world or World(), self.text_batch)
            score_BK = model.encode_image(image_tensor(batch["image"], model.device)) @ head_KD.T
            target_B = torch.full((len(score_BK),), batch["target"], device=model.device)
            count, n = int((place_of(score_BK, target_B) == 0).sum()), len(score_BK)
        model.train(training)
        low, high = wilson(count, n)
        return {
            "targeted/success": 100 * count / n, "targeted/success_low": low, "targeted/success_high": high,
            "targeted/success_count": count, "targeted/n": n,
        }  # fmt: skip
