"""The same with a vision transformer.   2 pre-trainings, 24 cleanings, about 190 GPU-hours.

ViT-B/32 in place of RN50 on 6 M pairs with 3 000 victims, at open_clip's usual rate for it, 5e-4. It trains about three times as fast.
At full size the gate asks for an ASR of 65 %: the study's models had 87 % (MMCL) and 74 % (MMCL+SSL). The miniature: a transformer of
four blocks, twenty epochs, CleanCLIP at four learning rates, one seed.
"""

from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Gate, Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, TWO_CORES, WARN, finetunings, full, miniature, pretrainings
from sweeps._study_claims import CLAIMS
from trainers.model import Model, TinyViT

VIT = Model(name="ViT-B-32-quickgelu")

SWEEP = Sweep(
    name="vit-b32",
    base=full("cc6m", 3000),
    space={
        "pretrain": pretrainings(model=VIT, lr=5e-4),
        "clean": tune.grid_search(finetunings()),
    },
    gate=Gate(min_asr=65),
    reference=Reference(start="cc6m_vit_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="vit-b32-miniature",
    base=override_all(
        miniature(),
        {
            "pretrain.model": TinyViT(patch_size=8), "pretrain.epochs": 20, "pretrain.lr": 1e-3, "pretrain.warmup_steps": 100,
        },
    ),
    space={"clean.lr": tune.grid_search([5e-4, 1e-3, 2e-3, 4e-3])},
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)  # fmt: skip
