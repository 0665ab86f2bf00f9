"""The driver: make every stage of a sweep in order, follow what runs, keep MLflow up to date, and report the results."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator.cluster import session
from orchestrator.cluster.waiting import RayEnded, Wanted, watching
from orchestrator.console.log import log, note, recording
from orchestrator.console.progress import meter
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Compute, Experiment
from orchestrator.report.claims_table import write_claims
from orchestrator.results.claims import Verdict
from orchestrator.results.outcome import Study
from orchestrator.results.points import CLEANING_SET
from orchestrator.running.follow import Follower, Mirror
from orchestrator.running.stages_on_ray import ensure_all, measure_all, train_all
from orchestrator.running.tuning import clean_sweep
from orchestrator.stages.base import KINDS, At, Stage, ensure, walk
from orchestrator.stages.graph import cleaned_by, knowing_made, make_data, stages, trained_by
from orchestrator.stages.measured import lacking
from orchestrator.stages.swept import FILE
from orchestrator.stages.trained import Trained
from orchestrator.store import Store, part, slug
from orchestrator.sweep.plan import Plan, check_measurements, trial_experiment
from orchestrator.sweep.records import decode_overrides
from orchestrator.sweep.stored import Trial, judge, load_study
from orchestrator.sweep.titles import plan_titles
from orchestrator.tracking.tracker import Tracker, TrackingError

CHOOSES = {"clean", "clean.seed", *CLEANING_SET}
"""Paths of the fields on which a cleaning set depends."""


def tracking_uri(given: str, store: Store) -> str:
    """The MLflow tracking URI: the user's, or a sqlite file in the store."""
    return given or f"sqlite:///{store.root / 'mlflow.db'}"


def make_tracker(store: Store, uri: str, study: str) -> Tracker:
    """The one writer to MLflow."""
    return Tracker(tracking_uri(uri, store), study, artifacts=store.root / "mlflow-artifacts")


def run_sweep(plan: Plan, compute: Compute) -> tuple[Study, Path, int]:
    """Run the sweep; returns what came of it, the report and the exit code. What exists already is not made again.

    However it ends, the report is written and no MLflow run is left running. The log of the run lies in the store.
    """
    import orchestrator.report.page  # noqa: F401 (a plotting library that is broken ends the run now, not after days)

    store = Store(compute.store)
    plan.fingerprint  # noqa: B018 (of what the data are: missing ones are told before anything is written)
    check_measurements(plan)
    now = store.listed()
    for stage in dict.fromkeys(stage for _, experiment in plan.grid or plan.upstream for stage in stages(experiment).values()):
        if now.find(stage.kind, stage.fingerprint) is None:
            stage.check(compute)
    store.prepare()
    tracker = make_tracker(store, compute.tracking_uri, plan.sweep.name)
    tracker.check()
    lock = store.root / "sweep" / f".lock-run-{plan.fingerprint[:12]}"
    with store.locked(lock, f"sweep {plan.sweep.name}", wait_s=30), recording(store.root, plan.sweep.name):
        store.finish_sealing({name: kind.not_kept for name, kind in KINDS.items()})
        trials = _recorded(plan, store)
        load_study(plan, store, trials)  # reports damage before anything is computed
        _tell_of_other_code(plan, store)
        failures: list[str] = []
        if trials is None:
            try:
                with _ray(compute), Follower(plan, store, Mirror(tracker, plan_titles(plan))), watching() as wants:
                    trials, failures = _make(plan, store, compute, wants)
            except BaseException:
                _close(plan, store, tracker)
                raise
        else:
            failures = [message for _, message in _gate_failures(plan, store)]
        failures += [f"trial {t.fingerprint[:12]} ({_values(t)}): {t.error}" for t in trials if t.status == "failed"]
        study = load_study(plan, store, trials)
        report = _write_report(plan, store, study)
        if not failures:
            _record(plan, store, trials)
        Mirror(tracker, plan_titles(plan)).finish(study, report, failed=bool(failures))
        for failure in failures:
            log.error("%s", failure)
    return study, report, 1 if failures else 0


