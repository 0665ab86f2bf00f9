"""Does CleanCLIP's success depend on the pre-training objective? 3 M pairs.   2 pre-trainings, 24 cleanings, about 290 GPU-hours.

RN50 on CC3M with 1 500 victims, once with the contrastive loss alone and once with the in-modal loss as well; each is cleaned by
fine-tuning with MMCL, SSL or both (CleanCLIP) at four learning rates. 250 GPU-hours of them are the pre-trainings.

The miniature, on ten shapes: three seeds, and learning rates wide enough for both ends to be bad.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, WARN, finetunings, full, miniature, small_finetunings
from sweeps._study_claims import CLAIMS

SWEEP = Sweep(
    name="main-cc3m",
    base=full("cc3m", 1500),
    space={"pretrain": PRETRAININGS, "clean": tune.grid_search(finetunings())},
    reference=Reference(start="cc3m_1500", cleaning="cc3m/clean_100k"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="main-cc3m-miniature",
    base=miniature(),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean": tune.grid_search(small_finetunings()),
    },
    reference=SWEEP.reference,
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
