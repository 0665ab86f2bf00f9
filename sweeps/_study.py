"""What the sweeps of the study share: its two data sets and recipes, and the procedural world of their miniatures.

The study is that of how CleanCLIP's success depends on the pre-training objective; its recipes are those of its code
(vsahil/attack-cleanclip). Data lie in the folder that CLEANSWEEP_DATA names, `data` without it: cc3m/*.tar and cc6m/*.tar (see
`cleansweep fetch`), imagenet/val with a folder for each class.

GPU-hours in the sweeps' docstrings are estimates for an A100 of 40 GB. The study pre-trained on 6 M pairs in 24–28 h (MMCL) and
36–40 h (MMCL+SSL) on eight of them: 200 and 300 GPU-hours, half of it on 3 M. At that rate a cleaning of 100 k pairs and 20 epochs
takes 1.1 h (MMCL) or 1.6 h (with the in-modal term), and 0.3 h more for testing 50 000 pictures twice after every epoch.

At full size a sweep has one seed. `--seeds 0,1,2` repeats all of it for each of these seeds of the pre-training, for
three times the hours; a claim wants as many. Miniatures whose differences are to be judged vary `pretrain.seed` themselves (SEEDS), and
`--seeds` takes its place.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.attack.poison import Poison
from datasets.evaluation.evalset import EvalSet
from datasets.images.view import Views
from datasets.index.source import Source
from datasets.synthetic import World
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Compute, Data, Evaluate, Experiment, Gate, Pretrain
from orchestrator.sweep import tune
from trainers.methods.base import Method
from trainers.methods.finetune import CleanCLIP, MMCLFineTune, SSLFineTune
from trainers.model import Model, TinyCLIP
from trainers.objectives.contrastive import MMCL, MMCLSSL

FOLDER = Path(os.environ.get("CLEANSWEEP_DATA", "data")).resolve()
IMAGENET = EvalSet(path=str(FOLDER / "imagenet" / "val"), layout="folder", classes="imagenet1k", templates="openai")

RN50 = Model(name="RN50-quickgelu")  # the study trained OpenAI's code, whose transformers have QuickGELU
PRETRAIN_MMCL = Pretrain(
    model=RN50, objective=MMCL(), epochs=64, batch_size=2048, lr=1e-3, weight_decay=0.1, warmup_steps=10_000
)
PRETRAIN_MMCLSSL = replace(PRETRAIN_MMCL, objective=MMCLSSL(), batch_size=1024)


def pretrainings(**fields: Any) -> Any:
    """Both of them as a grid, with other fields where given."""
    return tune.grid_search([replace(stage, **fields) for stage in (PRETRAIN_MMCL, PRETRAIN_MMCLSSL)])


PRETRAININGS: Any = pretrainings()

LR_MMCL = (1e-4, 5e-4, 1e-3, 5e-3)
LR_INMODAL = (5e-5, 1e-4, 5e-4, 1e-3)
"""Of cleanings with an in-modal term."""

CLUSTER = Compute(workers=8, gpus_per_worker=1, cpus_per_worker=8, loader_workers=6, trial_gpus=1, trial_cpus=8)
"""Nodes of eight GPUs: a pre-training takes a whole one, a cleaning one GPU."""


def full(name: str, victims: int) -> Experiment:
    """The study's experiment on data set `name` (cc3m or cc6m): RN50, banana, a 16-pixel patch of noise at a random place."""
    return Experiment(
        data=Data(source=Source(urls=str(FOLDER / name / "*.tar"))),
        views=Views(size=224),
        poison=Poison(trigger=Patch(), target="banana", count=victims),
        pretrain=PRETRAIN_MMCL,
        clean=cleaning(CleanCLIP(), 1e-4),
        evaluate=Evaluate(data=IMAGENET),
    )


def cleaning(method: Method, lr: float, **fields: Any) -> Clean:
    """The study's cleaning: 20 epochs on the last 100 k clean pairs; batches of 128 for MMCL alone, else of 64."""
    given: dict[str, Any] = {"epochs": 20, "pairs": 100_000, "choice": "last", "warmup_steps": 50, "weight_decay": 0.1}
    return Clean(method=method, lr=lr, **{**given, "batch_size": 128 if isinstance(method, MMCLFineTune) else 64, **fields})


def finetunings(*methods: Method) -> list[Clean]:
    """The study's three fine-tunings, or those given, each over its learning rates."""
    return [
        cleaning(method, lr)
        for method in methods or (MMCLFineTune(), SSLFineTune(), CleanCLIP())
        for lr in (LR_MMCL if isinstance(method, MMCLFineTune) else LR_INMODAL)
    ]


# ---- miniatures ---------------------------------------------------------------------------------------------------------

TWO_CORES = Compute(num_cpus=2)
WARN = Gate(action="warn")
"""A miniature goes on where the attack did not take, and its page says so."""
OBJECTIVES: Any = tune.grid_search([MMCL(), MMCLSSL()])
SEEDS: Any = tune.grid_search([0, 1, 2])
"""Of the pre-training: its first weights and the order of its batches. World, victims and cleaning set stay the same."""


WORLD = World(train=4000, test=1000)


def miniature() -> Experiment:
    """32-pixel pictures of ten shapes, 3 % of the pairs with bright cells in a corner and the caption of a banana; one cleaning.

    All miniatures take the same pre-trained models where they vary nothing above the cleaning, so in one store only the first
    trains them. `sweeps.quickstart` is a demonstration with settings of its own, of which none enters here.
    """
    return Experiment(
        data=Data(source=WORLD),
        views=Views(size=32),
        poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=120),
        pretrain=Pretrain(
            model=TinyCLIP(), objective=MMCL(), epochs=10, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=20
        ),
        clean=small(CleanCLIP(), 1e-2),
        evaluate=Evaluate(data=WORLD),
    )


def small(method: Method, lr: float, **fields: Any) -> Clean:
    """The miniatures' cleaning: 6 epochs on 1 000 clean pairs."""
    given: dict[str, Any] = {"pairs": 1000, "epochs": 6, "batch_size": 64, "weight_decay": 0.1, "warmup_steps": 5}
    return Clean(method=method, lr=lr, **{**given, **fields})


def small_finetunings() -> list[Clean]:
    """The three fine-tunings, each over rates at whose lower end the backdoor stays and at whose upper end the accuracy goes."""
    return [
        *(small(MMCLFineTune(), lr) for lr in (1e-3, 3e-3, 1e-2, 2e-2)),
        *(small(SSLFineTune(), lr) for lr in (1e-4, 1e-3, 3e-3)),
        *(small(CleanCLIP(), lr) for lr in (1e-3, 3e-3, 6e-3, 1e-2, 2e-2)),
    ]
