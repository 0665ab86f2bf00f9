"""In every test of audits: each number that one gives is explained."""

from collections.abc import Iterator
from typing import Any

import pytest

from trainers.audit.base import Findings
from trainers.audit.meanings import meaning


@pytest.fixture(autouse=True)
def explained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever findings an audit makes, the table of meanings has a row for each of their numbers."""
    plain, without = Findings.__init__, set[str]()

    def noting(self: Findings, *values: Any, **fields: Any) -> None:
        plain(self, *values, **fields)
        without.update(name for name in self.metrics if meaning(name) is None)

    monkeypatch.setattr(Findings, "__init__", noting)
    yield
    assert not without, f"trainers/audit/meanings.py has no row for {sorted(without)}"
