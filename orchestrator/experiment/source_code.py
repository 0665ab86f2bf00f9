"""Hashes of the source of the user's own classes that a stage was made with. They inform people and are never part of an identity."""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from datasets.component import Component

OWN = ("datasets", "trainers", "orchestrator")
"""The project's packages, whose code is identified by `Stage.version` and the commit in the manifest."""
_CARRIED = "_source_digest"
"""Attribute that holds the hash in a worker: there the class arrives by value, without its source."""


def path_of(cls: type) -> str:
    """A class as configurations name it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_ours(cls: type) -> bool:
    """Whether the class comes with the project."""
    return cls.__module__.partition(".")[0] in OWN


def code_of(value: Any) -> tuple[tuple[str, str], ...]:
    """(class, hash of its source and its bases' source) of the user's own components in a value, each once."""
    return tuple(sorted({(path_of(cls), digest) for cls in _classes(value) if (digest := _digest(cls))}))


def _classes(value: Any) -> Iterator[type]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _classes(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, Component):
            yield type(value)
        for field in dataclasses.fields(value):
            yield from _classes(getattr(value, field.name))


@lru_cache(maxsize=1024)
def _digest(cls: type) -> str:
    """The hash of a class's source; empty for the project's own classes, and if there is no source."""
    outside = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in (*OWN, "builtins", "abc", "typing")]
    if cls not in outside:
        return ""
    try:
        source = "\n".join(inspect.getsource(base) for base in outside)
    except (OSError, TypeError, SyntaxError):
        return cls.__dict__.get(_CARRIED, "")
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    setattr(cls, _CARRIED, digest)
    return digest
