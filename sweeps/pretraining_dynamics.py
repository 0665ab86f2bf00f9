"""How fast is the backdoor learnt?   2 pre-trainings, no cleaning, about 500 GPU-hours.

Accuracy, ASR, the cosine of clean and of poisoned pairs, and the share of poisons among the best-matched pairs, after every epoch of
pre-training with MMCL and with MMCL+SSL on 6 M pairs with 3 000 victims. The miniature: one seed.

What is measured belongs to a pre-training's identity, so this one trains its own models. For those of another sweep there is `cleansweep
analyse`, which takes any stored epochs.
"""

from dataclasses import replace

from orchestrator.experiment.spec import Experiment, Reference, Sweep
from sweeps._study import CLUSTER, OBJECTIVES, PRETRAININGS, TWO_CORES, WARN, full, miniature
from trainers.evaluate.analysis import Analysis


def watched(experiment: Experiment) -> Experiment:
    """The experiment without a cleaning, and with every measurement of its pairs."""
    return replace(experiment, clean=None, evaluate=replace(experiment.evaluate, evaluators=(Analysis(),)))


SWEEP = Sweep(
    name="pretraining-dynamics",
    base=watched(full("cc6m", 3000)),
    space={"pretrain": PRETRAININGS},
    reference=Reference(start="cc6m_3000"),
    compute=CLUSTER,
)

MINIATURE = Sweep(
    name="pretraining-dynamics-miniature",
    base=watched(miniature()),
    space={"pretrain.objective": OBJECTIVES},
    gate=WARN,
    compute=TWO_CORES,
)
