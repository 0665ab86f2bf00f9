"""What do cleaning and adversarial fine-tuning do to a backdoor, and to robustness?   1 pre-training, 9 cleanings.

One model is pre-trained with MMCL on CC3M and cleaned with CleanCLIP, with FARE and with TeCoA, at three learning rates each. Then
`cleansweep audit sweeps.audit` looks at the model before, and at the one of each method that a rule chooses. The miniature is the quick
start's world with a patch in a corner as the trigger, so that an explanation can point at it (MINIATURES.md has what came out). TeCoA
needs a class for each picture; it is that of a healthy model: OpenAI's, or one trained on the same pairs without the poison.
"""

from dataclasses import replace
from typing import Any

from datasets.attack.poison import Poison
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Gate, Pretrain, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, TWO_CORES, full
from sweeps.quickstart import BASE
from trainers.methods.fare import FARE
from trainers.methods.finetune import CleanCLIP
from trainers.methods.tecoa import TeCoA
from trainers.model import Model

PATCH = Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=300)
assert isinstance(BASE.pretrain, Pretrain)


def space(labeller: Model | Pretrain, rates: list[float]) -> dict[str, Any]:
    """Three methods at each of the learning rates."""
    methods = [CleanCLIP(), FARE(), TeCoA(labeller=labeller)]
    return {"clean.method": tune.grid_search(methods), "clean.lr": tune.grid_search(rates)}


SWEEP = Sweep(
    name="audit",
    base=full("cc3m", 1500),
    space=space(Model(name="RN50-quickgelu", pretrained="openai"), [1e-5, 1e-4, 5e-4]),
    gate=Gate(min_asr=75),
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="audit-miniature",
    base=replace(BASE, poison=PATCH),
    space=space(BASE.pretrain, [1e-3, 5e-3, 2e-2]),
    gate=Gate(min_asr=75, action="warn"),
    compute=TWO_CORES,
)
