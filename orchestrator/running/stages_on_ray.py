"""Stages on Ray: pre-trainings side by side, and measurements and labels in separate processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator import failures
from orchestrator.cluster import retries
from orchestrator.console.log import folder, join, log
from orchestrator.experiment.identity import IDENTITIES
from orchestrator.experiment.spec import Compute
from orchestrator.stages.base import At, Stage, ensure, walk
from orchestrator.store import METRICS, Artefact, Store, read_lines
from orchestrator.training.ray_train import StageError, raise_failure

FOLLOW_S = 1.0
"""Seconds between two reads of the metrics of a training in other processes."""


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
        # the workers of its Ray Train hold the cores; if it is restarted, it continues from the last checkpoint
        task = ray.remote(num_cpus=0, max_retries=retries.of_task(at.compute))(_apart)
        waiting = list(missing.values())
        running: dict[Any, Stage] = {}
        failed: list[Exception] = []
        while waiting or running:
            while waiting and len(running) < room and not failed:
                stage = waiting.pop(0)
                running[task.remote(stage, _caller(at))] = stage
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
    """Make these stages and everything that they need, one after another, each in this process or apart, as its kind says."""
    for stage in walk(*wanted):
        if stage.apart and at.find(stage) is None:
            _ensure_apart(stage, at)
        else:
            ensure(stage, at)


def measure_all(wanted: Sequence[Stage], at: At) -> None:
    """Make these measurements side by side, each in a process with the cores and GPUs of a trial. Raises the first failure."""
    if wanted:
        log.info(f"measuring what is stored: {len(wanted)} to do")
    for _, failure in ensure_apart_each(wanted, at):
        if failure is not None:
            raise failure


def ensure_apart_each(wanted: Sequence[Stage], at: At) -> Iterator[tuple[Stage, Exception | None]]:
    """Make these stages side by side, each in a process with the cores and GPUs of a trial. Yields each when it has ended, with its
    failure; a failure stops no other."""
    import ray

    if not wanted:
        return
    task, caller = _task(at.compute), replace(_caller(at), known={})
    running = {task.remote(stage, caller): stage for stage in wanted}
    while running:
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        stage, failure = running.pop(done), None
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            try:
                raise_failure(stage, at.store.work(stage.kind, stage.fingerprint), error)
            except (InputError, StageError) as told:
                failure = told
        yield stage, failure


def _ensure_apart(stage: Stage, at: At) -> None:
    """Make a stage in a process with the cores and GPUs of a trial."""
    import ray

    try:
        ray.get(_task(at.compute).remote(stage, _caller(at)))
    except ray.exceptions.RayError as error:
        raise_failure(stage, at.store.work(stage.kind, stage.fingerprint), error)


@dataclass(frozen=True)
class Caller:
    """What a task must know about the process that asks for a stage; it is sent with the task."""

    store: str
    compute: Compute
    known: dict[str, Any]
    """As `At.known`."""
    identities: dict[Component | str, Any]
    log: str
    """Folder of the log of the run."""

    def at(self) -> At:
        """The place where the stage is made, in the process of the task."""
        IDENTITIES.update(self.identities)
        join(self.log)
        return At(store=Store(self.store), compute=self.compute, known=self.known)


def _caller(at: At) -> Caller:
    return Caller(str(at.store.root), at.compute, at.known, dict(IDENTITIES), folder())


def _task(compute: Compute) -> Any:
    """A Ray task that makes a stage with the cores and GPUs of a trial."""
    import ray

    return ray.remote(num_cpus=compute.trial_cpus, num_gpus=compute.trial_gpus, max_retries=retries.of_task(compute))(_with_cores)


def _with_cores(stage: Stage, caller: Caller) -> None:
    import torch

    torch.set_num_threads(max(1, int(caller.compute.trial_cpus)))
    ensure(stage, caller.at())


def pretrainings_at_a_time(compute: Compute, has: dict[str, float]) -> int:
    """How many pre-trainings a cluster with these resources can run side by side, with the CPUs of their feeds; at least 1."""
    cpus = compute.cpus_per_worker + (compute.feed_cpus if compute.feed == "ray" else 0)
    return _room(compute.workers, cpus, compute.gpus_per_worker, has)


def trials_at_a_time(compute: Compute, has: dict[str, float]) -> int:
    """How many trials with several processes a cluster with these resources can run side by side; at least 1."""
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
    waiting = [task.remote(stage, _caller(at))] if at.find(stage) is None else []
    while waiting:
        done, waiting = ray.wait(waiting, timeout=FOLLOW_S)
        lines = read_lines(at.store.work(stage.kind, stage.fingerprint) / METRICS)
        for line in lines[told:] if at.report is not None else []:
            at.report(line)  # type: ignore[misc]
        told = max(told, len(lines))
        for failure in [failure for one in done if (failure := ray.get(one))]:
            raise failure
    return ensure(stage, at)


def _apart(stage: Stage, caller: Caller) -> Exception | None:
    """`ensure` in a separate process. Returns its failure, which Ray would otherwise wrap in a traceback."""
    try:
        ensure(stage, caller.at())
    except (InputError, StageError, failures.ComesAgain) as error:
        return type(error)(str(error))
    return None
