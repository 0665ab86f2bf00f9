"""A sweep small enough for tests: 4 classes, 400 pairs, one pre-training, four cleanings."""

from ray import tune

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from trainers.methods.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

WORLD = tiny(train=400, test=80)

BASE = Experiment(
    data=Data(source=WORLD),
    views=Views(size=32),
    poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=20),
    pretrain=Pretrain(
        model=TinyCLIP(), objective=MMCL(), epochs=2, batch_size=32, lr=3e-3, warmup_steps=5, checkpoint_every_steps=4
    ),
    clean=Clean(method=CleanCLIP(), pairs=96, epochs=3, batch_size=32, lr=1e-3, warmup_steps=2),
    evaluate=Evaluate(data=WORLD),
)

SWEEP = Sweep(
    name="tiny",
    base=BASE,
    space={
        "clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]),
        "clean.lr": tune.grid_search([1e-3, 3e-3]),
    },
    gate=Gate(min_asr=0.0, action="warn"),
    compute=Compute(num_cpus=2, max_concurrent_trials=1),  # each trial process imports for as long as a trial takes
)
