"""The stage `cleanset`: the pairs that a cleaning trains on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.experiment import cleanset
from orchestrator.experiment.identity import cleanset_identity
from orchestrator.experiment.spec import Clean
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import At, Stage
from orchestrator.stages.index import read_index
from orchestrator.store import Artefact, checked

FILE = "rows.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class CleaningSet(Stage):
    """Rows of the index: pairs of the pre-training that are not victims, and as many victims as were asked for."""

    kind = "cleanset"
    trial = True
    clean: Clean
    """Only the fields that choose the pairs are part of the identity."""
    attack: AttackPlan

    @property
    def name(self) -> str:
        return cleanset_identity(self.clean)[0]

    @cached_property
    def config(self) -> Any:
        return cleanset_identity(self.clean)[1]

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"poison": self.attack}

    def make(self, at: At) -> None:
        inputs = self.attack.read(at)
        plan, negatives = _planned(inputs.plan)
        rows = cleanset.choose_rows(self.clean, read_index(inputs.index), inputs.pairs().rows, plan, negatives)
        np.save(at.folder / FILE, rows)

    def accept(self, found: Artefact, at: At) -> None:
        """InputError unless the rows hold exactly as many victims as were asked for."""
        rows, inputs = np.load(checked(found.folder / FILE)), self.attack.read(at)
        cleanset.require(rows, read_index(inputs.index), _planned(inputs.plan)[0], self.clean, str(self))

    def read(self, at: At) -> str:
        """The path of the file with its rows."""
        return str(at.of(self).folder / FILE)


def _planned(plan: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the plan, and those of them that are partial negatives."""
    table = pq.read_table(checked(plan), columns=["row", "target"])
    return table["row"].to_numpy(), table.filter(pc.equal(table["target"], ""))["row"].to_numpy()
