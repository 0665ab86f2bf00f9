"""Does the kind of trigger matter?   8 pre-trainings, 64 cleanings, about 2 100 GPU-hours.

The patch of noise, the warped picture (WaNet), the blended noise, and the patch under label-consistent poisoning, 3 000 victims each;
cleaned with CleanCLIP and with MMCL at their four learning rates. At full size the gate asks for an ASR of 75 %: the study's warped
models had 96 % (MMCL) and 84 % (MMCL+SSL). The miniature: MMCL pre-training, CleanCLIP at three learning rates, one seed.
"""

from dataclasses import replace

from datasets.triggers.blended import Blended
from datasets.triggers.warped import Warped
from orchestrator.experiment.spec import Gate, Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, PRETRAININGS, TWO_CORES, WARN, finetunings, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.finetune import CleanCLIP, MMCLFineTune

BASE = full("cc6m", 3000)
PATCH = BASE.poisons[0]
WARPED = replace(PATCH, trigger=Warped())

SWEEP = Sweep(
    name="triggers",
    base=BASE,
    space={
        "poison": tune.grid_search([
            PATCH,
            WARPED,
            replace(PATCH, trigger=Blended()),
            replace(PATCH, mode="label_consistent"),
        ]),
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search(finetunings(MMCLFineTune(), CleanCLIP())),
    },
    gate=Gate(min_asr=75),
    reference=Reference(
        by="poison", start={PATCH: "cc6m_3000", WARPED: "cc6m_warped_3000"}, cleaning={PATCH: "cc6m/clean_100k"}
    ),
    claims=CLAIMS,
    compute=CLUSTER,
)

SHAPES = miniature().poisons[0]

MINIATURE = Sweep(
    name="triggers-miniature",
    base=miniature(),
    space={
        "poison": tune.grid_search([
            SHAPES,
            replace(SHAPES, trigger=Warped(k=32, strength=2)),
            replace(SHAPES, trigger=Blended()),
            replace(SHAPES, mode="label_consistent"),
        ]),
        "clean.lr": tune.grid_search([3e-3, 1e-2, 2e-2]),
    },
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
