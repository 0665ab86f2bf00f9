"""What audits are called, so that no two of them have one name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from datasets.component import Component
from trainers.audit.base import Audit

C = TypeVar("C", bound=Component)


def audit_names(audits: Iterable[Audit]) -> dict[Audit, str]:
    """Audit → its label; where several share a label, with the fields that tell them apart: `PGD (steps=1)`.

    The ε within which an audit attacks is told beside its name everywhere, and is no part of it.
    """

    def no_part(audit: Audit) -> str:
        return "" if radius_of(audit) is None else "attack.eps" if hasattr(audit, "attack") else "eps"

    return names(audits, no_part)


def names(components: Iterable[C], no_part: Callable[[C], str] = lambda _: "") -> dict[C, str]:
    """Component → its label; where several share a label, with the fields that tell them apart, but for the one at the path `no_part`."""
    alike: dict[str, list[C]] = {}
    for component in dict.fromkeys(components):
        alike.setdefault(component.label, []).append(component)
    found: dict[C, str] = {}
    for label, group in alike.items():
        leaves = [{path: text for path, text in _leaves(one) if not path or path != no_part(one)} for one in group]
        found |= {one: label + end for one, end in zip(group, _endings(leaves))}
    return found


def radius_of(audit: Audit) -> float | None:
    """The ε within which an audit attacks; None: it attacks nothing, or looks for the smallest change."""
    attack: Any = getattr(audit, "attack", audit)
    eps = None if getattr(attack, "minimal", False) else getattr(attack, "eps", None)
    return float(eps) if isinstance(eps, (int, float)) else None


def radius(eps: float) -> str:
    """ε as people write it: 4/255 where that is exact, else the number."""
    steps = eps * 255
    return f"{steps:.4g}/255" if eps <= 1 and abs(steps * 4 - round(steps * 4)) < 1e-6 and steps > 0 else f"{eps:g}"


def at_eps(audit: Audit) -> str:
    """`, ε = 4/255` of an attack within ε; else nothing."""
    eps = radius_of(audit)
    return "" if eps is None else f", ε = {radius(eps)}"


def _endings(each: list[dict[str, str]]) -> list[str]:
    """` (field=value, …)` of each one for the fields in which they differ; empty if they do not."""
    paths = dict.fromkeys(path for leaves in each for path in leaves)
    differ = [path for path in paths if len({leaves.get(path) for leaves in each}) > 1]
    short = [path.rpartition(".")[2] for path in differ]
    called = {path: (name if short.count(name) == 1 else path) or "class" for path, name in zip(differ, short)}
    told = [", ".join(f"{called[path]}={leaves[path]}" for path in differ if path in leaves) for leaves in each]
    return [f" ({text})" if text else "" for text in told]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, text) of every field that holds no component, and of the class of every component, its own under the empty path."""
    if isinstance(value, Component):
        yield path, type(value).__name__
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, tuple) and any(isinstance(one, Component) for one in value):
        for number, one in enumerate(value):
            yield from _leaves(one, f"{path}.{number}")
    else:
        yield path, _text(value)


def _text(value: Any) -> str:
    """Exact; 4/255 where that is shorter."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, float):
        steps = round(value * 255)
        return min((repr(value), *([f"{steps}/255"] if steps / 255 == value else [])), key=len)
    return str(value)
