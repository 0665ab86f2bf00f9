"""The stage `testset`: the pictures of an evaluation or retrieval set, with its classes and prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.index.pairs import write_index
from orchestrator.console.log import note
from orchestrator.experiment.identity import set_identity
from orchestrator.stages.base import Around, At, Stage
from orchestrator.stages.index import counts
from orchestrator.stages.world import Drawn
from orchestrator.store import checked, part, write_json
from orchestrator.training.inputs import MadeSet


@dataclass(frozen=True, kw_only=True, eq=False)
class TestSet(Stage):
    """The pictures of a set, or the test pictures of a world."""

    __test__ = False  # pytest would take the class for a test
    kind = "testset"
    role = "set_"
    serves = (EvalSet, RetrievalSet)
    tests: EvalSet | RetrievalSet | None
    world: Drawn | None = None
    """Where the pictures come from if `tests` is None."""
    name: str = "test"
    where: str = ""
    """The field that names the set, for messages."""
    least: float = 0.5
    """Share of its pictures that must be usable; not part of the identity."""

    @classmethod
    def serve(cls, need: EvalSet | RetrievalSet, around: Around) -> TestSet:
        """The stage of a further set that an evaluator needs beside the test pictures."""
        return cls(tests=need, name=set_name(need), least=1 - around.experiment.data.max_dropped)

    @cached_property
    def config(self) -> Any:
        try:
            return {} if self.tests is None else set_identity(self.tests)
        except InputError as error:
            if not self.where:
                raise
            raise InputError(f"{self.where}: {error}") from error

    @property
    def inputs(self) -> dict[str, Stage]:
        return {} if self.world is None else {"test_world": self.world}

    def source(self, at: At) -> EvalSet | RetrievalSet:
        """The set; for a world, the one that its stage wrote."""
        if self.tests is not None:
            return self.tests
        assert self.world is not None
        return EvalSet(path=str(at.of(self.world).folder / "test"), layout="clip_benchmark")

    def make(self, at: At) -> None:
        _write(self.source(at), at.folder, self.least)

    def read(self, at: At) -> MadeSet:
        """Where the finished set lies, and its classes."""
        found = at.of(self)
        classes = json.loads(part(found, "classes.json"))
        return MadeSet(
            index=str(found.folder / "index.arrow"),
            urls=tuple(self.source(at).shards(found.folder)),
            class_names=tuple(classes["names"]),
            templates=tuple(classes["templates"]),
            numbers=tuple(classes.get("numbers", range(len(classes["names"])))),
            dropped=tuple(json.loads(part(found, "summary.json"))["drops"].items()),
        )


def set_name(tests: EvalSet | RetrievalSet) -> str:
    """The name of the stage of a set."""
    return (tests.name if isinstance(tests, EvalSet) else "retrieval") or "test"


def require_same_classes(test: MadeSet, further: EvalSet | RetrievalSet, made: MadeSet) -> None:
    """InputError if a further set has other classes than the test set: a label would mean a different class there."""
    if isinstance(further, EvalSet) and made.class_names != test.class_names:
        strange = next((name for name in made.class_names if name not in test.class_names), "fewer or in another order")
        raise InputError(
            f"the {len(made.class_names)} classes of {further.path} are not the {len(test.class_names)} of the test set ({strange}); "
            "name the same classes for both."
        )


def _write(tests: EvalSet | RetrievalSet, folder: Path, least: float) -> None:
    checked(tests.path)
    loaded = tests.load(folder, note)
    drops = {e["values"]: e["counts"] for e in pc.value_counts(loaded.table["drop"]).to_pylist()}
    kept = drops.pop("", 0)
    if kept < least * len(loaded.table):
        raise InputError(
            f"{tests.path}: only {kept} of {len(loaded.table)} pictures can be used ({counts(drops)}); "
            f"evaluation needs {least:.0%} of them."
        )
    if drops:
        note(f"{tests.path}: {kept} of {len(loaded.table)} pictures can be used ({counts(drops)}).")
    write_index([loaded.table], folder / "index.arrow")
    summary = {"samples": len(loaded.table), "kept": kept, "drops": drops, "passed_over": loaded.passed_over}
    write_json(folder / "summary.json", summary)
    classes = {"names": list(loaded.names), "templates": list(loaded.templates), "numbers": list(loaded.numbers)}
    write_json(folder / "classes.json", classes)
