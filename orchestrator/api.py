"""cleansweep from Python, as in a notebook: load a sweep, run it, and compute with its results.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.experiment.spec import Sweep
    from orchestrator.results.outcome import Study


def load_sweep(
    name: str, overrides: dict[str, Any] | None = None, *, miniature: bool = False, seeds: Sequence[int] | None = None
) -> Sweep:
    """The sweep of a module (`sweeps.quickstart`) or a file (`my/sweep.py`).

    `overrides`: dotted path of its experiment → value, as on the command line ({"clean.lr": 1e-3}). `miniature` takes its small
    version over the procedural world; `seeds` repeats each of its pre-trainings. InputError names what does not fit.
    """
    from orchestrator.sweep import loading

    return loading.load_sweep(name, {path: str(value) for path, value in (overrides or {}).items()}, miniature, seeds)


def run(sweep: Sweep, store: str = "store", *, say: Callable[[str], None] = print, **compute: Any) -> Study:
    """Run the sweep to its end, as `cleansweep run`; what the store has is not made again. Returns the study.

    `say` gets each line that a terminal would get. `compute`: fields of `orchestrator.experiment.spec.Compute`, e.g. workers=4. Trials
    that failed are in the study, with their errors.
    InputError for what the user can mend, StageError where a pre-training failed, TrackingError where MLflow does not answer.
    """
    from orchestrator.console.log import hearing
    from orchestrator.running.driver import run_sweep
    from orchestrator.stages.graph import look_again
    from orchestrator.sweep.plan import make_plan

    look_again()
    with hearing(say):
        return run_sweep(make_plan(sweep), replace(sweep.compute, store=str(store), **compute))[0]


def study(sweep: Sweep, store: str = "store") -> Study:
    """What the store holds of the sweep, finished or not. Nothing is run."""
    from orchestrator.stages.graph import look_again
    from orchestrator.store import Store
    from orchestrator.sweep.plan import make_plan
    from orchestrator.sweep.stored import load_study

    look_again()
    return load_study(make_plan(sweep), Store(store))
