"""The stage `world`: the shards and test pictures of a procedural world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets.synthetic import World
from orchestrator.experiment.identity import set_identity
from orchestrator.stages.base import At, Stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(Stage):
    """A procedural world, drawn into files."""

    kind = "world"
    world: World

    name = "world"

    @cached_property
    def config(self) -> Any:
        return set_identity(self.world)

    def make(self, at: At) -> None:
        self.world.write(at.folder)
