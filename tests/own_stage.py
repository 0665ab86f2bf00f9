"""A lab's own kind of stage, the method that needs what it makes, and a sweep of it beside other methods."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune

from datasets.component import Component
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Sweep
from orchestrator.stages.base import Around, At, Stage
from orchestrator.store import write_json
from tests.own_methods import Prune, WiseFT
from tests.tiny_sweep import SWEEP as TINY
from trainers.encoder import Encoder
from trainers.methods.base import Method, Run
from trainers.methods.finetune import CleanCLIP


@dataclass(frozen=True, kw_only=True)
class Hint(Component):
    """What `Guided` needs."""

    strength: float = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Hinted(Stage):
    """Thinks for a while about the cleaning set, in steps that outlast a kill."""

    kind = "hint"
    apart = True
    serves = (Hint,)
    hint: Hint
    cleanset: Stage

    @classmethod
    def serve(cls, need: Hint, around: Around) -> Hinted:
        return cls(hint=need, cleanset=around.made["cleanset"])

    @property
    def name(self) -> str:
        return f"strength {self.hint.strength}"

    @property
    def config(self) -> Any:
        return encode(self.hint)

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"cleanset": self.cleanset}

    def make(self, at: At) -> None:
        for step in range(8):
            if not (at.folder / f"step_{step}").exists():
                time.sleep(0.5)
                (at.folder / f"step_{step}").write_text(f"{time.time()}")
        write_json(at.folder / "summary.json", {"strength": self.hint.strength, "set": at.of(self.cleanset).fingerprint})


@dataclass(frozen=True, kw_only=True)
class Guided(Method):
    """Scales the logit scale by what a stage of its own has found."""

    hint: Hint = Hint()

    def needs(self) -> tuple[Hint, ...]:
        return (self.hint,)

    def train(self, model: Encoder, run: Run) -> Encoder:
        strength = json.loads((Path(run.made[self.hint]) / "summary.json").read_text())["strength"]
        model.model.logit_scale.data.mul_(strength)
        return model


SWEEP: Sweep = replace(
    TINY, name="own", space={"clean.method": tune.grid_search([CleanCLIP(), WiseFT(alpha=0.0), Prune(), Guided()])}
)
