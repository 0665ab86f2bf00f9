"""What do cleaning and adversarial fine-tuning do to a backdoor, and to robustness?   1 pre-training, 9 cleanings, minutes.

The quick start's world with a patch in a corner as the trigger, so that an explanation can point at it. One model is pre-trained with
MMCL and cleaned with CleanCLIP, with FARE and with TeCoA, at three learning rates each. Then `cleansweep audit sweeps.audit` looks at the
model before, and at the one of each method that a rule chooses (MINIATURES.md has what came out).
"""

from dataclasses import replace

from ray import tune

from datasets.attack.poison import Poison
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Gate, Pretrain, Sweep
from sweeps._study import TWO_CORES
from sweeps.quickstart import BASE
from trainers.methods.fare import FARE
from trainers.methods.finetune import CleanCLIP
from trainers.methods.tecoa import TeCoA

PATCH = Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=300)

assert isinstance(BASE.pretrain, Pretrain)
HEALTHY = BASE.pretrain
"""TeCoA needs a class for each picture: that of a model trained on the same pairs without the poison."""

SWEEP = Sweep(
    name="audit",
    base=replace(BASE, poison=PATCH),
    space={
        "clean.method": tune.grid_search([CleanCLIP(), FARE(), TeCoA(labeller=HEALTHY)]),
        "clean.lr": tune.grid_search([1e-3, 5e-3, 2e-2]),
    },
    gate=Gate(min_asr=75, action="warn"),
    compute=TWO_CORES,
)
