"""Ray Tune: the cleaning sweep. A trial is one process that makes one `clean` stage of the store.

What a trial made is in the store, so a sweep started again finds its finished trials there and continues the others from
their last epoch. Tune decides what runs next to what; nothing is kept in Tune's own folders but the state of a searcher.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator import plan as planning
from orchestrator.cluster import require_resources, user_error
from orchestrator.plan import Plan, stages, trial_experiment
from orchestrator.results import remember_trial
from orchestrator.spec import Compute, Experiment, Sweep
from orchestrator.stages import Inputs, make_cleanset, seal
from orchestrator.store import Store, read_json, read_lines
from orchestrator.workers import FAILED, METRICS, Job, clean


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
    identities: dict[Component, Any]
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
    """Run every trial of the sweep that the store does not hold yet; one entry a trial, in Tune's order."""
    context = Context(plan.sweep, str(store.root), compute, upstream, dict(planning.IDENTITIES), plan.fingerprint)
    if plan.grid is not None and all(_done(store, experiment) for _, experiment in plan.grid):
        return [_outcome(overrides, experiment, store, None) for overrides, experiment in plan.grid]
    require_resources(compute.trial_cpus, compute.trial_gpus, "a trial")
    if plan.sweep.search == "optuna":
        # Each pre-training gets a search of its own, so that none learns from another's trials.
        parts = [({**plan.sweep.space, **overrides}, f"{i}") for i, (overrides, _) in enumerate(plan.upstream)]
    else:
        parts = [(dict(plan.sweep.space), "all")]
    return [trial for space, part in parts for trial in _tune(space, part, plan, context, store, compute)]


def _tune(
    space: dict[str, Any], part: str, plan: Plan, context: Context, store: Store, compute: Compute
) -> list[Trial]:
    from ray import tune

    sweep = plan.sweep
    resources: dict[str, float] = {"cpu": compute.trial_cpus}
    if compute.trial_gpus:
        resources["gpu"] = compute.trial_gpus
    trainable = tune.with_resources(tune.with_parameters(_trial, context=context), resources)
    stateful = sweep.search == "optuna" or sweep.scheduler == "asha"
    name = f"sweep-{plan.fingerprint[:12]}-{part}" + ("" if stateful else f"-{time.time_ns()}")
    folder = store.root / "ray" / name
    if stateful and tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(
            str(folder), trainable=trainable, param_space=space, resume_errored=True, resume_unfinished=True
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=_searcher(sweep, compute),
                scheduler=_scheduler(sweep),
                num_samples=sweep.num_samples,
                max_concurrent_trials=compute.max_concurrent_trials or None,
                metric=sweep.metric if stateful else None,
                mode="max" if stateful else None,
                reuse_actors=True,  # importing torch and open_clip costs a process more than a small trial
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(store.root / "ray"),
                failure_config=tune.FailureConfig(max_failures=compute.retries),
                verbose=0,
            ),
        )
    grid = tuner.fit()
    outcomes = []
    for result in (grid[i] for i in range(len(grid))):
        assert result.config is not None
        overrides = {path: result.config[path] for path in sweep.space}
        outcomes.append(_outcome(overrides, trial_experiment(sweep, overrides), store, result.error))
    return outcomes


def _trial(config: dict[str, Any], context: Context) -> None:
    """One trial, in a process of its own."""
    from ray import tune

    planning.IDENTITIES.update(context.identities)
    overrides = {path: config[path] for path in context.sweep.space}
    experiment = trial_experiment(context.sweep, overrides)
    stage = stages(experiment)["clean"]
    store = Store(context.store)
    best: dict[str, float] = {}

    def report(line: dict[str, Any]) -> None:
        flat = {"epoch": line["epoch"], **line["metrics"]}
        limit_five = flat["zeroshot/top1"] if flat["asr/top1"] <= 5 else 0.0
        best["value"] = max(best.get("value", 0.0), limit_five)
        tune.report({**flat, "best/acc_at_asr_le_5": best["value"]})

    def replay(folder: Path) -> None:
        for line in read_lines(folder / METRICS):
            report(line)

    remember_trial(store, context.fingerprint, stage.fingerprint, overrides)
    found = store.find(stage.kind, stage.fingerprint)
    if found is not None:
        return replay(found.folder)
    upstream = context.upstream[stages(experiment)["pretrain"].fingerprint]
    cleanset = make_cleanset(experiment, upstream.inputs, store)
    with store.working(stage.kind, stage.fingerprint) as folder:
        found = store.find(stage.kind, stage.fingerprint)
        if found is not None:
            return replay(found.folder)
        (folder / FAILED).unlink(missing_ok=True)
        replay(folder)
        start = time.monotonic()
        job = Job(
            experiment=experiment,
            inputs=upstream.inputs,
            folder=str(folder),
            compute=context.compute,
            stage=str(stage),
            checkpoint=upstream.checkpoint,
            cleanset=cleanset,
            cpus=context.compute.trial_cpus,
        )
        try:
            clean(job, report)
        except (InputError, FloatingPointError):
            return None  # written to failed.json; the same values would fail the same way again
        lines = read_lines(folder / METRICS)
        seal(store, stage, lines[-1]["seconds"] if lines else time.monotonic() - start)
    return None


def _done(store: Store, experiment: Experiment) -> bool:
    stage = stages(experiment)["clean"]
    return store.find(stage.kind, stage.fingerprint) is not None


def _outcome(overrides: dict[str, Any], experiment: Experiment, store: Store, error: Exception | None) -> Trial:
    stage = stages(experiment)["clean"]
    if store.find(stage.kind, stage.fingerprint):
        return Trial(overrides, stage.fingerprint, "finished", None)
    failed = read_json(store.work(stage.kind, stage.fingerprint) / FAILED)
    if failed:
        return Trial(overrides, stage.fingerprint, "failed", failed["error"])
    if error is not None:
        cause = user_error(error) or error
        lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
        return Trial(overrides, stage.fingerprint, "failed", lines[-1][:400])
    return Trial(overrides, stage.fingerprint, "stopped", None)


def _searcher(sweep: Sweep, compute: Compute) -> Any:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if sweep.search != "optuna":
        return BasicVariantGenerator(random_state=sweep.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=optuna.samplers.TPESampler(seed=sweep.seed))


def _scheduler(sweep: Sweep) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if sweep.scheduler == "fifo":
        return FIFOScheduler()
    assert sweep.base.clean is not None
    # max_t lies past the last epoch: reaching it would stop the trial before its artefact is sealed.
    return ASHAScheduler(time_attr="epoch", grace_period=sweep.grace_epochs, max_t=sweep.base.clean.epochs + 1)
