"""For all tests: property tests take the time they take, for a busy machine is no failure; the tests that start Ray stay together.

`make test` runs in two processes. One has every test that starts a Ray, for two Rays on two cores are in each other's way; it
begins with them, as they take longest. In one process (`pytest` by itself) they come last: the one Ray of `tests/ray` lives until
the last of its tests, and many tests of the other folders are about a process that has none.
"""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.experiments import TINY, cleansweep

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
WITH_RAY = ("chaos", "ray")
"""Folders of tests that start a Ray."""


def _with_ray(nodeid: str) -> bool:
    return Path(nodeid.partition("::")[0]).parent.name in WITH_RAY


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    several = hasattr(config, "workerinput")
    for item in items:
        if _with_ray(item.nodeid):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: _with_ray(item.nodeid) != several)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        """Gives whole files to the processes, and to one of them all those with a Ray."""

        def _split_scope(self, nodeid: str) -> str:
            return "with Ray" if _with_ray(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `tests/tiny_sweep.py`, run to its end with two pre-training workers; nobody writes into it."""
    store = tmp_path_factory.mktemp("tiny")
    code, output = cleansweep("run", TINY, "--store", str(store), "--workers", "2", "--cpus-per-worker", "0.5", CLEANSWEEP_LEDGER="1")
    assert code == 0, output
    return store
