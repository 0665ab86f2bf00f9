"""Where training processes find their data: plain text and numbers, which can be sent to any node."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.index.pairs import Pairs
from orchestrator.store import checked


@dataclass(frozen=True)
class MadeSet:
    """An evaluation or retrieval set whose stage is made."""

    index: str
    urls: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    numbers: tuple[int, ...]
    """Index of each class in the list that its name was taken from."""
    dropped: tuple[tuple[str, int], ...]
    """(reason, count) of the pictures that cannot be used."""

    def pairs(self) -> Pairs:
        """The pictures; InputError if a file of a stage is damaged, here and in `Inputs`."""
        return _pairs(self.index, self.urls)


@dataclass(frozen=True)
class Inputs:
    """The pairs, the poison plan and the test sets of an experiment."""

    index: str
    urls: tuple[str, ...]
    plan: str
    """File of the poison plan; empty: the pairs as they are."""
    rows: str | None
    test_index: str = ""
    """Empty, like all fields below, if only the pairs are needed."""
    test_urls: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    targets: tuple[int | None, ...] = ()
    """Index of each attack's target class; None: all-to-all."""
    further: tuple[MadeSet, ...] = ()
    """The sets that evaluators need beside the test pictures, in the order of `experiment.further_sets`."""

    def pairs(self, rows: str | None = None) -> Pairs:
        """The pairs, or those of the given rows file, with the poison plan applied."""
        return _pairs(self.index, self.urls, self.plan, rows or self.rows)

    def test(self) -> Pairs:
        """The test pictures."""
        return _pairs(self.test_index, self.test_urls)


def _pairs(index: str, urls: tuple[str, ...], plan: str = "", rows: str | None = None) -> Pairs:
    for file in (index, *urls, *([plan] if plan else [])):
        checked(file)
    return Pairs(index, list(urls), plan or None, None if rows is None else checked(rows))
