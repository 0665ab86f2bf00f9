"""Memory that ran out is told by name, whoever killed the process for it, and Tune takes it for what it is."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from orchestrator import failures
from orchestrator.cluster import lost, session
from orchestrator.cluster.memory import TrialOutOfMemory, let_tune_retry
from orchestrator.training.ray_train import StageError, fit_on_workers, raise_failure

RAYS = "1 worker(s) were killed due to the node running low on memory.\nRefer to the documentation on how to address it."


def of_worker(error: Exception) -> Exception:
    """What Ray Train raises of a worker that it cannot reach."""
    return WorkerGroupError("workers failed", {0: WorkerHealthCheckFailedError("no answer", failure=error)})


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A count of the kernel's that can be written."""
    file = tmp_path / "vmstat"
    file.write_text("pgfault 7\noom_kill 3\n")
    monkeypatch.setattr(lost, "COUNT", file)
    monkeypatch.setattr(lost, "BEFORE", lost.killed_by_kernel())
    return file


@pytest.mark.parametrize("error", [
    OutOfMemoryError(RAYS), of_worker(OutOfMemoryError(RAYS)), ControllerError(OutOfMemoryError(RAYS)), TrialOutOfMemory(RAYS),
])  # fmt: skip
def test_what_rays_monitor_killed(kernel: Path, error: Exception) -> None:
    kind, text = lost.reason(error)
    assert kind == failures.OUT_OF_MEMORY and "\n" not in text
    assert "memory of the machine was in use" in text and "more memory" in text and "Refer" not in text


def test_what_the_kernel_killed(kernel: Path) -> None:
    died = of_worker(ActorDiedError())
    assert lost.reason(died)[0] == failures.LOST_PROCESS
    kernel.write_text("pgfault 9\noom_kill 4\n")
    told = f"the kernel of this machine killed a process because no memory was left: {lost.ADVICE}"
    assert lost.reason(died) == (failures.OUT_OF_MEMORY, told)
    assert lost.reason(ValueError("another")) == (failures.OTHER, "another"), "what was not lost has its own reason"
    kernel.unlink()
    assert lost.killed_by_kernel() == 0 and lost.reason(died)[0] == failures.LOST_PROCESS


def test_the_kernels_count_is_read_where_there_is_one() -> None:
    if Path("/proc/vmstat").exists():
        [line] = [line for line in lost.COUNT.read_text().splitlines() if line.startswith("oom_kill ")]
        assert lost.killed_by_kernel() >= int(line.split()[1]) >= lost.BEFORE >= 0


def test_a_stage_says_it_in_one_sentence(kernel: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError) as told:
        raise_failure("pretrain x-0123456789ab", tmp_path, of_worker(OutOfMemoryError(RAYS)))
    assert str(told.value).startswith("pretrain x-0123456789ab ran out of memory: Ray killed its process") and "\n" not in str(told.value)
    assert "more memory. What was done is kept; the same command continues" in str(told.value)


def test_tune_tries_a_trial_again_that_rays_monitor_killed() -> None:
    before = RayActorManager._actor_task_failed
    manager: Any = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    told: list[Exception] = []
    actor: Any = SimpleNamespace(actor_id="a", _on_error=lambda one, error: told.append(error))
    task: Any = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    try:
        let_tune_retry()
        let_tune_retry()  # once is enough
        RayActorManager._actor_task_failed(manager, task, OutOfMemoryError(RAYS))
        [error] = told
        assert isinstance(error, RayActorError) and str(error) == RAYS and failures.kind_of(error) == failures.OUT_OF_MEMORY
        assert isinstance(pickle.loads(pickle.dumps(error)), TrialOutOfMemory), "Tune stores it"
        with pytest.raises(RuntimeError, match="unexpected"):
            RayActorManager._actor_task_failed(manager, task, KeyError("x"))
    finally:
        RayActorManager._actor_task_failed = before  # type: ignore[method-assign]


@pytest.mark.parametrize(("first", "runs"), [
    (ControllerError(OutOfMemoryError(RAYS)), 2), (ActorDiedError(), 2),
    (of_worker(OutOfMemoryError(RAYS)), 1), (ControllerError(ValueError("x")), 1), (None, 1),
])  # fmt: skip
def test_a_training_whose_controller_was_lost_is_run_once_more(
    first: Exception | None, runs: int, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = [first, None]
    monkeypatch.setattr("orchestrator.training.ray_train._fit", lambda *_: ends.pop(0))
    job, compute = SimpleNamespace(folder=str(tmp_path)), SimpleNamespace(retries=2)
    if runs == 1 and first is not None:
        with pytest.raises(StageError):
            fit_on_workers(job, print, 2, compute, "pretrain x")  # type: ignore[arg-type]
    else:
        fit_on_workers(job, print, 2, compute, "pretrain x")  # type: ignore[arg-type]
    assert len(ends) == 2 - runs


def test_a_task_is_not_begun_again_for_ever() -> None:
    assert int(session.ENVIRONMENT["RAY_task_oom_retries"]) >= 0, "Ray's own number has no end"
