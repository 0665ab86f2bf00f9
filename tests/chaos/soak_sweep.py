"""A sweep of many small trials, for `python -m tests.chaos soak`: the small sweep's model, cleaned with as many learning rates as the
environment variable says."""

import os
from dataclasses import replace

from ray import tune

from orchestrator.experiment.spec import Compute, Gate, Sweep
from tests.chaos.small_sweep import BASE
from tests.chaos.soak import TRIALS
from trainers.methods.finetune import MMCLFineTune

RATES = [round(1e-5 * 1.02**number, 12) for number in range(int(os.environ.get(TRIALS, "4")))]
assert BASE.clean is not None

SWEEP = Sweep(
    name="soak",
    base=replace(BASE, clean=replace(BASE.clean, method=MMCLFineTune())),
    space={"clean.lr": tune.grid_search(RATES)},
    gate=Gate(min_asr=0.0, action="warn"),
    compute=Compute(num_cpus=2, max_concurrent_trials=2),
)
