"""Identity: the hash of canonical JSON of what determines a result. How the result is computed is never part of it."""

import dataclasses
import hashlib
import json
import math
from pathlib import PurePath
from typing import Any

from datasets.component import Component
from datasets.errors import InputError, its_type
from orchestrator.experiment.source_code import path_of

ID = "id"
"""Key of a component's id in a configuration."""
LABEL = "label"
"""Key of a component's label in a configuration for people."""


def encode(value: Any, where: str = "value", neutral: bool = False, every: bool = False) -> Any:
    """The value as plain JSON types, the same in every process and on every machine.

    Components become {"class": "module.Name", "id": …, field: …}. Neutral fields are left out unless `neutral` is true, and so are later
    fields with their default value (`component.since`); `every` keeps all fields. The class is for people: a fingerprint uses the id.
    Floats keep their shortest exact text. NaN, paths, functions, sets and everything else without a stable text raise InputError naming
    the field.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: only finite numbers can be part of an experiment.")
        return value
    if isinstance(value, Component):
        name = path_of(type(value))
        entering = [f for f in dataclasses.fields(value) if every or _enters(f, value) or (neutral and f.metadata.get("neutral"))]
        fields = {f.name: encode(getattr(value, f.name), f"{where}.{f.name}", neutral, every) for f in entering}
        return {"class": name, ID: value.id, **fields}
    if isinstance(value, (tuple, list)):
        return [encode(item, f"{where}[{i}]", neutral, every) for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{where}.{key}", neutral, every) for key, item in sorted(value.items())}
    hint = " Give paths as text." if isinstance(value, PurePath) else ""
    raise InputError(
        f"{where} is {its_type(value)}, which has no stable text. Accepted: numbers, text, booleans, None, "
        f"components, and tuples, lists or dictionaries of those.{hint}"
    )


def _enters(field: dataclasses.Field, value: Component) -> bool:
    """Whether a field with this value is part of the identity."""
    if field.metadata.get("neutral"):
        return False
    return "since" not in field.metadata or getattr(value, field.name) != field.metadata["since"]


def described(value: Any, where: str = "value") -> Any:
    """The value as plain JSON types with the label of each component beside its class: for people, never for an identity."""
    return labelled(value, encode(value, where, neutral=True))


def labelled(value: Any, encoded: Any) -> Any:
    """The output of `encode` for the value, or for a part of it, with the label of each component beside its class."""
    if isinstance(value, Component) and isinstance(encoded, dict) and "class" in encoded:
        label = value.label
        if not isinstance(label, str) or not label.strip() or "\n" in label:
            raise InputError(f"{type(value).__name__}.label is {label!r}; accepted: one line of text.")
        own = {name: labelled(getattr(value, name, None), part) for name, part in encoded.items() if name not in ("class", ID)}
        return {"class": encoded["class"], ID: encoded[ID], LABEL: label, **own}
    if isinstance(value, (tuple, list)) and isinstance(encoded, list):
        return [labelled(*pair) for pair in zip(value, encoded)]
    return encoded


def canonical(value: Any) -> str:
    """The encoded value as JSON with sorted keys and no spaces, without the parts that are for people."""
    return json.dumps(_without_paths(encode(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _without_paths(value: Any) -> Any:
    """Nested plain values without the paths of classes that have an id."""
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if not (key == "class" and ID in value)}
    return value


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
