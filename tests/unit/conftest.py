"""For the tests of fetching: the server that they all ask."""

from collections.abc import Iterator

import pytest

from tests.misbehaving import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running
