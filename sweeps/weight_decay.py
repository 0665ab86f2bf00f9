"""Does heavy weight decay remove the backdoor?   2 pre-trainings, 60 cleanings, about 610 GPU-hours, 110 without pre-training.

MMCL, SSL and CleanCLIP fine-tuning at the middle of their learning rates with weight decay from 0.1 to 100. (In the study's own
program the stored optimiser came back with its old weight decay, so its sweep of this kind varied nothing.) The miniature: CleanCLIP,
four decays, one seed.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, cleaning, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune, SSLFineTune

DECAYS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

SWEEP = Sweep(
    name="weight-decay",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search([
            cleaning(method, lr, weight_decay=decay)
            for method, lr in ((MMCLFineTune(), 1e-3), (SSLFineTune(), 5e-4), (CleanCLIP(), 5e-4))
            for decay in DECAYS
        ]),
    },
    series="clean.weight_decay",
    reference=Reference(start="cc6m_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)  # fmt: skip

MINIATURE = Sweep(
    name="weight-decay-miniature",
    base=miniature(),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.weight_decay": tune.grid_search([0.1, 1, 10, 100]),
    },
    series="clean.weight_decay",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
