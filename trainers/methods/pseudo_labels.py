"""Cleaning with classes from another model: as deep clustering, but the classes are a stronger model's zero-shot predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.evaluate.zeroshot import class_head
from trainers.methods.base import Run
from trainers.methods.epoch import EpochPlan
from trainers.methods.labels import Labels
from trainers.methods.with_classes import WithClasses
from trainers.methods.with_labels import WithLabels

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(WithClasses, WithLabels):
    """A picture's class is the one that `labeller` assigns.

    The labels are a separate stage, made once per labeller and cleaning set, and joined by the samples' keys. The head is drawn once.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labelling  # noqa: B018 (raises InputError for what cannot label)

    @property
    def label(self) -> str:
        return f"pseudo-labels{self.objective.beside}"

    def train(self, model: Encoder, run: Run) -> Encoder:
        labels = self.labels(run)
        model.draw_head(labels.classes, run.rng("head"))
        values = {"target": labels.of(run.keys())}
        return run.fit(model, self.objective, begin_epoch=lambda model, epoch: EpochPlan(values=values))


def zero_shot_labels(
    encoder: Encoder, batches: Iterable[dict[str, Any]], names: tuple[str, ...], templates: tuple[str, ...]
) -> Labels:
    """Each picture's most similar class (the first among equals), for `batches` with "key" and "image". Sets the model to evaluation
    mode."""
    import torch

    encoder.eval()
    by_key: dict[str, int] = {}
    with torch.no_grad():
        head_KD = class_head(encoder, names, templates, World(device=encoder.device))
        for batch in batches:
            feature_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            label_B = (feature_BD @ head_KD.T).argmax(dim=1).tolist()
            by_key |= zip((str(key) for key in batch["key"]), label_B)
    return Labels(by_key, len(names), "the pseudo-labels", names)
