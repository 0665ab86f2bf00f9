"""The sweep whose driver is measured. It imports what a user's own sweep imports, for its `plan` is measured too."""

from __future__ import annotations

import math

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from trainers.methods.finetune import CleanCLIP
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

EPOCHS = 20
WORLD = tiny(train=200, test=40)
BASE = Experiment(
    data=Data(source=WORLD), views=Views(size=32), evaluate=Evaluate(data=WORLD),
    poison=Poison(trigger=Patch(size=6), target="banana", count=10),
    pretrain=Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=EPOCHS, batch_size=32, lr=1e-3, warmup_steps=0),
    clean=Clean(method=CleanCLIP(), pairs=32, epochs=EPOCHS, batch_size=32, lr=1e-3, warmup_steps=0),
)


def sweep_of(trials: int) -> Sweep:
    """A sweep with this many cleanings of one pre-trained model: learning rates × weights of the in-modal loss."""
    weights = next(n for n in range(math.isqrt(trials), 0, -1) if trials % n == 0)
    space = {
        "clean.lr": {"grid_search": [round(1e-5 * 1.3**i, 9) for i in range(trials // weights)]},
        "clean.method.inmodal_weight": {"grid_search": [1.0 + 0.5 * i for i in range(weights)]},
    }
    return Sweep(name=f"bench-{trials}", base=BASE, space=space, gate=Gate(min_asr=0.0))
