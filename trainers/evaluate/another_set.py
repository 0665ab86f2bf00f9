"""Zero-shot accuracy on another set, with the classes and prompts of that set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.feed.loader import Batch
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.zeroshot import ZeroShotASR

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class ZeroShotOn(Evaluator):
    """Zero-shot accuracy on a further set, such as CIFAR-10 besides ImageNet. No attack is measured there."""

    data: EvalSet
    """The set; its classes need not be those of the test set."""
    name: str = ""
    """Name in its metrics, `zeroshot_on/<name>/top1`; empty: the set's own name."""

    own_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.called or "/" in self.called:
            raise InputError(f"evaluator.name is {self.name!r}, the set's {self.data.name!r}; accepted: a name without / in one of them.")

    @property
    def called(self) -> str:
        """The name in its metrics."""
        return self.name or self.data.name

    def needs(self) -> tuple[EvalSet, ...]:
        return (self.data,)

    def open(self, material: Material) -> Iterator[Batch]:
        """First the classes and prompts, on every rank; then this rank's share of the pictures."""
        yield {"classes": material.classes[self.data]}
        yield from material.sets[self.data]()

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float]:
        """The metrics zeroshot/… of `ZeroShotASR`, named zeroshot_on/<name>/…: top{1,5,10}, mean_per_class, top1_low, top1_high in percent;
        n and top1_count."""
        rest = iter(batches)
        names, templates = next(rest)["classes"]
        metrics = ZeroShotASR(class_names=names, templates=templates).measure(model, rest, world)
        return {f"zeroshot_on/{self.called}/{name.removeprefix('zeroshot/')}": value for name, value in metrics.items()}
