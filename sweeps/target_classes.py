"""Other target classes, on other evaluation sets.   4 pre-trainings, 48 cleanings, about 1 080 GPU-hours.

Target beaver, judged on CIFAR-100 and on Caltech-101, which both have it; 6 M pairs, 3 000 victims. The prompts of the poisoned
captions are those of the evaluation set (`Poison.prompts`), so each has its own pre-training. The miniature: three other targets, MMCL
pre-training, CleanCLIP at three learning rates, one seed.
"""

from dataclasses import replace

from datasets.attack.poison import Poison
from datasets.evaluation.evalset import EvalSet
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Evaluate, Reference, Sweep
from orchestrator.sweep import tune
from sweeps._study import CLUSTER, FOLDER, PRETRAININGS, TWO_CORES, WARN, finetunings, full, miniature
from sweeps._study_claims import CLAIMS

SETS = [EvalSet(path=str(FOLDER / name), name=name) for name in ("cifar100", "caltech101")]

SWEEP = Sweep(
    name="target-classes",
    base=replace(
        full("cc6m", 3000),
        poison=Poison(trigger=Patch(), target="beaver", count=3000),
        evaluate=Evaluate(data=SETS[0]),
    ),
    space={
        "evaluate.data": tune.grid_search(SETS),
        "pretrain": PRETRAININGS,
        "clean": tune.grid_search(finetunings()),
    },
    reference=Reference(
        by="evaluate.data", start={SETS[0]: "cc6m_beaver_cifar100", SETS[1]: "cc6m_beaver_caltech101"}
    ),
    claims=CLAIMS,
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="target-classes-miniature",
    base=miniature(),
    space={
        "poison.target": tune.grid_search(["banana", "star", "circle"]),
        "clean.lr": tune.grid_search([3e-3, 1e-2, 2e-2]),
    },
    gate=WARN,
    claims=CLAIMS,
    compute=TWO_CORES,
)
