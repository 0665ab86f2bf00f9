"""A sweep's plan: its experiments and their stages, with fingerprints. Nothing here starts Ray."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.component import Component, components
from datasets.errors import InputError, its_type
from datasets.seeding import rng
from orchestrator.experiment.check import check
from orchestrator.experiment.fingerprint import canonical, described, encode
from orchestrator.experiment.ids import check_ids
from orchestrator.experiment.override import has, override, override_all
from orchestrator.experiment.spec import Experiment, Sweep
from orchestrator.results.claims import Claim
from orchestrator.results.names import flatten
from orchestrator.results.published import load_published
from orchestrator.stages.base import Stage
from orchestrator.stages.graph import stages, trained_by
from orchestrator.stages.swept import Swept, grid_values


@dataclass(frozen=True)
class Plan:
    """A sweep that was checked, with all its experiments."""

    sweep: Sweep
    upstream: tuple[tuple[dict[str, Any], Experiment], ...]
    """Every combination of the grids outside `clean`: (overrides, experiment)."""
    grid: tuple[tuple[dict[str, Any], Experiment], ...] | None
    """Every trial, including drawn ones, of which two may be equal; None if Optuna draws trials while the sweep runs."""

    @property
    def fingerprint(self) -> str:
        return self.stage.fingerprint

    @property
    def stage(self) -> Swept:
        """The stage of the sweep itself: its identity and, when all trials have ended, its record."""
        return Swept(sweep=self.sweep)

    def known(self) -> dict[str, Stage]:
        """Fingerprint → every stage that is known before the run: all but those of trials that Optuna draws."""
        experiments = [experiment for _, experiment in (self.upstream if self.grid is None else self.grid)]
        made = [stage for experiment in experiments for stage in stages(experiment).values()]
        return {stage.fingerprint: stage for stage in made if self.grid is not None or not stage.trial}


def make_plan(sweep: Sweep) -> Plan:
    """Check every path and value of the sweep and make its plan. InputError names the path."""
    grids: dict[str, list[Any]] = {}
    for path, space in sweep.space.items():
        values = grid_values(space)
        if values is None:
            if not path.startswith("clean."):
                raise InputError(
                    f"space {path!r}: only paths under `clean` may be drawn at random, because each value elsewhere is a "
                    "pre-training of its own. Accepted here: tune.grid_search([...])."
                )
            if not (hasattr(space, "lower") or hasattr(space, "categories")):
                raise InputError(f"space {path!r}: {type(space).__name__} has no bounds; accepted: uniform, randint, choice and their kin.")
            categories = getattr(space, "categories", None)
            if categories is not None and not categories:
                raise InputError(f"space {path!r}: the choice is empty; give at least one value.")
            for value in categories or [space.sample()]:
                override(sweep.base, path, value)
        else:
            if not values:
                raise InputError(f"space {path!r}: the grid is empty; give at least one value.")
            grids[path] = values
    if sweep.space and any(path.startswith("clean") for path in sweep.space) and sweep.base.clean is None:
        raise InputError("the sweep varies `clean`, but its base experiment has no `clean`.")
    above = {path: values for path, values in grids.items() if not path.startswith("clean")}
    upstream = tuple(_combinations(sweep, above))
    drawn = len(grids) < len(sweep.space)
    if not drawn and (sweep.num_samples > 1 or sweep.search == "optuna"):
        raise InputError(
            "every space of the sweep is a grid, so num_samples must be 1 and search 'grid'; for repetitions vary clean.seed or "
            "pretrain.seed."
        )
    if sweep.search == "optuna" and any(path.startswith("clean") for path in grids):
        raise InputError("search 'optuna' draws all of clean.*: write tune.choice([...]) instead of tune.grid_search([...]) there.")
    known = sweep.base.clean is not None and sweep.search == "grid"
    grid = tuple(_draws(sweep, grids) if drawn else _combinations(sweep, grids)) if known else None
    for _, experiment in upstream if grid is None else grid:
        check(experiment)
    check_ids(_classes(sweep))
    _check_series(sweep)
    claims_of(sweep)
    _check_reference(sweep, [experiment for _, experiment in (upstream if grid is None else grid)])
    return Plan(sweep, upstream, grid)


def check_measurements(plan: Plan) -> None:
    """InputError where the sweep varies only how a training is measured: a study holds one result for each training. (Another test set may
    bring other prompts to the attack, and so another training.) Reads the files that identify the data.
    """
    sweep, known = plan.sweep, dict[str, Any]()
    if not any(path.partition(".")[0] == "evaluate" for path in sweep.paths):
        return
    for _, experiment in plan.upstream:
        stage = trained_by(experiment)
        if known.setdefault(stage.fingerprint, stage.digests) != stage.digests:
            paths = ", ".join(path for path in sweep.paths if path.startswith("evaluate"))
            raise InputError(
                f"space {paths}: a measurement is no part of a training, so a sweep cannot vary it alone. Run the sweep once more with "
                "another, by --evaluate.… on the command line: nothing is trained again."
            )


def _classes(sweep: Sweep) -> set[type[Component]]:
    """The component classes that the sweep's experiments use."""
    values = [value for space in sweep.space.values() for value in grid_values(space) or getattr(space, "categories", None) or []]
    values += [value for point in sweep.points for value in point.values()]
    return {type(component) for component in components((sweep.base, *values))}


