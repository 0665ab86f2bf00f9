"""Dotted paths into an experiment, by which sweeps and the command line change its fields."""

import ast
import dataclasses
import difflib
import warnings
from typing import Any

from datasets.component import choices, coerce, hints, options
from datasets.errors import InputError


def override(experiment: Any, path: str, value: Any) -> Any:
    """A copy of the experiment in which the field at the dotted path has the value.

    Raises InputError where the path names no field (saying which exist) or the value is of another type.
    """
    return override_all(experiment, {path: value})


def override_all(experiment: Any, values: dict[str, Any]) -> Any:
    """As `override` for several paths at once, for fields that must change together to stay valid."""
    return _replace(experiment, [(path.split("."), value, path) for path, value in values.items()])


def get(experiment: Any, path: str) -> Any:
    """The value at the dotted path; InputError if there is none."""
    for name in path.split("."):
        _require_field(experiment, name, path)
        experiment = _at(experiment, name)
    return experiment


def _at(node: Any, name: str) -> Any:
    """The node's field of that name; for a tuple, the component at that index."""
    return node[int(name)] if isinstance(node, tuple) else getattr(node, name)


def has(experiment: Any, path: str) -> bool:
    """Whether the dotted path names a field of this experiment."""
    try:
        get(experiment, path)
    except InputError:
        return False
    return True


def from_text(experiment: Any, path: str, text: str) -> Any:
    """The value that a text of the command line stands for at this path; a field of type str takes the text literally."""
    parent, _, name = path.rpartition(".")
    node = get(experiment, parent) if parent else experiment
    _require_field(node, name, path)
    value = parse(text)
    kinds = options(hints(type(node))[name])
    keeps_text = str in kinds and not isinstance(value, (tuple, list, type(None)))
    return text if keeps_text or any(text in choices(kind) for kind in kinds) else value


def parse(text: str) -> Any:
    """The value of a text of the command line: a Python literal, true, false or none, or else the text itself."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about odd escapes would go to the terminal
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # a list as a key; nested too deep
        return text


def _replace(node: Any, changes: list[tuple[list[str], Any, str]]) -> Any:
    new: dict[str, Any] = {}
    below: dict[str, list[tuple[list[str], Any, str]]] = {}
    for names, value, path in changes:
        _require_field(node, names[0], path)
        if len(names) == 1 and isinstance(node, tuple):
            new[names[0]] = coerce(value, type(node[int(names[0])]), path)
        elif len(names) == 1:
            new[names[0]] = coerce(value, hints(type(node))[names[0]], path)
        else:
            below.setdefault(names[0], []).append((names[1:], value, path))
    for name, deeper in below.items():
        child = new[name] if name in new else _at(node, name)
        new[name] = _replace(child, deeper)
    if isinstance(node, tuple):
        return tuple(new.get(str(place), value) for place, value in enumerate(node))
    return dataclasses.replace(node, **new)


def _require_field(node: Any, name: str, path: str) -> None:
    if isinstance(node, tuple) and node and all(map(dataclasses.is_dataclass, node)):
        if not (name.isdecimal() and str(int(name)) == name and int(name) < len(node)):
            raise InputError(f"{path}: {name!r} is no place among {len(node)}; accepted: 0 to {len(node) - 1}.")
        return
    if node is None:
        above = path.partition(f".{name}")[0].rpartition(".")[2]
        raise InputError(f"{path}: {above} is not set in this experiment, so it has no field {name!r}."
                         + (" It has several attacks: write attacks.0 for the first." if above == "poison" else ""))  # fmt: skip
    fields = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        have = f"its fields are {', '.join(fields)}" if fields else "it has no fields"
        raise InputError(f"{path}: {type(node).__name__} has no field {name!r}; {have}.{guess}")
