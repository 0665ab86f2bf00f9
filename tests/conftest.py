"""For all tests: property tests take the time they take, for a busy machine is no failure; the tests that start Ray stay together.

`make test` runs in two processes, to which whole files go. One begins with the tests of `tests/ray`, which have one Ray, the other
with all that need none; those that start a Ray of their own come last. In one process (`pytest` by itself) the one Ray comes last: it
lives until the last of its tests, and many tests of the other folders are about a process that has none.
"""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.experiments import TINY, cleansweep, group_of, make_database, ray_of

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = ("one", "", "own") if hasattr(config, "workerinput") else ("", "own", "one")
    places: dict[pytest.Item, tuple[int, bool]] = {}
    for item in items:
        if ray := ray_of(item.nodeid):
            item.add_marker(pytest.mark.ray)
        kills = item.path.stem == "test_pretraining"  # processes that hold cores of the one Ray: last, so that no other test waits for them
        places[item] = order.index(ray), kills
    items.sort(key=places.__getitem__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `tests/tiny_sweep.py`, run to its end with two pre-training workers; nobody writes into it.

    Of several processes the first that needs it makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(store.with_suffix(".lock")):
        if not store.with_suffix(".made").exists():
            words = ("--workers", "2", "--cpus-per-worker", "0.5")
            code, output = cleansweep("run", TINY, "--store", str(store), *words, CLEANSWEEP_LEDGER="1")
            assert code == 0, output
            make_database(store.parent)
            store.with_suffix(".made").touch()
    return store
