"""What the user's own classes were when a stage was made with them: a hash of their source, for people, never part of an identity."""

import dataclasses
import hashlib
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from datasets.component import Component

OWN = ("datasets", "trainers", "orchestrator")
"""Packages whose versions tell what their code was: `Stage.version`, and the commit in the manifest."""
_CARRIED = "_source_digest"
"""Attribute by which a class tells it where it arrived by value, without its source: in a worker."""


def code_of(value: Any) -> tuple[tuple[str, str], ...]:
    """(class, hash of its source and of its bases') of the components in a value that are not the project's, each once."""
    return tuple(sorted({(f"{cls.__module__}.{cls.__qualname__}", digest) for cls in _classes(value) if (digest := _digest(cls))}))


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
    """Empty for the project's own, and where the source cannot be had."""
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
