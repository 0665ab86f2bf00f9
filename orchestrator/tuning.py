"""Ray Tune: the cleaning sweep. A trial is one process that makes one `clean` stage of the store.

What a trial made is in the store, so a sweep started again finds its finished trials there and continues the others from
their last checkpoint. Tune decides what runs next to what; nothing of it is kept.
"""

import math
import shutil
from dataclasses import dataclass
from typing import Any

from datasets.component import Component
from orchestrator.cluster import interruptible, scratch, user_error
from orchestrator.identity import IDENTITIES
from orchestrator.labels import make_labels, prepare_labels
from orchestrator.override import override
from orchestrator.plan import Plan, grid_values, stages, trial_experiment
from orchestrator.results import remember_trial, remembered_trials, spent
from orchestrator.spec import Compute, Experiment, Sweep
from orchestrator.stages import Inputs, make_cleanset, seal
from orchestrator.store import FAILED, METRICS, Store, metrics_of, read_json, read_lines
from orchestrator.workers import Job, clean


@dataclass(frozen=True)
class Upstream:
    """What the trials of one pre-training share."""

    inputs: Inputs
    checkpoint: str


@dataclass(frozen=True)
class Context:
    """All a trial needs beside its values; travels to each trial once."""

    sweep: Sweep
    store: str
    compute: Compute
    upstream: dict[str, Upstream]
    """By the fingerprint of the pre-training."""
    identities: dict[Component | str, Any]
    fingerprint: str
    """Of the sweep."""


@dataclass(frozen=True)
class Trial:
    """A trial that Tune ran: its values and how it ended."""

    overrides: dict[str, Any]
    fingerprint: str
    status: str
    """finished | stopped | failed"""
    error: str | None


def clean_sweep(plan: Plan, upstream: dict[str, Upstream], store: Store, compute: Compute) -> list[Trial]:
    """Run every trial of the sweep that the store does not hold yet, over the pre-trainings in `upstream`."""
    context = Context(plan.sweep, str(store.root), compute, upstream, dict(IDENTITIES), plan.fingerprint)
    if plan.grid is not None:
        wanted = [(o, e) for o, e in plan.grid if stages(e)["pretrain"].fingerprint in upstream]
        if all(_done(store, experiment) for _, experiment in wanted):
            return [_outcome(overrides, experiment, store, None, False) for overrides, experiment in wanted]
    for experiment in _kinds(plan):
        pretrained = stages(experiment)["pretrain"].fingerprint
        if pretrained in upstream and not _done(store, experiment):
            prepare_labels(experiment, upstream[pretrained].inputs, store, compute)
    # Optuna searches for each pre-training by itself, so that none learns from another's trials.
    apart = plan.sweep.search == "optuna" or len(upstream) < len(plan.upstream)
    parts = [
        {**plan.sweep.space, **overrides}
        for overrides, experiment in plan.upstream
        if stages(experiment)["pretrain"].fingerprint in upstream
    ]
    trials: dict[str, Trial] = {}
    for space in parts if apart else [dict(plan.sweep.space)]:
        trials |= {trial.fingerprint: trial for trial in _tune(space, plan, context, store, compute)}
    return list(trials.values())


def _kinds(plan: Plan) -> list[Experiment]:
    """Experiments that between them have every cleaning method of the sweep over every pre-training."""
    if plan.grid is not None:
        return [experiment for _, experiment in plan.grid]
    space = plan.sweep.space.get("clean.method")
    methods = [] if space is None else grid_values(space) or getattr(space, "categories", [])
    starts = [experiment for _, experiment in plan.upstream]
    return [override(start, "clean.method", method) for start in starts for method in methods] or starts


def _tune(space: dict[str, Any], plan: Plan, context: Context, store: Store, compute: Compute) -> list[Trial]:
    from ray import tune

    sweep = plan.sweep
    known: list[Trial] = []
    draws, searcher = sweep.num_samples, _basic(sweep, compute)
    if sweep.search == "optuna":
        known, searcher = _optuna(space, plan, store)
        draws -= len(known)
        space = {path: value for path, value in space.items() if not hasattr(value, "sample")}
        if draws <= 0:
            return known
    resources: dict[str, float] = {"cpu": compute.trial_cpus}
    if compute.trial_gpus:
        resources["gpu"] = compute.trial_gpus
    name = scratch(store.root, f"sweep-{plan.fingerprint[:12]}")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, context=context), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(sweep),
            num_samples=draws,
            max_concurrent_trials=(compute.max_concurrent_trials or None) if sweep.search == "optuna" else None,
            metric=sweep.metric if sweep.scheduler == "asha" else None,
            mode="max" if sweep.scheduler == "asha" else None,
            # Importing torch and open_clip costs a process more than a small trial. A trial that ASHA stops in its middle
            # leaves a process that is better not used again.
            reuse_actors=sweep.scheduler == "fifo",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=tune.FailureConfig(max_failures=compute.retries),
            verbose=0,
        ),
    )
    interruptible()
    grid = tuner.fit()
    outcomes = list(known)
    for result in (grid[i] for i in range(len(grid))):
        assert result.config is not None
        overrides = {path: result.config[path] for path in sweep.space}
        stopped = sweep.scheduler == "asha" and bool(result.metrics)
        outcomes.append(_outcome(overrides, trial_experiment(sweep, overrides), store, result.error, stopped))
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    return outcomes


