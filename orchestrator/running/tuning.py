"""Ray Tune: the cleaning sweep. A trial makes one `clean` stage of the store, in its process or with several workers of Ray Train.

What a trial made is in the store, so a sweep started again finds its finished trials there and continues the others from
their last checkpoint. Tune decides what runs next to what; nothing of it is kept.
"""

import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from datasets.component import Component
from orchestrator import failures
from orchestrator.cluster import lost, retries
from orchestrator.cluster.session import interruptible, scratch, user_error
from orchestrator.console.log import folder, join
from orchestrator.experiment.identity import IDENTITIES
from orchestrator.experiment.override import override
from orchestrator.experiment.spec import Compute, Experiment, Metric, Sweep
from orchestrator.running.stages_on_ray import ensure_all, ensure_followed, trials_at_a_time
from orchestrator.stages.base import SERVING, At, Stage, ensure, register
from orchestrator.stages.cleaned import Cleaned
from orchestrator.stages.graph import cleaned_by, trained_by
from orchestrator.stages.measured import lacking, lines_of
from orchestrator.stages.swept import grid_values
from orchestrator.store import FAILED, Store, read_failure, write_json
from orchestrator.sweep.plan import Plan, trial_experiment
from orchestrator.sweep.records import recorded_trials, remember_trial
from orchestrator.sweep.stored import Trial
from trainers.evaluate.choice import LIMITS, measured, most_accurate, results

NUMBER = "trial"
"""The parameter that Tune varies if the trials are known beforehand: the fingerprints of their cleanings."""


