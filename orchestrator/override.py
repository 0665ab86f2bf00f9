"""Dotted paths into an experiment: the one way sweeps and the command line change a field."""

import ast
import dataclasses
import difflib
import typing
from typing import Any

from datasets.component import coerce, hints
from datasets.errors import InputError


def override(experiment: Any, path: str, value: Any) -> Any:
    """A copy of the experiment in which the field at the dotted path has the value.

    Raises InputError where the path names no field (saying which exist) or the value is of another type.
    """
    return _replace(experiment, path.split("."), value, path)


def get(experiment: Any, path: str) -> Any:
    """The value at the dotted path; InputError where there is none."""
    for name in path.split("."):
        _require_field(experiment, name, path)
        experiment = getattr(experiment, name)
    return experiment


def override_text(experiment: Any, path: str, text: str) -> Any:
    """As `override`, with the value as the command line gives it; text fields take it as it stands."""
    parent, _, name = path.rpartition(".")
    node = get(experiment, parent) if parent else experiment
    _require_field(node, name, path)
    value = parse(text)
    hint = hints(type(node))[name]
    if str in (hint, *typing.get_args(hint)) and not isinstance(value, (tuple, list, type(None))):
        value = text
    return override(experiment, path, value)


def parse(text: str) -> Any:
    """A value from the command line: a Python literal, true/false/none, or else the text itself."""
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _replace(node: Any, names: list[str], value: Any, path: str) -> Any:
    _require_field(node, names[0], path)
    if len(names) > 1:
        child = getattr(node, names[0])
        if child is None:
            raise InputError(f"{path}: {names[0]} is not set in this experiment, so it has no field {names[1]!r}.")
        new = _replace(child, names[1:], value, path)
    else:
        hint = hints(type(node))[names[0]]
        new = coerce(value, hint, path)
    return dataclasses.replace(node, **{names[0]: new})


def _require_field(node: Any, name: str, path: str) -> None:
    fields = [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        have = f"its fields are {', '.join(fields)}" if fields else "it has no fields"
        raise InputError(f"{path}: {type(node).__name__} has no field {name!r}; {have}.{guess}")
