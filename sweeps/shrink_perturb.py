"""Does it help to shrink and perturb the weights first?   2 pre-trainings, 40 cleanings, about 580 GPU-hours, 80 without pre-training.

Shrink λ from 0.2 to 0.95 with γ = 1e-4, once before the first step of CleanCLIP, at four learning rates. The miniature: four λ,
one learning rate, one seed.
"""

from dataclasses import replace

from orchestrator.experiment.override import override
from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.shrink_perturb import ShrinkPerturb

SWEEP = Sweep(
    name="shrink-perturb",
    base=override(full("cc6m", 3000), "clean.method", ShrinkPerturb()),
    space={
        "pretrain": PRETRAININGS,
        "clean.method.shrink_lambda": tune.grid_search([0.2, 0.4, 0.6, 0.8, 0.95]),
        "clean.lr": tune.grid_search(list(LR_INMODAL)),
    },
    series="clean.method.shrink_lambda",
    reference=Reference(start="cc6m_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = replace(
    SWEEP,
    name="shrink-perturb-miniature",
    base=override(miniature(), "clean.method", ShrinkPerturb()),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.method.shrink_lambda": tune.grid_search([0.4, 0.6, 0.8, 0.95]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    reference=Reference(),
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
