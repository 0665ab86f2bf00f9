"""Does clustering the cleaning set remove the backdoor?   2 pre-trainings, 24 cleanings, about 530 GPU-hours, 30 without pre-training.

Fine-tuning with MMCL, SSL or both, and with the cross-entropy of a linear head to the picture's cluster: spherical k-means of the
cleaning set's embeddings into 1 000 clusters at the start of each of 10 epochs, weight 5. The miniature: 30 clusters, CleanCLIP's losses
beside, one learning rate, three seeds.
"""

from orchestrator.experiment.spec import Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, LR_INMODAL, OBJECTIVES, PRETRAININGS, SEEDS, TWO_CORES, WARN, cleaning, full, miniature
from sweeps._study_claims import CLAIMS
from trainers.methods.deep_clustering import DeepClustering

SWEEP = Sweep(
    name="deep-clustering",
    base=full("cc6m", 3000),
    space={
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search([
            cleaning(DeepClustering(clip_weight=clip, inmodal_weight=inmodal), lr, epochs=10)
            for clip, inmodal in ((1, 0), (0, 1), (1, 1))
            for lr in LR_INMODAL
        ]),
    },
    reference=Reference(start="cc6m_3000"),
    claims=CLAIMS,
    compute=CLUSTER,
)  # fmt: skip

MINIATURE = Sweep(
    name="deep-clustering-miniature",
    base=miniature(),
    space={
        "pretrain.seed": SEEDS,
        "pretrain.objective": OBJECTIVES,
        "clean.method": tune.grid_search([DeepClustering(clusters=30)]),
        "clean.lr": tune.grid_search([1e-2]),
    },
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
