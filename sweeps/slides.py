"""Does SafeCLIP keep a white patch out of CLIP?   A lecture's experiment and its stated future work, 10 pre-trainings, no cleaning.

500 k pairs of CC3M, 0.05 % of them with a white 50-pixel square at the bottom right and another caption that names a wheelbarrow; RN50,
32 epochs, batch 128; CLIP (the contrastive loss) against SafeCLIP, judged on ImageNet and CIFAR-10. The lecture reported, for CIFAR-10
accuracy, ImageNet accuracy and ASR, 25.34, 6.69 and 0.59 % with CLIP and 13.87, 1.31 and 0.36 % with SafeCLIP: its attack did not take. One
cause can be seen before anything is trained: its program pasted the square on the picture as stored, and resizing and the crops then remove
most of it.

The lines, each with both objectives:
1. the square on the view that the model sees;
2. the square on the picture as stored, as the lecture's program pasted it: the gate reports how much of it is left;
3. – 5. its future work: all of CC3M; twice the epochs; batches of 1 024.

About 230 GPU-hours at the rates of `sweeps/_study.py`: 8 for 500 k pairs and 32 epochs of the contrastive loss, 12 with SafeCLIP.

The miniature, with three seeds, has the first line alone: its pictures are square and as large as the model's view, so nothing is cut off.
2 % of the pairs are poisoned, forty times the lecture's share. SafeCLIP's rates and first safe share are not the published ones, and
pictures have no augmented view; all this was chosen by accuracy and ASR of seed 0. MINIATURES.md tells what was seen. It cannot show that
the published numbers do the same, nor that the in-modal epochs are what does it.
"""

from dataclasses import replace
from typing import Any

from datasets.attack.poison import Poison
from datasets.evaluation.evalset import EvalSet
from datasets.images.view import Views
from datasets.triggers.native import Native
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Data, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, FOLDER, SEEDS, TWO_CORES, WARN, full, miniature
from trainers.evaluate.another_set import ZeroShotOn
from trainers.methods.safeclip import SafeCLIP
from trainers.objectives.contrastive import MMCL

SQUARE = Patch(pattern="white", size=50, location="bottom_right")
SETTING: dict[str, Any] = {
    "poison.trigger": SQUARE, "data.subset": 500_000, "pretrain.epochs": 32, "pretrain.batch_size": 128, "pretrain.warmup_steps": 10_000,
}  # fmt: skip
STUDY = full("cc3m", 1500)

SWEEP = Sweep(
    name="slides",
    base=replace(
        STUDY,
        data=Data(source=STUDY.data.source, subset=500_000),
        views=Views(size=224, crop=(0.08, 1.0)),
        poison=Poison(trigger=SQUARE, target="wheelbarrow", rate=0.0005, captions="existing"),
        pretrain=replace(STUDY.training, epochs=32, batch_size=128, lr=5e-4),
        clean=None,
        evaluate=replace(
            STUDY.evaluate, evaluators=(ZeroShotOn(data=EvalSet(path=str(FOLDER / "cifar10"), name="cifar10"), every=0),)
        ),
    ),
    points=(
        SETTING,
        SETTING | {"poison.trigger": Native(trigger=SQUARE)},
        SETTING | {"data.subset": None},
        SETTING | {"pretrain.epochs": 64},
        SETTING | {"pretrain.batch_size": 1024, "pretrain.warmup_steps": 1250},  # warmed up over as many pairs
    ),
    space={"pretrain.objective": tune.grid_search([MMCL(), SafeCLIP()])},
    gate=WARN,
    compute=CLUSTER,
)

SMALL = miniature()

MINIATURE = Sweep(
    name="slides-miniature",
    base=replace(
        SMALL,
        views=Views(size=32, augment="none"),
        poison=Poison(trigger=Patch(pattern="white", size=6, location="bottom_right"), target="banana", count=80, captions="existing"),
        clean=None,
    ),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": tune.grid_search([
            MMCL(),
            SafeCLIP(inmodal_epochs=1, inmodal_lr=1e-3, filter_epochs=2, filter_lr=1e-3, bank=1024, first_share=0.6, step=0.05),
        ]),
    },
    gate=WARN,
    compute=TWO_CORES,
)
