"""ASR with another trigger than the trained one: how far a backdoor reaches, or what a cleaning leaves of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.attack.poison import NAME
from datasets.errors import InputError
from datasets.evaluation.classes import target_index
from datasets.feed.loader import Batch
from datasets.triggers.base import Trigger
from trainers.distributed import World
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.zeroshot import Aim, ZeroShotASR

if TYPE_CHECKING:
    from trainers.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class OtherTrigger(Evaluator):
    """ASR on the test pictures with a given trigger, counted as in `ZeroShotASR`.

    For the N₋ test pictures x with a class y ≠ t and this trigger τ': 100 · |{x : t is among the k classes nearest to τ'(x)}| / N₋. The
    trigger's random choices depend on the evaluation's seed and the picture's key, as for the attack's own trigger. So the attack's trigger
    and target give exactly the attack's ASR.
    """

    trigger: Trigger
    """The trigger to put on the pictures. If it writes into captions, it also writes into the class prompts."""
    target: str | None = None
    """A class name, or `name@index` if several classes share the name; None: the (first) attack's target."""
    name: str
    """Name in its metrics: other/<name>/…"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise InputError(f"OtherTrigger.name is {self.name!r}; accepted are up to 40 letters, digits and _ . + -, no space.")

    def open(self, material: Material) -> Iterator[Batch]:
        """First the `ZeroShotASR` that counts, because a rank without pictures still encodes class prompts; then the test pictures with the
        trigger."""
        assert material.test_with is not None
        trigger = self.trigger.with_made({need: str(folder) for need, folder in material.made.items()})
        target = material.target if self.target is None else target_index(material.class_names, self.target)
        aim = Aim(target=target, trigger=trigger, seed=material.recipe.seed)
        yield {"count": ZeroShotASR(class_names=material.class_names, templates=material.templates, aims=(aim,))}
        yield from material.test_with(trigger)

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float | np.ndarray]:
        """In percent: other/<name>/asr_top{1,5,10}, asr_floor, asr_ra, asr_top1_low, asr_top1_high. Whole numbers: asr_n and
        asr_*_count."""
        rest = iter(batches)
        metrics = next(rest)["count"].measure(model, rest, world)
        asr = {name.removeprefix("asr/"): value for name, value in metrics.items() if name.startswith("asr/")}
        return {f"other/{self.name}/asr_{name}": value for name, value in asr.items()}
