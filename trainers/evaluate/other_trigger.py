"""Attack success with another trigger than the one that was trained with: how far does a backdoor reach, or what does a cleaning leave?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.attack.poison import NAME
from datasets.errors import InputError
from datasets.evaluation.classes import target_index
from datasets.feed.loader import Batch
from datasets.triggers.base import Trigger
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.zeroshot import Aim, ZeroShotASR


@dataclass(frozen=True, kw_only=True)
class OtherTrigger(Evaluator):
    """ASR over the test pictures with a trigger of its own, as `ZeroShotASR` counts it.

    Of the N₋ test pictures x with a class y ≠ t: 100 · |{x : t is among the k classes nearest to τ'(x)}| / N₋, with this trigger τ'. What
    the trigger draws depends on the seed of the evaluation and the picture's key, as it does for the attack's own; so with the attack's
    trigger and target it gives the attack's ASR, to the picture.
    """

    trigger: Trigger
    """What is put on the pictures; where it writes into captions, also into the class prompts."""
    target: str | None = None
    """A class name, or `name@index` where names repeat; None: the target of the (first) attack."""
    name: str
    """What its metrics are called: other/<name>/…"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise InputError(f"OtherTrigger.name is {self.name!r}; accepted are up to 40 letters, digits and _ . + -, no space.")

    def open(self, material: Material) -> Iterator[Batch]:
        """First how to count (a rank without pictures takes part in the class prompts too), then the test pictures with the trigger."""
        assert material.test_with is not None
        trigger = self.trigger.with_made({need: str(folder) for need, folder in material.made.items()})
        target = material.target if self.target is None else target_index(material.class_names, self.target)
        aim = Aim(target=target, trigger=trigger, seed=material.recipe.seed)
        yield {"count": ZeroShotASR(class_names=material.class_names, templates=material.templates, aims=(aim,))}
        yield from material.test_with(trigger)

    def measure(self, model: Encoder, batches: Iterable[dict[str, Any]], world: World | None = None) -> dict[str, float | np.ndarray]:
        """Percent: other/<name>/asr_top{1,5,10}, asr_floor, asr_ra, asr_top1_low, asr_top1_high; whole numbers: asr_n and asr_*_count."""
        given = iter(batches)
        found = next(given)["count"].measure(model, given, world)
        own = {name.removeprefix("asr/"): value for name, value in found.items() if name.startswith("asr/")}
        return {f"other/{self.name}/asr_{name}": value for name, value in own.items()}