@dataclass(frozen=True)
class Context:
    """Everything that a trial needs beside its values; sent to each trial once."""

    sweep: Sweep
    store: str
    compute: Compute
    known: dict[str, Any]
    """What the driver has read about the pre-trainings, as `At.known`."""
    identities: dict[Component | str, Any]
    fingerprint: str
    """The fingerprint of the sweep."""
    kinds: tuple[type[Stage], ...] = ()
    """Classes of stages that make what components need."""
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fingerprint of a cleaning → the values of its trial, for trials that are known beforehand; empty if Optuna draws them."""
    log: str = field(default_factory=folder)
    """Folder of the log of the run."""


def clean_sweep(plan: Plan, models: Collection[str], at: At) -> list[Trial]:
    """Run every trial of the sweep that is not at its end, over the pre-trainings of these fingerprints; returns all of them.

    A trial is at its end when the store holds its cleaning, or when this sweep's scheduler has stopped it. Two draws of the same
    values are two trials of one cleaning.
    """
    store, compute = at.store, at.compute
    sweep = replace(plan.sweep, claims=())  # workers judge no claims
    context = Context(sweep, str(store.root), compute, at.known, dict(IDENTITIES), plan.fingerprint, tuple(SERVING.values()))
    wanted = [(overrides, stage) for overrides, e in plan.grid or () if (stage := cleaned_by(e)).model.fingerprint in models]
    stopped = {record.trial for record in recorded_trials(plan, store) if record.status == "stopped"}
    missing = {
        stage.fingerprint: overrides
        for overrides, stage in wanted
        if stage.fingerprint[:12] not in stopped and at.find(stage) is None
    }
    if missing or plan.grid is None:
        cleanings = [stage for stage in map(cleaned_by, _kinds(plan)) if stage.model.fingerprint in models]
        ensure_all([need for cleaning in cleanings if at.find(cleaning) is None for need in cleaning.needs], at)
    if plan.grid is None:
        return [
            trial
            for overrides, experiment in plan.upstream
            if trained_by(experiment).fingerprint in models
            for trial in _search({**plan.sweep.space, **overrides}, plan, context, store, compute)
        ]
    ran: dict[str, Trial] = {}
    if missing:
        from ray import tune

        space = {NUMBER: tune.grid_search(list(missing))}
        found = _tune(space, _basic(plan.sweep, compute), 1, plan, replace(context, trials=missing), store, compute)
        ran = {trial.fingerprint: trial for trial in found}
    return [
        ran.get(stage.fingerprint) or _outcome(overrides, store, stage, None, stage.fingerprint[:12] in stopped)
        for overrides, stage in wanted
    ]


def _search(space: dict[str, Any], plan: Plan, context: Context, store: Store, compute: Compute) -> list[Trial]:
    """Optuna's trials over one pre-training, so that none learns from another's: those known, and as many as are missing."""
    known, searcher = _optuna(space, plan, store)
    draws = plan.sweep.num_samples - len(known)
    if draws <= 0:
        return known
    fixed = {path: value for path, value in space.items() if not hasattr(value, "sample")}
    return known + _tune(fixed, searcher, draws, plan, context, store, compute)


def _kinds(plan: Plan) -> list[Experiment]:
    """Experiments that together have every cleaning method of the sweep over every pre-training."""
    if plan.grid is not None:
        return [experiment for _, experiment in plan.grid]
    space = plan.sweep.space.get("clean.method")
    methods = [] if space is None else grid_values(space) or getattr(space, "categories", [])
    starts = [experiment for _, experiment in plan.upstream]
    return [override(start, "clean.method", method) for start in starts for method in methods] or starts


def _tune(
    space: dict[str, Any], searcher: Any, draws: int, plan: Plan, context: Context, store: Store, compute: Compute
) -> list[Trial]:
    """Run trials: those of `context.trials`, or those that the searcher draws."""
    from ray import tune

    from orchestrator.cluster.memory import let_tune_retry

    let_tune_retry()
    sweep, notes = plan.sweep, Notes(plan, context, store)
    resources = {"CPU": compute.trial_cpus, **({"GPU": compute.trial_gpus} if compute.trial_gpus else {})}
    if compute.trial_workers > 1:  # its workers hold the cores; Tune accepts no trial without resources, so it asks for a byte of memory
        resources = {"memory": 1}
    name = scratch(store.root, f"sweep-{plan.fingerprint[:12]}")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, context=context), tune.PlacementGroupFactory([resources])),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(sweep, notes),
            num_samples=draws,
            max_concurrent_trials=(_at_a_time(compute) or None) if sweep.search == "optuna" else None,
            metric=sweep.metric if sweep.scheduler == "asha" else None,
            mode="max" if sweep.scheduler == "asha" else None,
            # Importing torch and open_clip costs a process more than a small trial. A trial that ASHA stops in its middle
            # leaves a process that is better not used again.
            reuse_actors=sweep.scheduler == "fifo",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=retries.of_trials(compute),
            verbose=0,
            callbacks=[_callback(notes)],
        ),
    )
    interruptible()
    grid = tuner.fit()
    outcomes = []
    for result in (grid[i] for i in range(len(grid))):
        assert result.config is not None
        overrides = values_of(result.config, context)
        stopped = sweep.scheduler == "asha" and bool(result.metrics)
        stage = cleaned_by(trial_experiment(sweep, overrides))
        outcomes.append(_outcome(overrides, store, stage, result.error, stopped))
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    return outcomes


def values_of(config: dict[str, Any], context: Context) -> dict[str, Any]:
    """Dotted path → value, for a trial that Tune runs."""
    return context.trials[config[NUMBER]] if NUMBER in config else {path: config[path] for path in context.sweep.paths}


class Notes:
    """What the driver writes down of trials while Tune runs, so that it is known after a kill: what Optuna drew, what ASHA stopped."""

    def __init__(self, plan: Plan, context: Context, store: Store) -> None:
        self.plan, self.context, self.store = plan, context, store
        records = recorded_trials(plan, store)
        self.draws = Counter(record.trial for record in records)
        """First digits of a cleaning's fingerprint → how many draws of its values there are."""
        stopped = {record.trial for record in records if record.status}
        self.waiting: dict[str, list[int]] = {t: list(range(n)) for t, n in self.draws.items() if t not in stopped}
        """First digits → the draws of an earlier attempt that did not end."""
        self.own: dict[str, int] = {}
        """Id of a trial of Tune → its number among draws of the same values."""

    def begun(self, trial: Any) -> None:
        """Record a draw of Optuna's. A draw that Tune or a second attempt restarts is the same draw."""
        if self.context.trials or trial.trial_id in self.own:
            return
        overrides, stage = self._of(trial)
        digits = stage.fingerprint[:12]
        if self.store.find(stage.kind, stage.fingerprint) is None and self.waiting.get(digits):
            self.own[trial.trial_id] = self.waiting[digits].pop(0)
        else:
            self.own[trial.trial_id] = self.draws[digits]
            self.draws[digits] += 1
        remember_trial(self.store, self.plan.fingerprint, stage.fingerprint, overrides, draw=self.own[trial.trial_id])

    def stopped(self, trial: Any) -> None:
        """Record that the scheduler stopped a trial before its last epoch."""
        overrides, stage = self._of(trial)
        if self.store.find(stage.kind, stage.fingerprint) is None:
            number = self.own.get(trial.trial_id, 0)
            remember_trial(self.store, self.plan.fingerprint, stage.fingerprint, overrides, draw=number, status="stopped")

    def _of(self, trial: Any) -> tuple[dict[str, Any], Cleaned]:
        overrides = values_of(trial.config, self.context)
        return overrides, cleaned_by(trial_experiment(self.plan.sweep, overrides))


