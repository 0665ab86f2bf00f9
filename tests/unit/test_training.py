"""How many pre-trainings run side by side, without Ray."""

from __future__ import annotations

import pytest

from orchestrator.spec import Compute
from orchestrator.training import _room


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
    assert _room(compute, {"CPU": 8.0, "GPU": 2.0}) == room


def test_a_cluster_without_what_is_asked_for_is_tried_one_at_a_time():
    assert _room(Compute(gpus_per_worker=1), {"CPU": 8.0}) == 1
