"""What several tests ask for: the server of those of fetching, and limits for damaged input."""

import resource
import signal
from collections.abc import Callable, Iterator

import pytest

from datasets.errors import InputError
from orchestrator.console.log import hearing
from tests.misbehaving import Server, serving

SECONDS, BYTES = 5, 1 << 30
"""Of CPU for one input, and above what the process has when the test begins."""


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The lines that the product says, as a terminal shows them."""
    lines: list[str] = []
    with hearing(lines.append):
        yield lines


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def bounded() -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Calls what it is given: whether it returned, False where it raised InputError; anything else fails, as do time and memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        has = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + BYTES, before[1]))

    def late(*arguments: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s of CPU")

    handler = signal.signal(signal.SIGPROF, late)

    def call(action: Callable[[], object]) -> bool:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            action()
            return True
        except InputError as error:
            assert str(error).strip(), "a refusal says why"
            return False
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    try:
        yield call
    finally:
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)
