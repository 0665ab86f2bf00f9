"""How shards are shared out to tasks."""

import pytest

from orchestrator.cluster.ray_data import AT_LEAST, AT_MOST, tasks


@pytest.mark.parametrize(("count", "cpus", "wanted"), [(1, 1, 1), (3, 16, 3), (30, 2, 8), (30, 16, 30), (1000, 2, 125), (1001, 2, 126)])
def test_tasks_are_few_but_enough_for_every_cpu(count, cpus, wanted):
    assert tasks(count, cpus) == wanted
    assert count <= wanted * AT_MOST and (wanted == count or wanted >= AT_LEAST * cpus)
