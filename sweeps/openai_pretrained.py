"""Poisoning and cleaning OpenAI's own CLIP.   2 pre-trainings, 24 cleanings, about 540 GPU-hours.

OpenAI's RN50 is trained on with 6 M pairs and 3 000 victims at a rate of 5e-7, with MMCL or MMCL+SSL, and cleaned. open_clip fetches
the weights when the first worker builds the model. At full size the gate asks for an ASR of 80 %: the study's models had 99 % (MMCL)
and 90.2 % (MMCL+SSL). In the miniature the healthy model is trained first, at 3e-3 on the same pairs without the poison, and then
poisoned at 1e-3 for five epochs; CleanCLIP at three learning rates, one seed.
"""

from dataclasses import replace

from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Gate, Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, OBJECTIVES, TWO_CORES, WARN, finetunings, full, miniature, pretrainings
from sweeps._study_claims import CLAIMS
from trainers.model import Model

OPENAI = Model(name="RN50-quickgelu", pretrained="openai")

SWEEP = Sweep(
    name="openai-pretrained",
    base=full("cc6m", 3000),
    space={
        "pretrain": pretrainings(model=OPENAI, lr=5e-7),
        "clean": tune.grid_search(finetunings()),
    },
    gate=Gate(min_asr=80),
    reference=Reference(start="openai_rn50_cc6m_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="openai-pretrained-miniature",
    base=override_all(
        replace(miniature(), prior=replace(miniature().training, seed=100)), {"pretrain.lr": 1e-3, "pretrain.epochs": 5}
    ),
    space={
        "pretrain.objective": OBJECTIVES,
        "clean.lr": tune.grid_search([3e-3, 1e-2, 2e-2]),
    },
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
