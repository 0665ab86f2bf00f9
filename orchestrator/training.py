"""Ray Train around `trainers.loop`: pre-training on N workers."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets.component import Component
from datasets.errors import InputError
from orchestrator import failures, network
from orchestrator.cluster import scratch, user_error
from orchestrator.identity import IDENTITIES
from orchestrator.plan import Stage, stages, unpoisoned
from orchestrator.results import spent
from orchestrator.spec import Compute, Experiment
from orchestrator.stages import Inputs, last_checkpoint, seal
from orchestrator.store import FAILED, Artefact, Store, read_failure, read_json, write_json
from orchestrator.workers import Job, pretrain


class StageError(RuntimeError):
    """A stage failed for a reason that is not the user's input: names the stage, its fingerprint and the step."""


def pretrain_stage(experiment: Experiment, inputs: Inputs, store: Store, compute: Compute) -> Artefact:
    """The pre-trained model: found, continued from its last checkpoint, or made, after the prior it starts from.

    Holds checkpoints, metrics and the gate.
    """
    stage = stages(experiment)["pretrain"]
    found = store.find(stage.kind, stage.fingerprint)
    if found is not None:
        return found
    start = None
    if experiment.prior is not None:
        start = last_checkpoint(unpoisoned_stage(experiment, "prior", inputs, store, compute))
    return _make(stage, experiment, inputs, store, compute, "" if start is None else str(start))


def unpoisoned_stage(experiment: Experiment, role: str, inputs: Inputs, store: Store, compute: Compute) -> Artefact:
    """The model trained on the same pairs without the poison that has this role among the stages. Whoever shares it waits."""
    own = unpoisoned(experiment, role)
    return _make(stages(experiment)[role], own, replace(inputs, plan=""), store, compute, wait_s=math.inf)


def _make(
    stage: Stage, experiment: Experiment, inputs: Inputs, store: Store, compute: Compute, start: str = "", wait_s: float = 120
) -> Artefact:
    """Find the stage, or train the experiment's `pretrain` from the checkpoint `start` and seal it."""
    found = store.find(stage.kind, stage.fingerprint)
    if found is not None:
        return found
    with store.working(stage.kind, stage.fingerprint, wait_s) as folder:
        found = store.find(stage.kind, stage.fingerprint)
        if found is not None:
            store.discard(stage.kind, stage.fingerprint)
            return found
        (folder / FAILED).unlink(missing_ok=True)
        job = Job(
            experiment=experiment,
            inputs=inputs,
            folder=str(folder),
            compute=compute,
            stage=str(stage),
            checkpoint=start,
            cpus=compute.cpus_per_worker,
            gpus=compute.gpus_per_worker,
        )
        _fit(job, stage, store, compute)
        return seal(store, stage, spent(folder))


def pretrain_all(wanted: list[tuple[Experiment, Inputs]], store: Store, compute: Compute) -> list[Artefact]:
    """Every pre-trained model, in order: those that are missing are made side by side, as many as the cluster has room for.

    A failure, be it a death of the process that waits for one of them, is raised when those that run have ended, so that none is
    lost.
    """
    import ray
    from ray.exceptions import RayError

    missing = {
        stage.fingerprint: (stage, experiment, inputs)
        for experiment, inputs in wanted
        if store.find((stage := stages(experiment)["pretrain"]).kind, stage.fingerprint) is None
    }
    room = _room(compute, ray.cluster_resources())
    if len(missing) > 1 and room > 1:
        # the workers of its Ray Train hold the cores; one that is started again goes on from the last checkpoint
        task = ray.remote(num_cpus=0, max_retries=compute.retries)(_apart)
        waiting = list(missing.values())
        running: dict[Any, Stage] = {}
        failed: list[Exception] = []
        while waiting or running:
            while waiting and len(running) < room and not failed:
                stage, experiment, inputs = waiting.pop(0)
                running[task.remote(experiment, inputs, str(store.root), compute, dict(IDENTITIES))] = stage
            if not running:
                break
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            stage = running.pop(done)
            try:
                failure = ray.get(done)
                failed += [failure] if failure else []
            except RayError as death:
                try:
                    raise_failure(stage, store.work(stage.kind, stage.fingerprint), death)
                except (InputError, StageError) as error:
                    failed.append(error)
        if failed:
            raise failed[0]
    return [pretrain_stage(experiment, inputs, store, compute) for experiment, inputs in wanted]


def _room(compute: Compute, has: dict[str, float]) -> int:
    """How many pre-trainings a cluster of these resources can run at a time, the CPUs of their feeds counted; at least 1."""
    cpus = compute.cpus_per_worker + (compute.feed_cpus if compute.feed == "ray" else 0)
    needs = {"CPU": compute.workers * cpus, "GPU": compute.workers * compute.gpus_per_worker}
    return max(1, int(min(has.get(name, 0.0) / need for name, need in needs.items() if need) + 1e-9))


def _apart(
    experiment: Experiment, inputs: Inputs, store: str, compute: Compute, identities: dict[Component | str, Any]
) -> Exception | None:
    """`pretrain_stage` in a process of its own; the failure it met, without the traceback that Ray would wrap it in."""
    IDENTITIES.update(identities)
    try:
        pretrain_stage(experiment, inputs, Store(store), compute)
    except (InputError, StageError) as error:
        return type(error)(str(error))
    return None


def _fit(job: Job, stage: Stage, store: Store, compute: Compute) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources: dict[str, float] = {"CPU": compute.cpus_per_worker}
    if compute.gpus_per_worker:
        resources["GPU"] = compute.gpus_per_worker
    name = scratch(store.root, f"{stage.kind}-{stage.fingerprint[:12]}")
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=network.torch_config(),
        scaling_config=ScalingConfig(
            num_workers=compute.workers, use_gpu=compute.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(store.root / "ray"),
            failure_config=FailureConfig(max_failures=compute.retries, controller_failure_limit=1),  # type: ignore[call-arg]
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
    raise_failure(stage, Path(job.folder), cause)


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
        step = progress.get("step", 0) if isinstance(progress, dict) else 0
        raise StageError(
            f"{stage} failed near step {step}: {lines[-1][:400].rstrip('.')}. Its checkpoints are kept; the same "
            "command continues from them."
        ) from cause


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    from orchestrator.cluster import quiet

    quiet()
    pretrain(config["job"])