def _tell_of_other_code(plan: Plan, store: Store) -> None:
    """Log a NOTE for each class of the user's whose source has changed since finished stages of the plan were made with it."""
    made: dict[str, Stage] = {}
    for _, experiment in plan.upstream if plan.grid is None else plan.grid:
        made |= {stage.fingerprint: stage for stage in stages(experiment).values() if stage.code}
    changed: dict[str, list[str]] = {}
    now = store.listed()
    for stage in made.values():
        found = now.find(stage.kind, stage.fingerprint)
        then = found.manifest.get("code", {}) if found else {}
        for name, digest in stage.code:
            if then.get(name, digest) != digest:
                changed.setdefault(name, []).append(str(stage))
    for name, older in changed.items():
        others = f" and {len(older) - 1} more" if len(older) > 1 else ""
        note(
            f"the source of {name} has changed since {min(older)}{others} of this store was made. What is there is used as it is, "
            "for an identity is made of fields alone: to have it anew, give the class one more field (version: int = 2)."
        )


def _make(
    plan: Plan,
    store: Store,
    compute: Compute,
    wants: Callable[[Wanted | None], None] = lambda wanted: None,
) -> tuple[list[Trial], list[str]]:
    """Make what is missing; `wants` is called with the resources that the cluster must have for it."""
    if _pretraining(plan, store, compute) is not None:  # else a cluster that has lost a node can still run the trials
        session.require_resources(compute.workers * compute.cpus_per_worker, compute.workers * compute.gpus_per_worker, "pre-training")
    if plan.sweep.base.clean is not None:
        session.require_resources(compute.trial_workers * compute.trial_cpus, compute.trial_workers * compute.trial_gpus, "a trial")
    if session.has_gpu() and not (compute.gpus_per_worker or compute.trial_gpus):
        note("the cluster has GPUs and none is asked for: see --gpus-per-worker and --trial-gpus.")
    at = At(store=store, compute=compute)
    wants(Wanted("the index"))
    wanted = [trained_by(experiment) for _, experiment in plan.upstream]
    ensure_all([needed for stage in wanted for needed in stage.attack.needed], at)
    for _, experiment in plan.upstream:
        make_data(experiment, at)
    _choose_cleansets(plan, at)
    wants(Wanted("what evaluators need"))
    ensure_all([needed for stage in wanted for needed in stage.needed], at)
    ensure_all([stage for stage in wanted if stage.apart], at)
    priors = [stage.prior for stage in wanted if stage.prior is not None]
    wants(_pretraining(plan, store, compute))
    _choose_pairs(wanted, at)
    models = {artefact.fingerprint for artefact in train_all(wanted, at)}
    measure_all([one for stage in [*wanted, *priors] for one in lacking(store, stage)], at)
    failures = []
    for pretrain, message in _gate_failures(plan, store, warn=True):
        failures.append(message)
        models.discard(pretrain)  # a defence is judged only on models whose attack succeeded
    if plan.sweep.base.clean is None or not models:
        return [], failures
    wants(Wanted("a trial", compute.trial_workers, compute.trial_cpus, compute.trial_gpus))
    trials = clean_sweep(plan, models, at)
    cleaned = [cleaned_by(trial_experiment(plan.sweep, trial.overrides)) for trial in trials if trial.status == "finished"]
    now = store.listed()
    measure_all([one for stage in dict.fromkeys(cleaned) for one in lacking(now, stage)], at)
    return trials, failures


def _choose_pairs(wanted: Sequence[Trained], at: At) -> None:
    """Make what the pre-trainings keep of their pairs, and first the models that score these, side by side."""
    kept = [stage.kept for stage in wanted if stage.kept is not None and at.find(stage) is None]
    models = [one for one in walk(*kept) if isinstance(one, Trained)]
    ensure_all([one for one in models if one.apart], at)
    train_all([one for one in models if not one.apart], at)
    ensure_all(kept, at)


