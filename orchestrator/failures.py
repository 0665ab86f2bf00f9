"""The kind of a failure, by the type of its error. It is stored beside the error's text, and code asks for the kind and never reads the
text."""

import errno
import sys
from collections.abc import Iterator

from datasets.errors import InputError

INPUT, DIVERGED, OUT_OF_MEMORY, DISK_FULL, LOST_PROCESS, OTHER = (
    "input", "diverged", "out_of_memory", "disk_full", "lost_process", "error",
)  # fmt: skip
SAID = {
    INPUT: "was given what it cannot take", DIVERGED: "diverged", OUT_OF_MEMORY: "ran out of memory", DISK_FULL: "found the disk full",
    LOST_PROCESS: "lost its process",
}  # fmt: skip
"""Kind → how messages describe a stage that failed so; any other kind is just "failed"."""
CERTAIN = (INPUT, DIVERGED)
"""Kinds of failures that would happen again at every retry."""


class ComesAgain(Exception):
    """A failure of a kind in CERTAIN; it is stored in the stage's folder."""


CAUSES = ("cause", "health_check_failure", "controller_failure", "__cause__", "__context__")
"""Attributes of an exception that hold what is behind it; all but the last two are Ray's own."""
CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""


def kind_of(error: BaseException | None) -> str:
    """The kind of an error, or of the first error behind it that has one; "error" for any other, "" for None."""
    if error is None:
        return ""
    return next((kind for one in behind(error) if (kind := _kind(one))), OTHER)


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, the outermost first, also through the exceptions of Ray Data, Train and Tune."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        yield current
        failures = getattr(current, "worker_failures", None)
        queue += [getattr(current, name, None) for name in CAUSES]
        queue += failures.values() if isinstance(failures, dict) else []


def _kind(error: BaseException) -> str:
    if isinstance(error, InputError):
        return INPUT
    if isinstance(error, FloatingPointError):
        return DIVERGED
    if isinstance(error, MemoryError) or _of_torch(error):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK_FULL
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return OUT_OF_MEMORY
    return _of_ray(error)


def by_ray(error: BaseException) -> bool:
    """Whether Ray's memory monitor is behind the error."""
    ray = sys.modules.get("ray")
    return ray is not None and any(isinstance(one, ray.exceptions.OutOfMemoryError) for one in behind(error))


def _of_torch(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    failed = getattr(torch, "AcceleratorError", ())
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, failed) and getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
    )


def _of_ray(error: BaseException) -> str:
    ray = sys.modules.get("ray")
    if ray is None:
        return ""
    known = ray.exceptions
    if isinstance(error, known.OutOfMemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, known.OutOfDiskError):
        return DISK_FULL
    lost = (known.RayActorError, known.WorkerCrashedError, known.NodeDiedError, known.LocalRayletDiedError, known.OwnerDiedError)
    return LOST_PROCESS if isinstance(error, lost) else ""
