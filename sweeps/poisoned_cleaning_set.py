"""How many poisons left in the cleaning set keep the backdoor?   2 pre-trainings, 64 cleanings, about 620 GPU-hours, 120 without them.

CleanCLIP on 100 k pairs of which 0, 1, 2, 3, 4, 5, 10 or 25 are victims, at four learning rates, on both pre-trainings of
sweeps.main_cc6m: on 6 M pairs the study has results for every one of these numbers, on CC3M for 5, 10 and 25 alone. The miniature: 0 to
25 of 1 000 pairs, one learning rate, three seeds.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, WARN, full, miniature
from sweeps._study_claims import CLAIMS

POISONS = (1, 2, 3, 4, 5, 10, 25)

SWEEP = Sweep(
    name="poisoned-cleaning-set",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean.poisons": tune.grid_search([0, *POISONS]),
        "clean.lr": tune.grid_search(list(LR_INMODAL)),
    },
    series="clean.poisons",
    reference=Reference(
        start="cc6m_3000",
        by="clean.poisons",
        cleaning={0: "cc6m/clean_100k", **{n: f"cc6m/poisoned_100k_with_{n}_poisons" for n in POISONS}},
    ),
    claims=CLAIMS,
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
    claims=CLAIMS,
    compute=TWO_CORES,
)
