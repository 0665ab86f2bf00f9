"""Does cleaning five times as long help?   2 pre-trainings, 32 cleanings, about 660 GPU-hours, 160 without pre-training.

CleanCLIP and MMCL fine-tuning for 20 and for 100 epochs at four learning rates; the rate falls to 0 over the whole of each. The
miniature: 6 and 24 epochs, CleanCLIP, one learning rate, three seeds.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import (
    CLUSTER,
    LR_INMODAL,
    LR_MMCL,
    OBJECTIVES,
    PRETRAININGS,
    SEEDS,
    TWO_CORES,
    WARN,
    cleaning,
    full,
    miniature,
)
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune

SWEEP = Sweep(
    name="cleaning-epochs",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search([
            *(cleaning(MMCLFineTune(), lr, epochs=epochs) for epochs in (20, 100) for lr in LR_MMCL),
            *(cleaning(CleanCLIP(), lr, epochs=epochs) for epochs in (20, 100) for lr in LR_INMODAL),
        ]),
    },
    series="clean.epochs",
    reference=Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="cleaning-epochs-miniature",
    base=miniature(),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean.epochs": tune.grid_search([6, 24]),
        "clean.lr": tune.grid_search([3e-3]),
    },
    series="clean.epochs",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
