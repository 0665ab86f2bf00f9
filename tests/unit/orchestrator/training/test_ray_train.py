"""How many pre-trainings run side by side, without Ray."""

from __future__ import annotations

import pytest

from orchestrator.experiment.spec import Compute
from orchestrator.running.stages_on_ray import pretrainings_at_a_time, trials_at_a_time


@pytest.mark.parametrize(
    ("compute", "room"),
    [
        (Compute(), 8),
        (Compute(feed="ray"), 4),
        (Compute(feed="ray", workers=2, feed_cpus=3), 1),
        (Compute(feed="ray", workers=2, cpus_per_worker=0.5, feed_cpus=1), 2),
        (Compute(workers=16), 1),
        (Compute(cpus_per_worker=0.1, workers=10), 8),
        (Compute(workers=2, gpus_per_worker=1), 1),
        (Compute(gpus_per_worker=0.5), 4),
    ],
)
def test_feeds_count_beside_their_workers(compute, room):
    assert pretrainings_at_a_time(compute, {"CPU": 8.0, "GPU": 2.0}) == room


def test_a_cluster_without_what_is_asked_for_is_tried_one_at_a_time():
    assert pretrainings_at_a_time(Compute(gpus_per_worker=1), {"CPU": 8.0}) == 1


@pytest.mark.parametrize(("compute", "room"), [
    (Compute(trial_workers=2), 4),
    (Compute(trial_workers=2, max_concurrent_trials=3), 3),
    (Compute(trial_workers=2, trial_gpus=1), 1),
    (Compute(trial_workers=16), 1),
])
def test_trials_of_several_processes_hold_what_their_workers_hold(compute, room):
    assert trials_at_a_time(compute, {"CPU": 8.0, "GPU": 2.0}) == room
