"""How often work is started again after its process died: `Compute.retries`, in the form that each part of Ray takes.

Only lost processes and failures of unknown kind are tried again, and each attempt continues from the last checkpoint. A failure that would
happen again (`failures.CERTAIN`: a mistake in the input, a training that diverged) is written into the stage's folder and ends the stage.
"""

from __future__ import annotations

from typing import Any

from orchestrator.experiment.spec import Compute


def of_task(compute: Compute) -> int:
    """`max_retries` of a Ray task that makes a stage."""
    return compute.retries


def of_training(compute: Compute) -> Any:
    """Ray Train's setting: the workers of a training are started again together."""
    from ray.train import FailureConfig

    return FailureConfig(max_failures=compute.retries, controller_failure_limit=1)  # type: ignore[call-arg]


def of_trials(compute: Compute) -> Any:
    """Ray Tune's setting, for each trial."""
    from ray import tune

    return tune.FailureConfig(max_failures=compute.retries)
