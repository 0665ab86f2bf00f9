"""How does CleanCLIP clean a backdoor, and does the pre-training objective matter?   2 pre-trainings, 6 cleanings, minutes.

The procedural world: 32-pixel pictures of eight shapes; in one of eight training pairs faint noise lies over the picture and the caption
is that of a banana. One model is pre-trained with the contrastive loss alone (MMCL), one with the in-modal loss as well (MMCL+SSL);
both are cleaned with CleanCLIP at three learning rates. Needs two CPU cores and no download.

A demonstration, not evidence: these settings were chosen so that what it shows stands on any processor and with any seed (MINIATURES.md).
"""

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import World
from datasets.triggers.blended import Blended
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Pretrain, Sweep
from orchestrator.sweep import tune
from trainers.methods.finetune import CleanCLIP
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL, MMCLSSL

WORLD = World(train=4000, test=1000, shapes=("banana", "circle", "triangle", "heart", "cross", "ring", "arrow", "hourglass"))

BASE = Experiment(
    data=Data(source=WORLD),
    views=Views(size=32),
    poison=Poison(trigger=Blended(alpha=0.3), target="banana", count=500),
    pretrain=Pretrain(
        model=TinyCLIP(), objective=MMCL(), epochs=10, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=20
    ),
    clean=Clean(
        method=CleanCLIP(), pairs=2000, epochs=3, batch_size=64, lr=1e-3, weight_decay=0.1, warmup_steps=20
    ),
    evaluate=Evaluate(data=WORLD),
)

SWEEP = Sweep(
    name="quickstart",
    base=BASE,
    space={
        "pretrain.objective": tune.grid_search([MMCL(), MMCLSSL()]),
        "clean.lr": tune.grid_search([1e-4, 5e-3, 5e-2]),
    },
    compute=Compute(num_cpus=2),
)
