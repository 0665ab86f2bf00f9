"""What a run asks a cluster for before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster import session
from orchestrator.cluster.waiting import Wanted
from orchestrator.experiment.spec import Compute
from orchestrator.running import driver
from orchestrator.store import Store
from orchestrator.sweep.plan import make_plan
from tests.chaos.small_sweep import SWEEP


class BegunError(Exception):
    pass


@pytest.mark.parametrize(("missing", "asked"), [(None, ["a trial"]), (Wanted("one"), ["pre-training", "a trial"])])
def test_a_pretraining_that_is_made_needs_no_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Wanted | None, asked: list[str]
) -> None:
    """A cluster that lost a node after the pre-training may have too few cores for another one, and enough for the trials."""
    found: list[str] = []

    def begun(*_: object) -> None:
        raise BegunError

    monkeypatch.setattr(session, "require_resources", lambda cpus, gpus, what: found.append(what))
    monkeypatch.setattr(session, "has_gpu", lambda: False)
    monkeypatch.setattr(driver, "_pretraining", lambda *_: missing)
    monkeypatch.setattr(driver, "ensure_all", begun)
    with pytest.raises(BegunError):
        driver._make(make_plan(SWEEP), Store(tmp_path), Compute())
    assert found == asked
