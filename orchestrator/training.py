"""Ray Train around `trainers.loop`: trainings on N workers, and other stages in a process of their own."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator import failures, network
from orchestrator.cluster import scratch, user_error
from orchestrator.identity import IDENTITIES
from orchestrator.job import Job
from orchestrator.spec import Compute
from orchestrator.stages.base import At, Stage, ensure, walk
from orchestrator.store import FAILED, METRICS, Artefact, Store, read_failure, read_json, read_lines, write_json

FOLLOW_S = 1.0
"""Between two looks at the lines of a training that other processes make."""


class StageError(RuntimeError):
    """A stage failed for a reason that is not the user's input: names the stage, its fingerprint and the step."""


def train_all(wanted: Sequence[Stage], at: At) -> list[Artefact]:
    """Every pre-trained model, in order: those that are missing are made side by side, as many as the cluster has room for.

    If one fails, or the process that waits for it dies, no other is begun; those that run are waited for, then the first failure is
    raised.
    """
    import ray
    from ray.exceptions import RayError

    missing = {stage.fingerprint: stage for stage in wanted if at.find(stage) is None}
    room = pretrainings_at_a_time(at.compute, ray.cluster_resources())
    if len(missing) > 1 and room > 1:
        # the workers of its Ray Train hold the cores; one that is started again goes on from the last checkpoint
        task = ray.remote(num_cpus=0, max_retries=at.compute.retries)(_apart)
        waiting = list(missing.values())
        running: dict[Any, Stage] = {}
        failed: list[Exception] = []
        while waiting or running:
            while waiting and len(running) < room and not failed:
                stage = waiting.pop(0)
                running[task.remote(stage, str(at.store.root), at.compute, at.known, dict(IDENTITIES))] = stage
            if not running:
                break
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            stage = running.pop(done)
            try:
                failure = ray.get(done)
                failed += [failure] if failure else []
            except RayError as death:
                try:
                    raise_failure(stage, at.store.work(stage.kind, stage.fingerprint), death)
                except (InputError, StageError) as error:
                    failed.append(error)
        if failed:
            raise failed[0]
    return [ensure(stage, at) for stage in wanted]


def ensure_all(wanted: Iterable[Stage], at: At) -> None:
    """Make these stages and all that they need, one after the other, each where its kind says."""
    for stage in walk(*wanted):
        if stage.apart and at.find(stage) is None:
            _ensure_apart(stage, at)
        else:
            ensure(stage, at)


def measure_all(wanted: Sequence[Stage], at: At) -> None:
    """Make these measurements, side by side, each in a process with the cores and the GPU of a trial; raises the first failure."""
    import ray

    if not wanted:
        return
    at.say(f"measuring what is stored: {len(wanted)} to do")
    compute = at.compute
    task = ray.remote(num_cpus=compute.trial_cpus, num_gpus=compute.trial_gpus, max_retries=compute.retries)(_with_cores)
    running = {task.remote(stage, str(at.store.root), compute, {}, dict(IDENTITIES)): stage for stage in wanted}
    for reference, stage in running.items():
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            raise_failure(stage, at.store.work(stage.kind, stage.fingerprint), error)


def _ensure_apart(stage: Stage, at: At) -> None:
    """Make a stage in a process with the cores and the GPU of a trial."""
    import ray

    compute = at.compute
    task = ray.remote(num_cpus=compute.trial_cpus, num_gpus=compute.trial_gpus, max_retries=compute.retries)(_with_cores)
    try:
        ray.get(task.remote(stage, str(at.store.root), compute, at.known, dict(IDENTITIES)))
    except ray.exceptions.RayError as error:
        raise_failure(stage, at.store.work(stage.kind, stage.fingerprint), error)


def _with_cores(stage: Stage, store: str, compute: Compute, known: dict[str, Any], identities: dict[Component | str, Any]) -> None:
    import torch

    IDENTITIES.update(identities)
    torch.set_num_threads(max(1, int(compute.trial_cpus)))
    ensure(stage, At(store=Store(store), compute=compute, known=known))


def pretrainings_at_a_time(compute: Compute, has: dict[str, float]) -> int:
    """How many pre-trainings a cluster of these resources can run side by side, the CPUs of their feeds counted; at least 1."""
    cpus = compute.cpus_per_worker + (compute.feed_cpus if compute.feed == "ray" else 0)
    return _room(compute.workers, cpus, compute.gpus_per_worker, has)


