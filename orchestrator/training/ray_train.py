"""Ray Train around `trainers.loop`: a training on N workers, and the cause of its failure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator import failures
from orchestrator.cluster import lost, network, retries
from orchestrator.cluster.session import quiet, scratch, user_error
from orchestrator.console import log
from orchestrator.experiment.spec import Compute
from orchestrator.store import FAILED, read_failure, read_json, write_json
from orchestrator.training.job import Job


class StageError(RuntimeError):
    """A stage failed for a reason that is not the user's input: names the stage, its fingerprint and the step."""


def fit_on_workers(job: Job, train: Callable[[Job], None], workers: int, compute: Compute, title: str) -> None:
    """Run the job's training on this many workers of Ray Train. A failure is raised as that of the stage with this title.

    Train starts lost workers again by itself, but not where a process of its own was lost: then it is run once more.
    """
    from ray.train.v2.api.exceptions import WorkerGroupError

    cause = _fit(job, train, workers, compute)
    lost_own = failures.kind_of(cause) in (failures.LOST_PROCESS, failures.OUT_OF_MEMORY) and not isinstance(cause, WorkerGroupError)
    if lost_own and compute.retries and read_failure(Path(job.folder)) is None:
        log.say(f"{title}: a process that leads its workers was lost; continuing from the last checkpoint")
        cause = _fit(job, train, workers, compute)
    raise_failure(title, Path(job.folder), cause)


def _fit(job: Job, train: Callable[[Job], None], workers: int, compute: Compute) -> BaseException | None:
    """Run the training; returns the cause of a failure as Ray Train reports it, or None."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources: dict[str, float] = {"CPU": job.cpus}
    if job.gpus:
        resources["GPU"] = job.gpus
    folder = Path(job.folder)  # <store>/<kind>/.work-<12 digits>
    store = folder.parent.parent
    name = scratch(store, f"{folder.parent.name}-{folder.name[-12:]}")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "train": train, "log": log.folder()},
        torch_config=network.torch_config(),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=job.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(store / "ray"),
            failure_config=retries.of_training(compute),
        ),
    )
    cause: BaseException | None = None
    try:
        trainer.fit()
    except SystemExit as error:  # Ray Train's handler turns ctrl-C into this
        raise KeyboardInterrupt from error
    except Exception as error:  # Train wraps the cause of a worker's death; it is unwrapped below
        cause = error
    shutil.rmtree(store / "ray" / name, ignore_errors=True)
    return cause


def raise_failure(stage: object, folder: Path, cause: BaseException | None) -> None:
    """Raise the stage's failure, if there is one: InputError for a user's mistake, else StageError."""
    failed = read_failure(folder)
    if failed:
        kind = InputError if failed["kind"] == failures.INPUT else StageError
        raise kind(f"{stage}: {lost.advised(failed['kind'], failed['error'])}") from cause
    if cause is not None:
        mistake = user_error(cause)
        if mistake is not None:
            raise InputError(f"{stage}: {mistake}") from cause
        failure, text = lost.reason(cause)
        if folder.is_dir():  # the process recorded no failure, so it may have been lost. The next attempt removes this record
            write_json(folder / FAILED, {"kind": failure, "error": text, "rank": 0})
        progress = read_json(folder / "progress.json")
        near = f" near step {progress.get('step', 0)}" if isinstance(progress, dict) else ""
        raise StageError(
            f"{stage} {failures.SAID.get(failure, 'failed')}{near}: {text.rstrip('.')}. What was done is kept; the same command continues "
            "from there."
        ) from cause


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    quiet()
    log.join(config["log"])
    config["train"](config["job"])
