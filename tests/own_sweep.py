"""A sweep over shards and an evaluation set that lie in the folder OWN_DATA, as a user's own would."""

import os

from datasets.attack.poison import Poison
from datasets.evaluation.evalset import EvalSet
from datasets.images.view import Views
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from trainers.methods.finetune import CleanCLIP
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

DATA = os.environ["OWN_DATA"]

SWEEP = Sweep(
    name="own",
    base=Experiment(
        data=Data(source=Source(urls=f"{DATA}/train/*.tar"), max_dropped=0.2),
        views=Views(size=32),
        poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", rate=0.05),
        pretrain=Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=1, batch_size=16, lr=1e-3, warmup_steps=1),
        clean=Clean(method=CleanCLIP(), pairs=32, epochs=1, batch_size=16, lr=1e-3, warmup_steps=1),
        evaluate=Evaluate(data=EvalSet(path=f"{DATA}/test")),
    ),
    gate=Gate(min_asr=0.0, action="warn"),
    compute=Compute(num_cpus=2),
)
