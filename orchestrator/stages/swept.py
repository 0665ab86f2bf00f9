"""The stage `sweep`: how each trial of a sweep ended. It is made when all trials have ended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Sweep
from orchestrator.stages.base import At, Stage
from orchestrator.stages.graph import stages, trained_by
from orchestrator.store import write_json

FILE = "trials.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Swept(Stage):
    """The record of a sweep. Its identity is the base experiment, the search spaces and the search."""

    kind = "sweep"
    sweep: Sweep
    trials: tuple[dict[str, Any], ...] = ()
    """How each trial ended: {"overrides", "fingerprint", "status", "failure"}; not part of the identity."""

    @property
    def name(self) -> str:
        return self.sweep.name

    @cached_property
    def config(self) -> Any:
        sweep, made = self.sweep, stages(self.sweep.base)
        return {
            "base": {role: stage.fingerprint for role, stage in made.items()},
            "measured": list(trained_by(sweep.base).digests),
            "space": {path: encode_space(space, path) for path, space in sweep.space.items()},
            "search": [sweep.search, sweep.num_samples, sweep.seed],
            "scheduler": [sweep.scheduler, sweep.metric, sweep.grace_epochs],
        }

    def make(self, at: At) -> None:
        write_json(at.folder / FILE, list(self.trials))


def grid_values(space: Any) -> list[Any] | None:
    """The values of `tune.grid_search`, or a single constant as a list; None for a space from which values are drawn."""
    if isinstance(space, dict) and set(space) == {"grid_search"}:
        return list(space["grid_search"])
    return None if hasattr(space, "sample") else [space]


def encode_space(space: Any, path: str) -> Any:
    """A search space as plain JSON: its kind, bounds and choices."""
    values = grid_values(space)
    if values is not None:
        return {"grid": encode(values, path)}
    described: dict[str, Any] = {"kind": type(space).__name__}
    for name in ("lower", "upper", "categories"):
        if hasattr(space, name):
            described[name] = encode(getattr(space, name), path)
    sampler = space.get_sampler() if hasattr(space, "get_sampler") else None
    samplers = []
    while sampler is not None:  # a quantised sampler wraps another
        fields = {k: v for k, v in vars(sampler).items() if isinstance(v, (int, float, str))}
        samplers.append({"name": type(sampler).__name__, **fields})
        sampler = getattr(sampler, "sampler", None)
    return {**described, "samplers": samplers}
