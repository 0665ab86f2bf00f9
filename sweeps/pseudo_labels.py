"""Do labels from a stronger model remove the backdoor?   2 pre-trainings, 24 cleanings, about 530 GPU-hours, 30 without pre-training.

As sweeps.deep_clustering, but a picture's label is what SigLIP SO400M/14 takes it for, zero-shot among the classes of the evaluation:
an upper bound, for a defender who has such a model would not clean this one. In the miniature the stronger model is trained on the
same pairs without the poison; one learning rate, three seeds.
"""

from dataclasses import replace

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, WARN, cleaning, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.pseudo_labels import PseudoLabels
from trainers.model import Model

SIGLIP = Model(name="ViT-SO400M-14-SigLIP-384", pretrained="webli")

SWEEP = Sweep(
    name="pseudo-labels",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search([
            cleaning(PseudoLabels(labeller=SIGLIP, clip_weight=clip, inmodal_weight=inmodal), lr, epochs=10)
            for clip, inmodal in ((1, 0), (0, 1), (1, 1))
            for lr in LR_INMODAL
        ]),
    },
    reference=Reference(start="cc6m_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)  # fmt: skip

HEALTHY = replace(miniature().training, seed=100)

MINIATURE = Sweep(
    name="pseudo-labels-miniature",
    base=miniature(),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean.method": tune.grid_search([PseudoLabels(labeller=HEALTHY)]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
