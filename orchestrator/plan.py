"""From a sweep to its stages: what must exist, in which order, under which fingerprints. Nothing here starts Ray."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from datasets.captions import synonym_digest
from datasets.classes import target_index
from datasets.component import Component
from datasets.errors import InputError
from datasets.evalset import EvalSet
from datasets.retrieval import RetrievalSet
from datasets.seeding import rng
from datasets.source import Source
from datasets.synthetic import World
from orchestrator.fingerprint import canonical, encode, fingerprint, labelled
from orchestrator.identity import (
    clean_pairs,
    cleanset_fields,
    cleanset_identity,
    encode_cleaning,
    encode_evaluator,
    encode_stage,
    set_identity,
    weights_identity,
)
from orchestrator.override import has, override, override_all
from orchestrator.report.names import flatten
from orchestrator.report.published import load_published
from orchestrator.source_code import code_of
from orchestrator.spec import Experiment, Pretrain, Sweep
from trainers.cleaning.pseudo_labels import PseudoLabels
from trainers.evaluate.analysis import Analysis
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.retrieval import Retrieval
from trainers.evaluate.zeroshot import ZeroShotASR
from trainers.model import Model, TinyCLIP
from trainers.objectives.base import Objective

VERSION = {"world": 1, "index": 1, "testset": 1, "poison": 1, "pretrain": 1, "cleanset": 1, "labels": 1, "clean": 1, "sweep": 1}
"""Raised when a change of the code changes what a stage makes, so that older artefacts are not taken for it."""
ONE_EACH = (ZeroShotASR, Analysis, LinearProbe, Retrieval)
"""Evaluators whose metrics have the same names whatever their fields."""

@dataclass(frozen=True)
class Stage:
    """One thing to make: kind, a name for people, and its identity."""

    kind: str
    name: str
    config: Any
    """Encoded configuration: what determines the result, apart from the inputs."""
    inputs: tuple[tuple[str, str], ...] = ()
    """(role, fingerprint) of the stages it is made from."""
    shown: Any = None
    """The configuration with the labels of its components, for the manifest; None: as `config`."""
    code: tuple[tuple[str, str], ...] = ()
    """(class, hash of its source) of the components that are not the project's, for the manifest."""

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(
            {"stage": self.kind, "version": VERSION[self.kind], "config": self.config, "inputs": dict(self.inputs)}
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.name}-{self.fingerprint[:12]}"


@lru_cache(maxsize=4096)
def stages(experiment: Experiment) -> dict[str, Stage]:
    """The stages of one experiment by role, in the order in which they are made."""
    check(experiment)
    made: dict[str, Stage] = {}

    def add(role: str, stage: Stage) -> Stage:
        made[role] = stage
        return stage

    for role, source in (("world", experiment.data.source), ("test_world", experiment.evaluate.data)):
        if isinstance(source, World):
            add(role, Stage("world", "world", set_identity(source)))

    def origin(role: str, source: Source | EvalSet | World) -> tuple[Any, tuple[tuple[str, str], ...]]:
        if isinstance(source, World):
            return {}, ((role, made[role].fingerprint),)
        try:
            return set_identity(source), ()
        except InputError as error:
            raise InputError(f"{'data.source' if role == 'world' else 'evaluate.data'}: {error}") from error

    config, inputs = origin("world", experiment.data.source)
    index = add("index", Stage("index", "pairs", config, inputs))
    config, inputs = origin("test_world", experiment.evaluate.data)
    test = add("testset", Stage("testset", "test", config, inputs))
    poison = add(
        "poison",
        Stage(
            "poison",
            experiment.poison.target,
            {
                "poison": encode(experiment.poison, "poison"),
                "views": encode(experiment.views, "views"),
                "subset": [experiment.data.subset, experiment.data.seed],
            },
            (("index", index.fingerprint), ("testset", test.fingerprint)),
            code=code_of(experiment.poison),
        ),
    )
    further = tuple(
        (f"set_{i}", add(f"set_{i}", Stage("testset", label(one), set_identity(one))).fingerprint)
        for i, one in enumerate(further_sets(experiment))
    )
    prior: tuple[tuple[str, str], ...] = ()
    if experiment.prior is not None:
        prior = (("prior", add("prior", _unpoisoned_stage(experiment, "prior", index, test)).fingerprint),)
    config = {
        "weights": weights_identity(experiment.pretrain.model),
        "eda": [experiment.eda, synonym_digest()],
        "pretrain": encode_stage(experiment.pretrain, "pretrain"),
        "evaluate": {
            "seed": experiment.evaluate.seed,
            "evaluators": [encode_evaluator(evaluator) for evaluator in experiment.evaluate.evaluators],
        },
    }
    objective = experiment.pretrain.objective
    inputs = (("poison", poison.fingerprint), *prior, *further)
    code = code_of((experiment.pretrain, experiment.evaluate.evaluators))
    pretrain = add("pretrain", Stage("pretrain", objective.slug, config, inputs, _with_objective(config, objective), code))
    if experiment.clean is not None:
        clean = experiment.clean
        name, chosen = cleanset_identity(clean)
        cleanset = add("cleanset", Stage("cleanset", name, chosen, (("poison", poison.fingerprint),)))
        inputs = (("cleanset", cleanset.fingerprint), ("pretrain", pretrain.fingerprint))
        method = labelling(experiment)
        if method is not None:
            labeller = None
            if not isinstance(method.labeller, Model):
                labeller = add("labeller", _unpoisoned_stage(experiment, "labeller", index, test))
            labels = add("labels", _labels_stage(method, cleanset, test, labeller))
            inputs = (*inputs, ("labels", labels.fingerprint))
        config = {key: value for key, value in encode_cleaning(clean).items() if key not in cleanset_fields(clean)}
        shown = {**config, "method": labelled(clean.method, config["method"])}
        add("clean", Stage("clean", clean.method.slug, config, inputs, shown, code_of(clean)))
    return made