def _pretraining(plan: Plan, store: Store, compute: Compute) -> Wanted | None:
    """The resources that the plan's next pre-training needs; None if all are made."""
    missing = [stage for _, one in plan.upstream if store.find((stage := trained_by(one)).kind, stage.fingerprint) is None]
    if not missing:
        return None
    others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    feed = 1.0 if compute.feed == "ray" else 0.0
    return Wanted(f"{missing[0]}{others}", compute.workers, compute.cpus_per_worker, compute.gpus_per_worker, feed)


def _choose_cleansets(plan: Plan, at: At) -> None:
    """Make every cleaning set that is known before the trials, so that a mistake in one is reported before hours of pre-training."""
    if plan.grid is None and CHOOSES & plan.sweep.space.keys():
        return  # the trials are drawn: that of the base may never be used
    experiments = [experiment for _, experiment in plan.grid or plan.upstream if experiment.clean is not None]
    for cleanset in dict.fromkeys(cleaned_by(experiment).cleanset for experiment in experiments):
        ensure(cleanset, at)


def _gate_failures(plan: Plan, store: Store, warn: bool = False) -> list[tuple[str, str]]:
    """(fingerprint, message) of the pre-trainings that the gate stops; with `warn`, its warnings about others are logged."""
    failures = []
    for _, experiment in plan.upstream:
        stage = trained_by(experiment)
        verdict = judge(store, stage, plan.sweep.gate)
        if verdict is None or verdict["passed"]:
            continue
        message = f"attack gate of {stage}: {' '.join(verdict['reasons'])}"
        if plan.sweep.gate.action == "stop":
            failures.append((stage.fingerprint, f"{message} (--gate warn cleans it all the same)"))
        elif warn:
            log.warning("%s", message)
    return failures


def _close(plan: Plan, store: Store, tracker: Tracker) -> None:
    """After a failure: write the report and end the runs in MLflow. Errors in this are suppressed, so that the user sees the failure."""
    with suppress(TrackingError, InputError, OSError):
        study = load_study(plan, store)
        if study.pretrains:
            Mirror(tracker, plan_titles(plan)).finish(study, _write_report(plan, store, study), failed=True)


def _values(trial: Trial) -> str:
    """`clean.lr=0.001, clean.method=cleanclip`"""
    shown = {path: value.label if isinstance(value, Component) else value for path, value in trial.overrides.items()}
    return ", ".join(f"{path}={value}" for path, value in shown.items())


def _recorded(plan: Plan, store: Store) -> list[Trial] | None:
    """The trials of a sweep that ran to its end; None if something is left to do, also because an artefact was removed."""
    record = store.find(plan.stage.kind, plan.fingerprint)
    if record is None:
        return None
    entries = json.loads(part(record, FILE))
    trials = [Trial(decode_overrides(plan, e["overrides"]), e["fingerprint"], e["status"], None, e.get("failure", "")) for e in entries]
    finished = [trial_experiment(plan.sweep, trial.overrides) for trial in trials if trial.status == "finished"]
    made = [*(trained_by(experiment) for _, experiment in plan.upstream), *map(cleaned_by, finished)]
    now = store.listed()
    if any(now.find(stage.kind, stage.fingerprint) is None or lacking(now, stage) for stage in dict.fromkeys(made)):
        return None
    return trials


def _record(plan: Plan, store: Store, trials: list[Trial]) -> None:
    ended = tuple(
        {"overrides": encode(t.overrides), "fingerprint": t.fingerprint, "status": t.status, "failure": t.failure} for t in trials
    )
    ensure(replace(plan.stage, trials=ended), At(store=store))


@contextmanager
def _ray(compute: Compute) -> Iterator[None]:
    session.connect(compute.num_cpus or None)
    try:
        yield
    except RayEnded:
        session.abandon()
        raise
    except BaseException:
        session.shutdown()
        raise
    if not _SHARED:
        session.shutdown()


_SHARED: list[bool] = []


@contextmanager
def one_ray() -> Iterator[None]:
    """Within, a Ray that a sweep starts is left running for the next sweep; none is started where all is made."""
    _SHARED.append(True)
    try:
        yield
    finally:
        _SHARED.pop()
        if _SHARED == []:
            session.shutdown()


def report_sweep(plan: Plan, compute: Compute) -> tuple[Study, Path]:
    """Write the report of a sweep from what the store holds now."""
    store = Store(compute.store)
    study = read_study(plan, store)
    return study, _write_report(plan, store, study)


