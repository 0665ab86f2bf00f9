"""How much in-modal weight does CleanCLIP need?   2 pre-trainings, 40 cleanings, about 580 GPU-hours, 80 without pre-training.

CleanCLIP with in-modal weights of 1 to 8 at four learning rates, on both pre-trainings of sweeps.main_cc6m (which are found, not
made again). The miniature: four weights, one learning rate, one seed.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, full, miniature
from sweeps._study_claims import CLAIMS

SWEEP = Sweep(
    name="inmodal-weight",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean.method.inmodal_weight": tune.grid_search([1, 2, 4, 6, 8]),
        "clean.lr": tune.grid_search(list(LR_INMODAL)),
    },
    series="clean.method.inmodal_weight",
    reference=Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="inmodal-weight-miniature",
    base=miniature(),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.method.inmodal_weight": tune.grid_search([1, 2, 4, 8]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    series="clean.method.inmodal_weight",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