def _callback(notes: Notes) -> Any:
    from ray.tune import Callback

    class Begun(Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            notes.begun(trial)

    return Begun()


def _trial(config: dict[str, Any], context: Context) -> None:
    """One trial, in a process that may have run others."""
    from ray import tune

    IDENTITIES.update(context.identities)
    join(context.log)
    for kind in context.kinds:
        register(kind)
    overrides = values_of(config, context)
    stage = cleaned_by(trial_experiment(context.sweep, overrides))
    store = Store(context.store)
    lines: list[dict[str, Any]] = []

    def report(line: dict[str, Any]) -> None:
        """Report a new epoch to Tune; the last one only when the artefact is sealed, because Tune may stop the trial then."""
        if line["epoch"] not in [known["epoch"] for known in lines]:
            lines.append(line)
            if line["epoch"] < stage.cleaning.epochs:
                tune.report(told(lines))

    at = At(store=store, compute=context.compute, known=context.known, report=report)
    try:
        (ensure_followed if context.compute.trial_workers > 1 else ensure)(stage, at)
    except failures.ComesAgain:
        return  # not raised, because Tune would retry it
    for one in lacking(store, stage):
        ensure(one, at)
    tune.report(told(lines_of(store, stage)))


def told(lines: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics for searchers and schedulers after the last of these lines; the best accuracy is 0 if no epoch qualifies.

    Only those that a sweep can name: Tune keeps 2 kB of each metric of each trial in the driver, and writes it again and again.
    """
    best = most_accurate(LIMITS[0])(results(measured(lines)), None)
    known = {name: value for name, value in lines[-1]["metrics"].items() if name in get_args(Metric)}
    return {"epoch": lines[-1]["epoch"], **known, "best/acc_at_asr_le_5": best.accuracy if best else 0.0}


def _outcome(overrides: dict[str, Any], store: Store, stage: Stage, error: Exception | None, stopped: bool) -> Trial:
    """How a trial ended; `stopped`: a scheduler may have stopped it."""
    if store.find(stage.kind, stage.fingerprint):
        return Trial(overrides, stage.fingerprint, "finished")
    folder = store.work(stage.kind, stage.fingerprint)
    failed = read_failure(folder)
    if failed:
        return Trial(overrides, stage.fingerprint, "failed", lost.advised(failed["kind"], failed["error"]), failed["kind"])
    if error is None and stopped:
        return Trial(overrides, stage.fingerprint, "stopped")
    cause = user_error(error) or error or RuntimeError("it did not finish; run the same command again")
    kind, text = lost.reason(cause)
    if error is not None and folder.is_dir():  # its process recorded no failure, so it may have been lost
        write_json(folder / FAILED, {"kind": kind, "error": text, "rank": 0})
    return Trial(overrides, stage.fingerprint, "failed", text, kind)


def _basic(sweep: Sweep, compute: Compute) -> Any:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(random_state=sweep.seed, max_concurrent=_at_a_time(compute))


def _at_a_time(compute: Compute) -> int:
    """How many trials run side by side; 0: as many as Tune finds room for, which sees no room for trials of several processes."""
    import ray

    return trials_at_a_time(compute, ray.cluster_resources()) if compute.trial_workers > 1 else compute.max_concurrent_trials


def _optuna(space: dict[str, Any], plan: Plan, store: Store) -> tuple[list[Trial], Any]:
    """A searcher that knows the trials of an earlier attempt: (those at their end, the searcher).

    Values that were tried and did not come to an end come first.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    sweep = plan.sweep
    fixed = {path: value for path, value in space.items() if not hasattr(value, "sample")}
    drawn = {path: value for path, value in space.items() if hasattr(value, "sample")}
    known: list[Trial] = []
    waiting: list[dict[str, Any]] = []
    values: list[tuple[dict[str, Any], float]] = []
    records = recorded_trials(plan, store)
    stopped = {record.trial for record in records if record.status == "stopped"}
    for record in records:
        overrides = record.overrides
        if any(overrides[path] != value for path, value in fixed.items()):
            continue
        point = {path: overrides[path] for path in drawn}
        stage = cleaned_by(trial_experiment(sweep, overrides))
        found = store.find(stage.kind, stage.fingerprint)
        if found is None and record.trial not in stopped:
            waiting.append(point)
            continue
        known.append(_outcome(overrides, store, stage, None, True))
        lines = lines_of(store, stage)
        if lines:
            values.append((point, told(lines)[sweep.metric]))
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


def _scheduler(sweep: Sweep, notes: Notes) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if sweep.scheduler == "fifo":
        return FIFOScheduler()

    class Asha(ASHAScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = super().on_trial_result(tune_controller, trial, result)
            if decision == self.STOP:
                notes.stopped(trial)
            return decision

    assert sweep.base.clean is not None
    epochs = [sweep.base.clean.epochs]
    if "clean.epochs" in sweep.space:
        space = sweep.space["clean.epochs"]
        epochs = grid_values(space) or getattr(space, "categories", None) or [space.upper]
    return Asha(time_attr="epoch", grace_period=sweep.grace_epochs, max_t=max(*epochs, sweep.grace_epochs + 1))
