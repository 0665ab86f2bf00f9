"""How does CleanCLIP clean a backdoor, and does the pre-training objective matter?   2 pre-trainings, 12 cleanings, minutes.

The procedural world: 32-pixel pictures of eight shapes; in one of ten training pairs faint noise lies over the picture and the caption
is that of a banana. One model is pre-trained with the contrastive loss alone, one with the in-modal loss as well; both are cleaned
with the contrastive loss (MMCL) and with both losses (CleanCLIP) at three learning rates. Needs two CPU cores and no download.

A demonstration, not evidence: these settings were chosen so that what it shows stands on any processor and with any seed (MINIATURES.md).
"""

from ray import tune

from datasets.poison import Poison
from datasets.synthetic import World
from datasets.triggers.blended import Blended
from datasets.view import Views
from orchestrator.spec import Clean, Compute, Data, Evaluate, Experiment, Pretrain, Sweep
from trainers.cleaning.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL, MMCLSSL

WORLD = World(train=4000, test=1000, shapes=("banana", "circle", "triangle", "heart", "cross", "ring", "arrow", "hourglass"))

BASE = Experiment(
    data=Data(source=WORLD),
    views=Views(size=32),
    poison=Poison(trigger=Blended(alpha=0.3), target="banana", count=400),
    pretrain=Pretrain(
        model=TinyCLIP(), objective=MMCL(), epochs=8, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=20
    ),
    clean=Clean(
        method=CleanCLIP(), pairs=2000, epochs=4, batch_size=64, lr=1e-3, weight_decay=0.1, warmup_steps=20
    ),
    evaluate=Evaluate(data=WORLD),
)

SWEEP = Sweep(
    name="quickstart",
    base=BASE,
    space={
        "pretrain.objective": tune.grid_search([MMCL(), MMCLSSL()]),
        "clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]),
        "clean.lr": tune.grid_search([1e-4, 5e-3, 5e-2]),
    },
    compute=Compute(num_cpus=2),
)
