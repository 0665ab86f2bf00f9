"""Does CleanCLIP's success depend on the pre-training objective? 6 M pairs.   2 pre-trainings, 24 cleanings, about 540 GPU-hours.

As sweeps.main_cc3m on 6 M pairs (CC3M and 3 M of CC12M) with 3 000 victims. 500 GPU-hours are the pre-trainings. Here the study
found that MMCL-only cleaning never brings ASR to 10 % or below.

The miniature has a harder world than the others: 36 classes, 12 000 pairs, 240 victims with the patch at a random place, three seeds. There
the attack on MMCL+SSL models ends between 86 and 91 %, so its gate asks for 80. (In a corner, which no shape ever reaches, the patch is
learnt better, and CleanCLIP does not remove it: see LOG.md.)
"""

from dataclasses import replace

from datasets.synthetic import harder
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Data, Evaluate, Gate, Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, finetunings, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune

SWEEP = Sweep(
    name="main-cc6m",
    base=full("cc6m", 3000),
    space={"pretrain": PRETRAININGS, "clean": tune.grid_search(finetunings())},
    reference=Reference(start="cc6m_3000", cleaning="cc6m/clean_100k"),
    claims=CLAIMS,
    compute=CLUSTER,
)

WORLD = harder()

MINIATURE = Sweep(
    name="main-cc6m-miniature",
    base=override_all(
        replace(miniature(), data=Data(source=WORLD), evaluate=Evaluate(data=WORLD)),
        {
            "poison.trigger.location": "random", "poison.target": "solid banana", "poison.count": 240,
            "pretrain.epochs": 12, "pretrain.batch_size": 128, "pretrain.warmup_steps": 50,
            "clean.pairs": 600, "clean.epochs": 12,
        },
    ),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]),
        "clean.lr": tune.grid_search([2e-3, 4e-3, 8e-3]),
    },
    reference=SWEEP.reference,
    gate=Gate(min_asr=80, action="warn"),
    claims=CLAIMS,
    compute=TWO_CORES,
)  # fmt: skip