def further_sets(experiment: Experiment) -> tuple[EvalSet | RetrievalSet, ...]:
    """The sets that its evaluators need beside the test pictures, each once."""
    return tuple(dict.fromkeys(one for evaluator in experiment.evaluate.evaluators for one in evaluator.sets()))


def label(tests: EvalSet | RetrievalSet) -> str:
    """What the stage of a set is called."""
    return (tests.name if isinstance(tests, EvalSet) else "retrieval") or "test"


def unpoisoned(experiment: Experiment, role: str) -> Experiment:
    """The experiment whose `pretrain` is the training of this role on the same pairs without the poison.

    It is measured by accuracy and attack success alone, which then is the floor.
    """
    method = labelling(experiment)
    spec = experiment.prior if role == "prior" else method and method.labeller
    assert isinstance(spec, Pretrain)
    return replace(
        experiment,
        pretrain=spec,
        views=replace(experiment.views, size=spec.model.image_size),
        evaluate=replace(experiment.evaluate, evaluators=()),
        prior=None,
        clean=None,
    )


def _unpoisoned_stage(experiment: Experiment, role: str, index: Stage, test: Stage) -> Stage:
    """Its stage. Of the poison only trigger and target enter, by which it is measured, so that plans of all sizes share it."""
    own = unpoisoned(experiment, role)
    config = {
        "unpoisoned": True,
        "weights": weights_identity(own.pretrain.model),
        "eda": [own.eda, synonym_digest()],
        "pretrain": encode_stage(own.pretrain, role),
        "views": encode(own.views, "views"),
        "subset": [own.data.subset, own.data.seed],
        "evaluate": {
            "seed": own.evaluate.seed,
            "trigger": encode(own.poison.trigger, "poison.trigger"),
            "target": own.poison.target,
        },
    }
    inputs = (("index", index.fingerprint), ("testset", test.fingerprint))
    objective = own.pretrain.objective
    shown = _with_objective(config, objective)
    return Stage("pretrain", f"{objective.slug} unpoisoned", config, inputs, shown, code_of((own.pretrain, own.poison.trigger)))


def _with_objective(config: dict[str, Any], objective: Objective) -> dict[str, Any]:
    """The configuration of a training with its objective's label."""
    trained = config["pretrain"]
    return {**config, "pretrain": {**trained, "objective": labelled(objective, trained["objective"])}}


def labelling(experiment: Experiment) -> PseudoLabels | None:
    """The part of the cleaning method that needs a stage of labels."""
    parts = experiment.clean.method.parts() if experiment.clean is not None else ()
    return next((part for part in parts if isinstance(part, PseudoLabels)), None)