def _trial(config: dict[str, Any], context: Context) -> None:
    """One trial, in a process that may have run others."""
    from ray import tune

    IDENTITIES.update(context.identities)
    overrides = {path: config[path] for path in context.sweep.space}
    experiment = trial_experiment(context.sweep, overrides)
    assert experiment.clean is not None
    stage = stages(experiment)["clean"]
    store = Store(context.store)
    remember_trial(store, context.fingerprint, stage.fingerprint, overrides)
    lines: list[dict[str, Any]] = []

    def report(line: dict[str, Any]) -> None:
        """Tell Tune of a new epoch; of the last one only when the artefact is sealed, for then Tune may stop the trial."""
        if line["epoch"] not in [known["epoch"] for known in lines]:
            lines.append(line)
            if line["epoch"] < experiment.clean.epochs:  # type: ignore[union-attr]
                tune.report(told(lines))

    upstream = context.upstream[stages(experiment)["pretrain"].fingerprint]
    found = store.find(stage.kind, stage.fingerprint)
    if found is None:
        cleanset = make_cleanset(experiment, upstream.inputs, store)
        labels = make_labels(experiment, upstream.inputs, store, context.compute.trial_gpus)
        with store.working(stage.kind, stage.fingerprint, wait_s=math.inf) as folder:
            found = store.find(stage.kind, stage.fingerprint)  # a trial with the same values may have made it meanwhile
            if found is None:
                (folder / FAILED).unlink(missing_ok=True)
                for line in read_lines(folder / METRICS):
                    report(line)
                job = Job(
                    experiment=experiment,
                    inputs=upstream.inputs,
                    folder=str(folder),
                    compute=context.compute,
                    stage=str(stage),
                    checkpoint=upstream.checkpoint,
                    cleanset=cleanset,
                    labels=labels,
                    cpus=context.compute.trial_cpus,
                    gpus=context.compute.trial_gpus,
                )
                clean(job, report)
                found = seal(store, stage, spent(folder))
            else:
                store.discard(stage.kind, stage.fingerprint)
    tune.report(told(metrics_of(found)))


def told(lines: list[dict[str, Any]]) -> dict[str, float]:
    """What searchers and schedulers are told after the last of these lines."""
    best = max((accuracy for accuracy in map(_within_five, lines)), default=0.0)
    return {"epoch": lines[-1]["epoch"], **lines[-1]["metrics"], "best/acc_at_asr_le_5": best}


def _within_five(line: dict[str, Any]) -> float:
    """Accuracy where ASR is at most 5 % after at least one epoch of cleaning, else 0."""
    metrics = line["metrics"]
    return metrics["zeroshot/top1"] if line["epoch"] > 0 and metrics["asr/top1"] <= 5 else 0.0


def _done(store: Store, experiment: Experiment) -> bool:
    stage = stages(experiment)["clean"]
    return store.find(stage.kind, stage.fingerprint) is not None


def _outcome(
    overrides: dict[str, Any], experiment: Experiment, store: Store, error: Exception | None, stopped: bool
) -> Trial:
    """How a trial ended; `stopped` says that a scheduler may have ended it."""
    stage = stages(experiment)["clean"]
    if store.find(stage.kind, stage.fingerprint):
        return Trial(overrides, stage.fingerprint, "finished", None)
    failed = read_json(store.work(stage.kind, stage.fingerprint) / FAILED)
    if failed:
        return Trial(overrides, stage.fingerprint, "failed", failed["error"])
    if error is None and stopped:
        return Trial(overrides, stage.fingerprint, "stopped", None)
    cause = user_error(error) or error or RuntimeError("it did not finish; run the same command again")
    lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return Trial(overrides, stage.fingerprint, "failed", lines[-1][:400])


def _basic(sweep: Sweep, compute: Compute) -> Any:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(random_state=sweep.seed, max_concurrent=compute.max_concurrent_trials)


def _optuna(space: dict[str, Any], plan: Plan, store: Store) -> tuple[list[Trial], Any]:
    """A searcher that knows the trials of an earlier attempt: (those that finished, the searcher).

    Values that were tried and not finished come first.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    sweep = plan.sweep
    fixed = {path: value for path, value in space.items() if not hasattr(value, "sample")}
    drawn = {path: value for path, value in space.items() if hasattr(value, "sample")}
    known: list[Trial] = []
    waiting: list[dict[str, Any]] = []
    values: list[tuple[dict[str, Any], float]] = []
    for overrides in remembered_trials(plan, store):
        if any(overrides[path] != value for path, value in fixed.items()):
            continue
        point = {path: overrides[path] for path in drawn}
        outcome = _outcome(overrides, trial_experiment(sweep, overrides), store, None, False)
        found = store.find("clean", outcome.fingerprint)
        if found is None:
            waiting.append(point)
        else:
            known.append(outcome)
            values.append((point, told(metrics_of(found))[sweep.metric]))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = OptunaSearch(
        space=OptunaSearch.convert_search_space(drawn),
        metric=sweep.metric,
        mode="max",
        points_to_evaluate=waiting or None,
        sampler=optuna.samplers.TPESampler(seed=sweep.seed + len(known)),
    )
    for point, value in values:
        searcher.add_evaluated_point(point, value)
    return known, searcher


def _scheduler(sweep: Sweep) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    assert sweep.base.clean is not None
    epochs = [sweep.base.clean.epochs]
    if "clean.epochs" in sweep.space:
        space = sweep.space["clean.epochs"]
        epochs = grid_values(space) or getattr(space, "categories", None) or [space.upper]
    return ASHAScheduler(time_attr="epoch", grace_period=sweep.grace_epochs, max_t=max(*epochs, sweep.grace_epochs + 1))
