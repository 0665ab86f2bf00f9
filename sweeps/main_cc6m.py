"""Does CleanCLIP's success depend on the pre-training objective? 6 M pairs.   2 pre-trainings, 24 cleanings, about 540 GPU-hours.

As sweeps.main_cc3m on 6 M pairs (CC3M and 3 M of CC12M) with 3 000 victims. 500 GPU-hours are the pre-trainings. Here the study
found that MMCL-only cleaning never brings ASR to 10 % or below.

The miniature has twice the pairs of the others, and one seed.
"""

from ray import tune

from datasets.synthetic import harder
from orchestrator.spec import Reference, Sweep
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, finetunings, full, miniature, small_finetunings

SWEEP = Sweep(
    name="main-cc6m",
    base=full("cc6m", 3000),
    space={"pretrain": PRETRAININGS, "clean": tune.grid_search(finetunings())},
    reference=Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"),
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="main-cc6m-miniature",
    base=miniature(harder(train=24_000), victims=480),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean": tune.grid_search(small_finetunings()),
    },
    reference=SWEEP.reference,
    gate=WARN,
    compute=TWO_CORES,
)
