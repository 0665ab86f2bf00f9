"""Ray Tune's search spaces for sweeps (`grid_search`, `loguniform` and all others). Only drawn ones import Ray, which takes a second.

`from ray import tune` means the same in a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def grid_search(values: Iterable[Any]) -> dict[str, Iterable[Any]]:
    """Every one of the values, as `ray.tune.grid_search` says it."""
    return {"grid_search": values}


def __getattr__(name: str) -> Any:
    if name == "__path__":  # Python asks every module for it on `from orchestrator.sweep.tune import grid_search`
        raise AttributeError(name)
    from ray import tune

    return getattr(tune, name)
