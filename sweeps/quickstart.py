"""How does CleanCLIP clean a backdoor, and does the pre-training objective matter?   2 pre-trainings, 12 cleanings, minutes.

The procedural world: 32-pixel pictures of ten shapes; 3 % of the training pairs carry a small patch of bright cells in a
corner and the caption of a banana. One model is pre-trained with the contrastive loss alone, one with the in-modal loss as
well; both are cleaned with the contrastive loss (MMCL) and with both losses (CleanCLIP) at three learning rates. Needs two CPU
cores and no download.
"""

from ray import tune

from datasets.poison import Poison
from datasets.synthetic import World
from datasets.triggers.patch import Patch
from datasets.view import Views
from orchestrator.spec import Clean, Compute, Data, Evaluate, Experiment, Pretrain, Sweep
from trainers.cleaning.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL, MMCLSSL

WORLD = World(train=4000, test=1000)

BASE = Experiment(
    data=Data(source=WORLD),
    views=Views(size=32),
    poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=120),
    pretrain=Pretrain(
        model=TinyCLIP(), objective=MMCL(), epochs=10, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=20
    ),
    clean=Clean(
        method=CleanCLIP(), pairs=1000, epochs=6, batch_size=64, lr=1e-3, weight_decay=0.1, warmup_steps=5
    ),
    evaluate=Evaluate(data=WORLD),
)

SWEEP = Sweep(
    name="quickstart",
    base=BASE,
    space={
        "pretrain.objective": tune.grid_search([MMCL(), MMCLSSL()]),
        "clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]),
        "clean.lr": tune.grid_search([1e-3, 3e-3, 1e-2]),
    },
    compute=Compute(num_cpus=2),
)
