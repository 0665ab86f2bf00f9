"""Does the kind of trigger matter?   8 pre-trainings, 64 cleanings, about 2 100 GPU-hours.

The patch of noise, the warped picture (WaNet), the blended noise, and the patch under label-consistent poisoning, 3 000 victims each;
cleaned with CleanCLIP and with MMCL at their four learning rates. The miniature: MMCL pre-training, CleanCLIP at three learning rates,
one seed.
"""

from dataclasses import replace

from ray import tune

from datasets.poison import Poison
from datasets.triggers.blended import Blended
from datasets.triggers.patch import Patch
from datasets.triggers.warped import Warped
from orchestrator.spec import Reference, Sweep
from sweeps._study import CLUSTER, PRETRAININGS, TWO_CORES, WARN, finetunings, full, miniature
from trainers.cleaning.finetune import CleanCLIP, MMCLFineTune

SWEEP = Sweep(
    name="triggers",
    base=full("cc6m", 3000),
    space={
        "poison": tune.grid_search([
            Poison(trigger=Patch(), target="banana", count=3000),
            Poison(trigger=Warped(), target="banana", count=3000),
            Poison(trigger=Blended(), target="banana", count=3000),
            Poison(trigger=Patch(), target="banana", count=3000, mode="label_consistent"),
        ]),
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search(finetunings(MMCLFineTune(), CleanCLIP())),
    },
    reference=Reference(start="cc6m_warped_3000"),
    compute=CLUSTER,
)

SHAPES = miniature().poison

MINIATURE = Sweep(
    name="triggers-miniature",
    base=miniature(),
    space={
        "poison": tune.grid_search([
            SHAPES,
            replace(SHAPES, trigger=Warped(k=32, strength=2)),
            replace(SHAPES, trigger=Blended()),
            replace(SHAPES, mode="label_consistent"),
        ]),
        "clean.lr": tune.grid_search([3e-3, 1e-2, 2e-2]),
    },
    gate=WARN,
    compute=TWO_CORES,
)
