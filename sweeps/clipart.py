"""The same on real pictures: 8 121 drawings of Debian's clip art.   1 pre-training, 4 cleanings, about an hour of one core.

Made ready by tests/science/clipart.py and `cleansweep ingest clipart/train.csv clipart/train --resize 96`; CLIPART names the
folder if it is not ./clipart. Captions are titles and keywords, classes are top folders; the captions were not written for the
classes, so zero-shot accuracy is modest. A first try with the patch at a random place and 12 epochs did not take (63 % ASR at
21.7 % accuracy, n = 975 and 1020); in a corner after 4 epochs it was 56 % at 20.8 %, with 88 % on the way. Neither passed the gate,
whose verdict does not stop this sweep.
"""

import os
from pathlib import Path

from datasets.attack.poison import Poison
from datasets.evaluation.evalset import EvalSet
from datasets.images.view import Views
from datasets.index.source import Source
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from orchestrator.sweep import tune
from trainers.methods.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

CLIPART = Path(os.environ.get("CLIPART", "clipart")).resolve()

SWEEP = Sweep(
    name="clipart",
    base=Experiment(
        data=Data(source=Source(urls=str(CLIPART / "train" / "*.tar"))),
        views=Views(size=64),
        poison=Poison(trigger=Patch(pattern="saturated", size=12, cell=4, location="bottom_right"), target="food", rate=0.03),
        pretrain=Pretrain(
            model=TinyCLIP(image_size=64, embed_dim=128, vision_width=24, text_width=128, text_heads=4, context_length=32),
            objective=MMCL(), epochs=16, batch_size=128, lr=1e-3, warmup_steps=50,
        ),
        clean=Clean(method=CleanCLIP(), pairs=1500, epochs=6, batch_size=64, lr=5e-4, warmup_steps=10),
        evaluate=Evaluate(data=EvalSet(path=str(CLIPART / "test"), templates="simple")),
    ),
    space={
        "clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]),
        "clean.lr": tune.grid_search([5e-4, 2e-3]),
    },
    gate=Gate(action="warn"),
    compute=Compute(num_cpus=2),
)  # fmt: skip
