"""Identity: canonical JSON of what determines a result, hashed. How it is executed never enters."""

import dataclasses
import hashlib
import json
import math
from pathlib import PurePath
from typing import Any

from datasets.component import Component
from datasets.errors import InputError

LABEL = "label"
"""Key of a component's label in a configuration that people read; a field of this name is the component's label."""


def encode(value: Any, where: str = "value") -> Any:
    """The value as plain JSON types, the same in every process and on every machine.

    Components become {"class": "module.Name", field: ...}, without fields of `component.ADDED` at their default.
    Floats keep their shortest exact text; NaN, paths, functions, sets and everything else without a stable text raise InputError
    naming the field.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: only finite numbers can be part of an experiment.")
        return value
    if isinstance(value, Component):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        entering = [f for f in dataclasses.fields(value) if not (f.metadata.get("added") and getattr(value, f.name) == f.default)]
        fields = {f.name: encode(getattr(value, f.name), f"{where}.{f.name}") for f in entering}
        return {"class": name, **fields}
    if isinstance(value, (tuple, list)):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{where}.{key}") for key, item in sorted(value.items())}
    hint = " Give paths as text." if isinstance(value, PurePath) else ""
    raise InputError(
        f"{where} is a {type(value).__name__}, which has no stable text. Accepted: numbers, text, booleans, None, "
        f"components, and tuples, lists or dictionaries of those.{hint}"
    )


def described(value: Any, where: str = "value") -> Any:
    """The value as plain JSON types with the label of each component beside its class: for people, never for an identity."""
    return labelled(value, encode(value, where))


def labelled(value: Any, encoded: Any) -> Any:
    """What `encode` made of the value, or a part of it, with the label of each component beside its class."""
    if isinstance(value, Component) and isinstance(encoded, dict) and "class" in encoded:
        label = value.label
        if not isinstance(label, str) or not label.strip() or "\n" in label:
            raise InputError(f"{type(value).__name__}.label is {label!r}; accepted: one line of text.")
        own = {name: labelled(getattr(value, name, None), part) for name, part in encoded.items() if name != "class"}
        return {"class": encoded["class"], LABEL: label, **own}
    if isinstance(value, (tuple, list)) and isinstance(encoded, list):
        return [labelled(*pair) for pair in zip(value, encoded)]
    return encoded


def canonical(value: Any) -> str:
    """The encoded value as JSON with sorted keys and no spaces."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
