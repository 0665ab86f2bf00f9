"""Values that follow from a study, found once while it does not change: a report asks for the same points many thousand times."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_found: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("found", default=None)
"""(function, arguments) → the arguments, which keeps them alive, and the result; None outside `unchanging`."""


@contextmanager
def unchanging() -> Iterator[None]:
    """Within the block no study changes in this thread: functions that are marked by `once` keep their results."""
    token = None if _found.get() is not None else _found.set({})
    try:
        yield
    finally:
        if token is not None:
            _found.reset(token)


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Within `unchanging`, the function is called once for the same objects. Its result is shared, so nobody may change it."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        found = _found.get()
        if found is None:
            return function(*args, **kwargs)
        given = (*args, *kwargs.values())
        key = (function, *kwargs, *(value if isinstance(value, (str, bool)) else id(value) for value in given))
        if key not in found:
            found[key] = given, function(*args, **kwargs)
        return found[key][1]

    return called