def _labels_stage(method: PseudoLabels, cleanset: Stage, test: Stage, labeller: Stage | None) -> Stage:
    config: dict[str, Any] = {
        "classes": encode(method.classes),
        "templates": encode(method.templates),
        "prompts": fingerprint(method.prompts((), ())),
    }  # the digest: what a name stands for can change
    inputs = [("cleanset", cleanset.fingerprint)]
    if "auto" in (method.classes, method.templates):
        inputs.append(("testset", test.fingerprint))
    if labeller is not None:
        return Stage("labels", labeller.name, config, (*inputs, ("labeller", labeller.fingerprint)))
    assert isinstance(method.labeller, Model)
    weights = weights_identity(method.labeller)
    model = replace(method.labeller, pretrained=None) if weights else method.labeller
    return Stage("labels", model.name, {**config, "model": encode(model), "weights": weights}, tuple(inputs))


def check(experiment: Experiment) -> None:
    """What can be said before anything is read: InputError for fields that do not fit each other."""
    size = experiment.pretrain.model.image_size
    if experiment.views.size != size:
        raise InputError(
            f"views.size is {experiment.views.size}, but the model takes pictures of {size}×{size}: set views.size to {size}."
        )
    if experiment.eda not in ("once", "per_epoch"):
        raise InputError(f"eda is {experiment.eda!r}; accepted: once, per_epoch.")
    experiment.poison.trigger.check(size)
    clean = experiment.clean
    if clean is not None:
        if clean.choice not in ("random", "last"):
            raise InputError(f"clean.choice is {clean.choice!r}; accepted: random, last.")
        pairs = clean_pairs(clean)
        if pairs < clean.batch_size:
            what = f"clean.keys {clean.keys} holds {pairs} keys" if clean.keys else f"clean.pairs is {pairs}"
            raise InputError(f"{what}, fewer than one batch of {clean.batch_size}.")
        most = min(pairs, pairs if experiment.poison.count is None else experiment.poison.count)
        if not 0 <= clean.poisons <= most:
            raise InputError(f"clean.poisons is {clean.poisons}; accepted are 0 to {most}, of {pairs} pairs to clean with.")
        clean.check(clean.epochs * (pairs // clean.batch_size), 1)
        for part in clean.method.parts():
            part.check(pairs)
    _check_model(experiment.pretrain.model, "pretrain.model")
    method = labelling(experiment)
    if method is not None:
        if not isinstance(method.labeller, (Model, Pretrain)):
            raise InputError(f"labeller is a {type(method.labeller).__name__}; accepted: a Model with pretrained, or a Pretrain.")
        labeller = method.labeller if isinstance(method.labeller, Model) else method.labeller.model
        _check_model(labeller, "labeller" if labeller is method.labeller else "labeller.model")
        experiment.poison.trigger.check(labeller.image_size)
    if experiment.prior is not None:
        _check_model(experiment.prior.model, "prior.model")
        if getattr(experiment.pretrain.model, "pretrained", None):
            raise InputError("pretrain.model.pretrained is set, but pretrain starts from the prior: set prior.model.pretrained instead.")
        if blank(experiment.prior.model) != experiment.pretrain.model:
            raise InputError("prior.model is another model than pretrain.model, which starts from its weights: give both the same fields.")
    measured = [ZeroShotASR, *map(type, experiment.evaluate.evaluators)]
    for kind in ONE_EACH:
        if measured.count(kind) > 1:
            raise InputError(
                f"evaluate.evaluators: {kind.__name__} would be measured twice, under the same names; accepted: Analysis, LinearProbe "
                "and Retrieval once each (ZeroShotASR always is)."
            )
    if isinstance(experiment.evaluate.data, World):
        target_index(experiment.evaluate.data.class_names, experiment.poison.target)


def blank(model: Model | TinyCLIP) -> Model | TinyCLIP:
    """The model as it is before any weights are loaded."""
    return replace(model, pretrained=None) if isinstance(model, Model) else model


def _check_model(model: Model | TinyCLIP, where: str) -> None:
    if isinstance(model, Model):
        model.check(where)
        if model.file is not None and not model.file.is_absolute():
            raise InputError(f"{where}.pretrained is {model.pretrained!r}: give the absolute path, workers have other working folders.")


# ---- sweeps -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A sweep, checked and laid out."""

    sweep: Sweep
    upstream: tuple[tuple[dict[str, Any], Experiment], ...]
    """Every combination of the grids outside `clean`: (overrides, experiment)."""
    grid: tuple[tuple[dict[str, Any], Experiment], ...] | None
    """Every trial, drawn ones too, of which two may be alike; None where Optuna draws them from what came of others."""

    @property
    def fingerprint(self) -> str:
        return self.stage.fingerprint

    @property
    def stage(self) -> Stage:
        """The sweep's own identity: base, spaces, search."""
        sweep = self.sweep
        config = {
            "base": {role: stage.fingerprint for role, stage in stages(sweep.base).items()},
            "space": {path: encode_space(space, path) for path, space in sweep.space.items()},
            "search": [sweep.search, sweep.num_samples, sweep.seed],
            "scheduler": [sweep.scheduler, sweep.metric, sweep.grace_epochs],
        }
        return Stage("sweep", sweep.name, config)


def make_plan(sweep: Sweep) -> Plan:
    """Check every path and value of the sweep and lay it out. InputError names the path."""
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
            for value in getattr(space, "categories", None) or [space.sample()]:
                override(sweep.base, path, value)
        else:
            if not values:
                raise InputError(f"space {path!r}: the grid is empty; give at least one value.")
            grids[path] = values
    if sweep.space and any(path.startswith("clean") for path in sweep.space) and sweep.base.clean is None:
        raise InputError("the sweep varies `clean`, but its base experiment has no `clean`.")
    above = {path: values for path, values in grids.items() if not path.startswith("clean")}
    upstream = tuple(_combinations(sweep.base, above))
    drawn = len(grids) < len(sweep.space)
    if not drawn and (sweep.num_samples > 1 or sweep.search == "optuna"):
        raise InputError(
            "every space of the sweep is a grid, so num_samples must be 1 and search 'grid'; for repetitions vary clean.seed or "
            "pretrain.seed."
        )
    if sweep.search == "optuna" and any(path.startswith("clean") for path in grids):
        raise InputError("search 'optuna' draws all of clean.*: write tune.choice([...]) instead of tune.grid_search([...]) there.")
    known = sweep.base.clean is not None and sweep.search == "grid"
    grid = tuple(_draws(sweep, grids) if drawn else _combinations(sweep.base, grids)) if known else None
    for _, experiment in upstream if grid is None else grid:
        check(experiment)
    _check_series(sweep)
    _check_reference(sweep, [experiment for _, experiment in (upstream if grid is None else grid)])
    return Plan(sweep, upstream, grid)


def _check_reference(sweep: Sweep, experiments: Sequence[Experiment]) -> None:
    """A name that its file does not have, or a path that is none, is said before anything is computed."""
    load_published(sweep.reference)
    by = sweep.reference.by
    if by and not any(has(experiment, by) for experiment in experiments):
        raise InputError(f"Sweep.reference.by is {by!r}, a field that no experiment of the sweep has; it varies {', '.join(sweep.space)}.")


def _check_series(sweep: Sweep) -> None:
    """The series must be something that the sweep varies: a path of its space, or a field of a component there."""
    fields = {
        f"{path}.{name}"
        for path, space in sweep.space.items()
        for value in grid_values(space) or getattr(space, "categories", None) or []
        if isinstance(value, Component)
        for name, _ in flatten(encode(value))
    }
    if sweep.series and sweep.series not in {*sweep.space, *fields}:
        varied = ", ".join(sweep.space) or "nothing"
        raise InputError(f"Sweep.series is {sweep.series!r}, which the sweep does not vary; it varies {varied}, or name a field below.")


def trial_experiment(sweep: Sweep, overrides: dict[str, Any]) -> Experiment:
    """The base experiment with a trial's values in place."""
    return override_all(sweep.base, overrides)


def _combinations(base: Experiment, grids: dict[str, list[Any]]) -> Any:
    for values in itertools.product(*grids.values()):
        overrides = dict(zip(grids, values))
        yield overrides, override_all(base, overrides)


def _draws(sweep: Sweep, grids: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """`num_samples` draws of the spaces that are no grid, for each point of the grids.

    A draw depends on the sweep's seed, its number, the path and the point alone, so that more samples keep those before.
    """
    for number in range(sweep.num_samples):
        for values in itertools.product(*grids.values()):
            point = dict(zip(grids, values))
            drawn = {
                path: space.sample(random_state=rng(sweep.seed, "draw", number, path, canonical(point)))
                for path, space in sweep.space.items()
                if path not in grids
            }
            overrides = {path: point[path] if path in point else _plain(drawn[path]) for path in sweep.space}
            yield overrides, override_all(sweep.base, overrides)


def _plain(value: Any) -> Any:
    """A drawn value as Python's own number, where it is one of numpy's."""
    return value.item() if hasattr(value, "item") else value


def grid_values(space: Any) -> list[Any] | None:
    """The values of `tune.grid_search`, of a single constant, or None for a space that is drawn."""
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
