"""The tiny sweep with values drawn at random, of which there are fewer than draws."""

from dataclasses import replace

from ray import tune

from orchestrator.experiment.spec import Sweep
from tests.tiny_sweep import BASE
from tests.tiny_sweep import SWEEP as TINY

assert BASE.clean is not None
SWEEP: Sweep = replace(
    TINY,
    name="drawn",
    base=replace(BASE, clean=replace(BASE.clean, epochs=1, warmup_steps=1)),
    space={"clean.method.inmodal_weight": tune.choice([1.0, 2.0])},
    num_samples=5,
)
