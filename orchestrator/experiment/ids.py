"""No two component classes of a sweep may have one id, and a lab's own class may not have the id of one of the project's."""

import importlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from datasets.component import Component
from datasets.errors import InputError
from orchestrator.experiment.source_code import OWN, is_ours, path_of


def check_ids(classes: Iterable[type[Component]]) -> None:
    """InputError if two of these classes, or one of them and one of the project's, have the same id: they would be confused."""
    known: dict[str, type[Component]] = {}
    for cls in sorted(classes, key=path_of):
        other = known.setdefault(cls.id, cls if is_ours(cls) else project_class(cls.id) or cls)
        if path_of(other) != path_of(cls):
            raise InputError(
                f"{path_of(cls)} has the id {cls.id!r}, as {path_of(other)} has, so one would be taken for the other: give it an id of its "
                f'own, id = "…" in its body.'
            )


def project_class(id: str) -> type[Component] | None:
    """The project's component class with this id; None if there is none. It need not have been imported: the modules that mention the id
    in a class statement or as an `id = "…"` are imported here."""
    mention = re.compile(rf'^class {re.escape(id)}\b|^\s+id\b.*"{re.escape(id)}"', re.MULTILINE)
    for module, text in _sources():
        if mention.search(text):
            importlib.import_module(module)
    return next((cls for cls in _subclasses(Component) if cls.id == id and is_ours(cls)), None)


@lru_cache(maxsize=1)
def _sources() -> list[tuple[str, str]]:
    """(name, source) of every module of the project's packages."""
    modules = []
    for package in OWN:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            if parts[-1] not in ("__main__", "__init__"):
                modules.append((".".join(parts), file.read_text(encoding="utf-8")))
    return modules


def _subclasses(cls: type[Component]) -> Iterator[type[Component]]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)
