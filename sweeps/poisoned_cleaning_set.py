"""How many poisons left in the cleaning set keep the backdoor?   2 pre-trainings, 64 cleanings, about 370 GPU-hours, 120 without them.

CleanCLIP on 100 k pairs of which 0, 1, 2, 3, 4, 5, 10 or 25 are victims, at four learning rates. (On CC3M the study has
results for 5, 10 and 25.) The miniature: 0 to 25 of 1 000 pairs, one learning
rate, three seeds.
"""

from ray import tune

from orchestrator.spec import Reference, Sweep
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, WARN, full, miniature

SWEEP = Sweep(
    name="poisoned-cleaning-set",
    base=full("cc3m", 1500),
    space={
        "pretrain": PRETRAININGS,
        "clean.poisons": tune.grid_search([0, 1, 2, 3, 4, 5, 10, 25]),
        "clean.lr": tune.grid_search(list(LR_INMODAL)),
    },
    series="clean.poisons",
    reference=Reference(start="cc3m_1500", cleaning="cc3m/clean_100k"),
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="poisoned-cleaning-set-miniature",
    base=miniature(),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean.poisons": tune.grid_search([0, 1, 2, 5, 10, 25]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    series="clean.poisons",
    gate=WARN,
    compute=TWO_CORES,
)