def _check_reference(sweep: Sweep, experiments: Sequence[Experiment]) -> None:
    """InputError for a name that the reference file does not have, or for an invalid path, before anything is computed."""
    load_published(sweep.reference)
    by = sweep.reference.by
    if by and not any(has(experiment, by) for experiment in experiments):
        raise InputError(f"Sweep.reference.by is {by!r}, a field that no experiment of the sweep has; it varies {', '.join(sweep.paths)}.")


def claims_of(sweep: Sweep) -> tuple[Claim, ...]:
    """The sweep's claims; InputError for a component that is not a claim."""
    for claim in sweep.claims:
        if not isinstance(claim, Claim):
            raise InputError(f"Sweep.claims has {its_type(claim)}; accepted are claims: components derived from Claim.")
        described(claim)  # raises InputError for a label that is not one line of text
    return tuple(claim for claim in sweep.claims if isinstance(claim, Claim))


def _check_series(sweep: Sweep) -> None:
    """InputError unless the series is varied: a path of the sweep's space, or a field of a component there."""
    fields = {
        f"{path}.{name}"
        for path, space in sweep.space.items()
        for value in grid_values(space) or getattr(space, "categories", None) or []
        if isinstance(value, Component)
        for name, _ in flatten(encode(value))
    }
    if sweep.series and sweep.series not in {*sweep.paths, *fields}:
        varied = ", ".join(sweep.paths) or "nothing"
        raise InputError(f"Sweep.series is {sweep.series!r}, which the sweep does not vary; it varies {varied}, or name a field below.")


def trial_experiment(sweep: Sweep, overrides: dict[str, Any]) -> Experiment:
    """The base experiment with a trial's values."""
    return override_all(sweep.base, overrides)


def _points(sweep: Sweep, grids: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grids, on each of the sweep's points."""
    for point in sweep.points or ({},):
        for values in itertools.product(*grids.values()):
            yield point | dict(zip(grids, values))


def _combinations(sweep: Sweep, grids: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], Experiment]]:
    for overrides in _points(sweep, grids):
        yield overrides, override_all(sweep.base, overrides)


def _draws(sweep: Sweep, grids: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """`num_samples` draws of the spaces that are no grid, for each point of the grids.

    A draw depends on the sweep's seed, its number, the path and the point alone, so that more samples keep the earlier ones.
    """
    for number in range(sweep.num_samples):
        for point in _points(sweep, grids):
            drawn = {
                path: space.sample(random_state=rng(sweep.seed, "draw", number, path, canonical(point)))
                for path, space in sweep.space.items()
                if path not in grids
            }
            overrides = {path: point[path] if path in point else _plain(drawn[path]) for path in sweep.paths}
            yield overrides, override_all(sweep.base, overrides)


def _plain(value: Any) -> Any:
    """A drawn value; numbers of numpy become Python's."""
    return value.item() if hasattr(value, "item") else value
