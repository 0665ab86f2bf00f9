"""The stage `index`: every pair of the shards, or why it is dropped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import InputError
from datasets.index.dropped import write_dropped
from datasets.index.source import PASSED_OVER, Source
from orchestrator.console.log import log
from orchestrator.console.progress import meter
from orchestrator.experiment.identity import set_identity
from orchestrator.stages.base import At, Stage
from orchestrator.stages.world import Drawn
from orchestrator.store import Artefact, Store, checked, part, write_json


@dataclass(frozen=True, kw_only=True, eq=False)
class Index(Stage):
    """Every pair in the shards of a source or a world."""

    kind = "index"
    source: Source | None
    world: Drawn | None
    """Where the shards come from if `source` is None."""
    max_dropped: float
    """Not part of the identity: it does not change the index."""

    name = "pairs"

    @cached_property
    def config(self) -> Any:
        try:
            return {} if self.source is None else set_identity(self.source)
        except InputError as error:
            raise InputError(f"data.source: {error}") from error

    @property
    def inputs(self) -> dict[str, Stage]:
        return {} if self.world is None else {"world": self.world}

    def read(self, at: At) -> Source:
        """The shards; for a world, those that its stage wrote."""
        if self.source is not None:
            return self.source
        assert self.world is not None
        return Source(urls=str(at.of(self.world).folder / "train"))  # no glob: the store's path may hold any character

    def kept(self, store: Store) -> int | None:
        """How many pairs are not dropped; None before they are read."""
        found = store.find(self.kind, self.fingerprint)
        if found is not None:
            return int(json.loads(part(found, "summary.json"))["kept"])
        return None if self.world is None else self.world.world.train

    def make(self, at: At) -> None:
        source = self.read(at)
        for url in source.shards():
            checked(url)
        index_source(source, at.folder)

    def accept(self, found: Artefact, at: At) -> None:
        summary = json.loads(part(found, "summary.json"))
        dropped = 1 - summary["kept"] / max(1, summary["samples"])
        if dropped > self.max_dropped:
            example = unknown_extension(found.folder / "index.arrow")
            raise InputError(
                f"data: {dropped:.1%} of the {summary['samples']} samples are dropped ({counts(summary['drops'])}{example}), more than "
                f"data.max_dropped = {self.max_dropped:.0%} allows; {found.folder / 'dropped.csv'} lists them."
            )


def index_source(source: Source, folder: Path) -> None:
    """Write the index of a source, its summary and the list of what is dropped."""
    from orchestrator.cluster.streaming import index_shards

    summary = index_shards(source, folder, progress=meter("index", "shards"))
    write_json(folder / "summary.json", summary)
    write_dropped(source, folder / "index.arrow", folder / "dropped.csv")
    for columns in summary.get("columns", []):
        captions = f"captions from {columns['caption']!r}" if columns["caption"] else "no captions"
        log.info(f"index: pictures from the column {columns['image']!r}, {captions}")
    if summary.get("label_not_number"):
        log.info(f"index: {summary['label_not_number']} samples have a label that is no class number, so they have none")
    if summary.get("json_broken"):
        broken = summary["json_broken"]
        log.info(f"index: {broken} samples have a json member that is no JSON object, so no caption or label is read from it")
    if summary.get("passed_over"):
        log.info(f"index: {summary['passed_over']} {PASSED_OVER}")
    if summary.get("empty_shards"):
        log.info(f"index: {summary['empty_shards']} of {summary['shards']} shards hold no sample and are passed over")


def read_index(path: str) -> pa.Table:
    """The index, memory-mapped; InputError if it is damaged."""
    return pa.ipc.open_file(pa.memory_map(str(checked(path)))).read_all()


def unknown_extension(index: Path) -> str:
    """A sentence that names the first sample of the index with an unknown extension."""
    table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
    names = table["member"].filter(pc.equal(table["drop"], "unknown_extension"))
    return f"; the first of an unknown extension is {names[0].as_py()}" if len(names) else ""


def counts(drops: dict[str, int]) -> str:
    """`no_image 3, undecodable 1`"""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(drops.items())) or "none"
