"""A fine scan of the learning rate.   2 pre-trainings, 78 cleanings, about 640 GPU-hours, 140 without pre-training.

MMCL, SSL and CleanCLIP at thirteen rates from 1e-8, where nothing happens, to 7e-3, on both pre-trainings of sweeps.main_cc6m. A best
point at the end of a grid says nothing of the method; this grid ends where the model does. The miniature: CleanCLIP at nine rates, one
seed.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, cleaning, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune, SSLFineTune

RATES = (1e-8, 1e-7, 1e-6, 1e-5, 3e-5, 5e-5, 1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 5e-3, 7e-3)

SWEEP = Sweep(
    name="learning-rates",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search(
            [cleaning(method, lr) for method in (MMCLFineTune(), SSLFineTune(), CleanCLIP()) for lr in RATES]
        ),
    },
    series="clean.lr",
    reference=Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="learning-rates-miniature",
    base=miniature(),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.lr": tune.grid_search([1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 1.5e-2, 2e-2]),
    },
    series="clean.lr",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
