"""What determines a stage's result: configurations without the fields that change no result, and files by their content. The identities
of files are remembered and sent with a stage to the process that makes it, which may not have the files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.index.source import Source
from datasets.synthetic import World
from orchestrator.experiment.cleanset import read_keys
from orchestrator.experiment.fingerprint import encode, fingerprint
from orchestrator.experiment.source_code import path_of
from orchestrator.experiment.spec import Clean
from orchestrator.manifest import checked
from orchestrator.store import sha256
from trainers.evaluate.base import Evaluator
from trainers.methods.with_labels import WithLabels
from trainers.model import Model, TinyCLIP
from trainers.weights.files import files_read

IDENTITIES: dict[Component | str, Any] = {}
"""Digests of sources and of files of keys that were read so far. A trial gets the driver's, so that it does not read the files again."""

LABELLING = {"labeller", "classes", "templates"}
"""Fields of `WithLabels` that determine its stage of labels."""


def encode_evaluator(evaluator: Evaluator) -> Any:
    """The evaluator's configuration without its sets: those are stages, identified by their content."""
    fields = encode(evaluator, "evaluate.evaluators")
    return {name: value for name, value in fields.items() if getattr(evaluator, name, None) not in evaluator.needs()}


def clean_pairs(clean: Clean) -> int:
    """Size of the cleaning set: `pairs`, or the number of keys in the file."""
    return _keys(clean.keys)[0] if clean.keys else clean.pairs


def cleanset_identity(clean: Clean) -> tuple[str, dict[str, Any]]:
    """The name and the configuration of the cleaning set's stage."""
    name = f"{clean_pairs(clean)}" + (f" with {clean.poisons} poisons" if clean.poisons else "")
    poisons = {"poisons": clean.poisons} if clean.poisons else {}
    if clean.keys:
        return name, {"keys": _keys(clean.keys)[1], **poisons}
    drawn = clean.choice == "random" or clean.poisons
    return name, {"pairs": clean.pairs, "choice": clean.choice, "seed": clean.seed if drawn else None, **poisons}


def cleanset_fields(clean: Clean) -> set[str]:
    """The fields of the cleaning that determine its cleaning set, and which pairs of it are kept."""
    return {"poisons", "keys", "keep"} | ({"pairs", "choice"} if clean.keys else set())


def _keys(path: str) -> tuple[int, str]:
    """The number of keys in a file, and their digest."""
    if path not in IDENTITIES:
        keys = read_keys(path)
        IDENTITIES[path] = (len(keys), fingerprint(sorted(keys)))
    return IDENTITIES[path]


def set_identity(source: Source | EvalSet | RetrievalSet | World) -> Any:
    """What determines the samples: for files their names, sizes and digests, but not their location."""
    if isinstance(source, World):
        return encode(source)
    if source not in IDENTITIES:
        IDENTITIES[source] = source.identity()
    config = {key: value for key, value in encode(source).items() if key not in ("urls", "path", "images")}
    return {**config, "files": IDENTITIES[source]}


def weights_identity(model: Model | TinyCLIP) -> Any:
    """Size and hash of the checkpoint that pre-training starts from; None without one, or for a tag of open_clip's.

    Where it is read from several files (parts, a configuration beside it), the hashes of the others by name too.
    """
    path = model.file if isinstance(model, Model) else None
    return None if path is None else file_identity(path)


def file_identity(path: Path) -> Any:
    """Size and hash of a checkpoint, and the hashes of the other files that are read with it. InputError where it is damaged or cannot be
    read."""
    file, *others = files_read(checked(path))
    beside = {"beside": {other.name: sha256(other) for other in others}} if others else {}
    return {"size": file.stat().st_size, "sha256": sha256(file), **beside}


def encode_cleaning(clean: Clean) -> Any:
    """The cleaning's configuration without the fields that determine the stage of labels, which is one of its inputs."""
    labels = {path_of(type(part)) for part in clean.method.parts() if isinstance(part, WithLabels)}
    return _without(encode(clean, "clean"), lambda key, owner: owner.get("class") in labels and key in LABELLING)


def _without(value: Any, drop: Callable[[str, dict[str, Any]], bool]) -> Any:
    """Nested plain values without the entries for which `drop(key, the dictionary it is in)` is true, at any depth."""
    if isinstance(value, list):
        return [_without(item, drop) for item in value]
    if isinstance(value, dict):
        return {key: _without(item, drop) for key, item in value.items() if not drop(key, value)}
    return value
