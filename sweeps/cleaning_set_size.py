"""How many clean pairs does CleanCLIP need?   2 pre-trainings, 24 cleanings, about 550 GPU-hours, 50 without pre-training.

10 k, 100 k and 200 k clean pairs, 20 epochs each, at four learning rates. (More pairs mean more steps, as in the study.) The
miniature: 250 to 2 000 pairs, one learning rate, one seed.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, full, miniature
from sweeps._study_claims import CLAIMS

SWEEP = Sweep(
    name="cleaning-set-size",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean.pairs": tune.grid_search([10_000, 100_000, 200_000]),
        "clean.lr": tune.grid_search(list(LR_INMODAL)),
    },
    series="clean.pairs",
    reference=Reference(
        start="cc6m_3000", by="clean.pairs", cleaning={100_000: "cc6m/clean_100k", 200_000: "cc6m/clean_200k"}
    ),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="cleaning-set-size-miniature",
    base=miniature(),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.pairs": tune.grid_search([250, 500, 1000, 2000]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    series="clean.pairs",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
