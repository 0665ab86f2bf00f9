"""A sweep of seconds, for `python -m tests.chaos`: a pre-training of 12 steps with a checkpoint every 2 steps, 2 cleanings of 2 epochs."""

from ray import tune

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from trainers.methods.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

WORLD = tiny(train=96, test=24)

BASE = Experiment(
    data=Data(source=WORLD),
    views=Views(size=32),
    poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=8),
    pretrain=Pretrain(
        model=TinyCLIP(embed_dim=16, vision_width=4, text_width=8, text_heads=1), objective=MMCL(), epochs=2, batch_size=16, lr=3e-3,
        warmup_steps=2, checkpoint_every_steps=2,
    ),
    clean=Clean(method=CleanCLIP(), pairs=48, epochs=2, batch_size=16, lr=1e-3, warmup_steps=1),
    evaluate=Evaluate(data=WORLD),
)

SWEEP = Sweep(
    name="chaos",
    base=BASE,
    space={"clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()])},
    gate=Gate(min_asr=0.0, action="warn"),
    compute=Compute(num_cpus=2, max_concurrent_trials=1),
)
