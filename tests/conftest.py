"""For all tests: property tests take the time they take, for a busy machine is no failure, and Ray comes last.

The one Ray of `tests/ray` lives until the end; many tests of the other folders are about a process that has none.
"""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: Path(__file__).with_name("ray") in item.path.parents)