def _write_report(plan: Plan, store: Store, study: Study) -> Path:
    """Write the report. Its figures are imported here, because tables and claims have none."""
    from orchestrator.report.page import write_report

    return write_report(study, report_folder(plan, store))


def read_study(plan: Plan, store: Store) -> Study:
    """What the store holds of a sweep; InputError if it holds nothing."""
    study = load_study(plan, store, _recorded(plan, store))
    if not study.pretrains:
        raise InputError(f"store {store.root} holds nothing of the sweep {plan.sweep.name} yet: run it first.")
    return study


def judge_claims(plans: Sequence[Plan], store: Store) -> tuple[list[Verdict], Path]:
    """The verdicts of several sweeps together on their claims; writes claims.html and claims.json beside the reports."""
    studies = [load_study(plan, store, _recorded(plan, store)) for plan in plans]
    found = [study for study in studies if study.pretrains]
    missing = [study.name for study in studies if not study.pretrains]
    if not found:
        raise InputError(f"store {store.root} holds nothing of {', '.join(missing)} yet: run a sweep first.")
    for name in missing:
        note(f"the store holds nothing of {name} yet; it is left out.")
    asked = [claim for study in studies for claim in study.claims]
    if not asked:
        raise InputError(f"no claim to judge: {', '.join(study.name for study in studies)} has an empty Sweep.claims; name claims there.")
    return write_claims(asked, found, store.root / "reports")


def report_folder(plan: Plan, store: Store) -> Path:
    """The folder of the sweep's report."""
    return store.root / "reports" / f"{slug(plan.sweep.name)}-{plan.fingerprint[:12]}"


def write_poisoned(experiment: Experiment, compute: Compute, out: Path) -> dict[str, Any]:
    """Write the experiment's poisoned shards to `out`; continues a run that was stopped."""
    from orchestrator.cluster.streaming import poison_shards

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "poison.json").exists())):
        raise InputError(f"--out {out} exists and is not a folder of poisoned shards; name a new or an empty one.")
    store = Store(compute.store)
    store.prepare()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}.") from error
    with recording(store.root, "poison"), _ray(compute), watching() as wants:
        wants(Wanted("poison"))
        at = At(store=store)
        inputs = make_data(experiment, at)
        inputs.pairs()  # checks the files that the tasks read
        experiment = knowing_made(experiment, at)
        return poison_shards(
            trained_by(experiment).attack.index.read(at),
            Path(inputs.index),
            Path(inputs.plan),
            experiment.poisons[0].trigger,
            experiment.views.size,
            out,
            jpeg_quality=experiment.poisons[0].jpeg_quality,
            others=experiment.poisons[1:],
            progress=meter("poison", "shards"),
        )


def evaluate_checkpoint(experiment: Experiment, compute: Compute, weights: str) -> dict[str, float]:
    """Metrics of a checkpoint (epoch folder, file or open_clip tag) under the experiment's test set and trigger."""
    from orchestrator.training.job import Job, load_model, measured_as
    from orchestrator.training.measuring import evaluate

    model = load_model(experiment, weights)  # first, so that a mistake is reported before data are prepared
    store = Store(compute.store)
    store.prepare()
    at = At(store=store)
    with recording(store.root, "evaluate"):
        log.debug("%s is measured", weights)
        with session.joined():
            inputs = make_data(experiment, at)
        experiment = knowing_made(experiment, at)
        job = Job(
            experiment=experiment, inputs=inputs, folder=str(store.root), compute=compute, stage="evaluate", gpus=compute.gpus_per_worker
        )
        with measured_as(weights):
            return evaluate(job, model)


def open_ui(root: str, uri: str, port: int) -> int:
    """Serve MLflow's UI on loopback until interrupted."""
    from orchestrator.tracking.server import serve

    store = Store(root)
    if not uri and not (store.root / "mlflow.db").exists():
        raise InputError(f"store {store.root} has no mlflow.db: run a sweep first, or give --tracking-uri.")
    return serve(tracking_uri(uri, store), port)
