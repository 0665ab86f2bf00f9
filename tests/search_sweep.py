"""The tiny sweep with drawn values, Optuna and ASHA."""

from dataclasses import replace

from ray import tune

from orchestrator.experiment.spec import Sweep
from tests.tiny_sweep import SWEEP as TINY

SWEEP: Sweep = replace(
    TINY,
    name="search",
    space={"clean.lr": tune.loguniform(1e-4, 1e-2), "clean.method.inmodal_weight": tune.choice([1.0, 2.0])},
    search="optuna",
    scheduler="asha",
    num_samples=2,
)
