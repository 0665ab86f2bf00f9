"""Memory that ran out: what Ray Tune does not expect, and what the kernel tells.

Import it only where Ray is imported anyway.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError


class TrialOutOfMemory(RayActorError, OutOfMemoryError):
    """The process of a trial was killed by Ray's memory monitor."""

    def __init__(self, message: str) -> None:
        RayActorError.__init__(self, error_msg=message)


def let_tune_retry() -> None:
    """Let Tune take the death of a trial by Ray's memory monitor for what any other death of its process is: the trial is tried again, and
    the others go on. Tune itself expects only a RayActorError there and ends the whole sweep at any other."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    original = RayActorManager._actor_task_failed
    if getattr(original, "expects_lack_of_memory", False):
        return

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError) and not isinstance(exception, RayActorError):
            exception = TrialOutOfMemory(str(exception))
        original(self, tracked_actor_task, exception)

    failed.expects_lack_of_memory = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]