def trials_at_a_time(compute: Compute, has: dict[str, float]) -> int:
    """How many trials of several processes a cluster of these resources can run side by side; at least 1."""
    room = _room(compute.trial_workers, compute.trial_cpus, compute.trial_gpus, has)
    return min(room, compute.max_concurrent_trials or room)


def _room(workers: int, cpus: float, gpus: float, has: dict[str, float]) -> int:
    needs = {"CPU": workers * cpus, "GPU": workers * gpus}
    return max(1, int(min(has.get(name, 0.0) / need for name, need in needs.items() if need) + 1e-9))


def ensure_followed(stage: Stage, at: At) -> Artefact:
    """As `ensure`, for a training whose own workers hold the cores: a task without any waits for it, and this process meanwhile tells
    `at.report` of each line that is new."""
    import ray

    told = 0
    task = ray.remote(num_cpus=0, max_retries=0)(_apart)
    waiting = [task.remote(stage, str(at.store.root), at.compute, at.known, dict(IDENTITIES))] if at.find(stage) is None else []
    while waiting:
        done, waiting = ray.wait(waiting, timeout=FOLLOW_S)
        lines = read_lines(at.store.work(stage.kind, stage.fingerprint) / METRICS)
        for line in lines[told:] if at.report is not None else []:
            at.report(line)  # type: ignore[misc]
        told = max(told, len(lines))
        for failure in [failure for one in done if (failure := ray.get(one))]:
            raise failure
    return ensure(stage, at)


def _apart(
    stage: Stage, store: str, compute: Compute, known: dict[str, Any], identities: dict[Component | str, Any]
) -> Exception | None:
    """`ensure` in a process of its own; the failure it met, without the traceback that Ray would wrap it in."""
    IDENTITIES.update(identities)
    try:
        ensure(stage, At(store=Store(store), compute=compute, known=known))
    except (InputError, StageError, failures.ComesAgain) as error:
        return type(error)(str(error))
    return None


def fit_on_workers(job: Job, stage: Stage, at: At, train: Callable[[Job], None], workers: int) -> None:
    """Run the job's training on so many of Ray Train's workers; raises what made it fail."""
    cause = _fit(job, stage, at, train, workers)
    raise_failure(stage, Path(job.folder), cause)


def _fit(job: Job, stage: Stage, at: At, train: Callable[[Job], None], workers: int) -> BaseException | None:
    """What it failed of, as Ray Train tells it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources: dict[str, float] = {"CPU": job.cpus}
    if job.gpus:
        resources["GPU"] = job.gpus
    store = at.store
    name = scratch(store.root, f"{stage.kind}-{stage.fingerprint[:12]}")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "train": train},
        torch_config=network.torch_config(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=job.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=FailureConfig(max_failures=at.compute.retries, controller_failure_limit=1),  # type: ignore[call-arg]
        ),
    )
    cause: BaseException | None = None
    try:
        trainer.fit()
    except SystemExit as error:  # what Train's own handler makes of ctrl-C
        raise KeyboardInterrupt from error
    except Exception as error:  # Train wraps whatever a worker died of; what it was is read off below
        cause = error
    shutil.rmtree(store.root / "ray" / name, ignore_errors=True)
    return cause


def raise_failure(stage: Stage, folder: Path, cause: BaseException | None) -> None:
    """Raise what made the stage fail, if anything did: InputError for the user's mistakes, else StageError."""
    failed = read_failure(folder)
    if failed:
        kind = InputError if failed["kind"] == failures.INPUT else StageError
        raise kind(f"{stage}: {failed['error']}") from cause
    if cause is not None:
        mistake = user_error(cause)
        if mistake is not None:
            raise InputError(f"{stage}: {mistake}") from cause
        lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [type(cause).__name__]
        if folder.is_dir():  # its process wrote nothing down: it may have been lost. The next attempt removes this
            write_json(folder / FAILED, {"kind": failures.kind_of(cause), "error": lines[-1][:400], "rank": 0})
        progress = read_json(folder / "progress.json")
        near = f" near step {progress.get('step', 0)}" if isinstance(progress, dict) else ""
        said = failures.SAID.get(failures.kind_of(cause), "failed")
        raise StageError(
            f"{stage} {said}{near}: {lines[-1][:400].rstrip('.')}. What was done is kept; the same command continues from there."
        ) from cause


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    from orchestrator.cluster import quiet

    quiet()
    config["train"](config["job"])
