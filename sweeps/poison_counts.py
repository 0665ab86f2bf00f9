"""How many poisons does the attack need, and are few easier to clean?   10 pre-trainings, 80 cleanings, about 2 700 GPU-hours.

400 to 5 000 victims among 6 M pairs; each model is cleaned with CleanCLIP and with MMCL at their four learning rates. Nearly all of
the time is pre-training. The miniature: 10 to 240 of 4 000, MMCL pre-training, CleanCLIP at three learning rates, one seed.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, PRETRAININGS, TWO_CORES, WARN, finetunings, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune

SWEEP = Sweep(
    name="poison-counts",
    base=full("cc6m", 3000),
    space={
        "poison.count": tune.grid_search([400, 800, 1500, 3000, 5000]),
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search(finetunings(MMCLFineTune(), CleanCLIP())),
    },
    series="poison.count",
    reference=Reference(
        by="poison.count",
        start={400: "cc6m_400", 800: "cc6m_800", 3000: "cc6m_3000"},
        cleaning={3000: "cc6m/clean_100k"},
    ),
    claims=CLAIMS,
    compute=CLUSTER,
)  # fmt: skip

MINIATURE = Sweep(
    name="poison-counts-miniature",
    base=miniature(),
    space={
        "poison.count": tune.grid_search([10, 20, 40, 80, 120, 240]),
        "clean.lr": tune.grid_search([3e-3, 1e-2, 2e-2]),
    },
    series="poison.count",
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
