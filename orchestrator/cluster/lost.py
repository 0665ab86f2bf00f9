"""The reason of a failure in one line, also where it is only that a process is gone: memory may have run out.

Importing this module does not import Ray.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orchestrator import failures

ADVICE = "run fewer processes side by side (workers, max_concurrent_trials), make batch_size smaller, or use a machine with more memory"


def _counting() -> Path:
    """The file that counts the kernel's kills among this process's control group (of version 2 or 1), or else on the whole machine."""
    places = []
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                root = Path("/sys/fs/cgroup") / ("memory" if controllers else "")
                name = "memory.oom_control" if controllers else "memory.events"
                places += [root / path.lstrip("/") / name, root / name]  # within a container its own group is the root
    return next((place for place in places if _count(place) is not None), Path("/proc/vmstat"))


def _count(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill ")), None)
    return None


COUNT = _counting()


def killed_by_kernel() -> int:
    """How many processes beside this one the kernel has killed so far because memory ran out; 0 where it does not tell."""
    return _count(COUNT) or 0


BEFORE = killed_by_kernel()
"""How many it had killed when this process began."""


def reason(error: BaseException) -> tuple[str, str]:
    """(kind, one line) of a failure that its own process did not record; where memory ran out the line says what to do.

    A process that the kernel killed is just gone. That memory ran out is known by the kernel's count of such kills.
    """
    kind, killed = failures.kind_of(error), killed_by_kernel() - BEFORE
    if kind == failures.LOST_PROCESS and killed > 0:
        times = "a process" if killed == 1 else f"{killed} processes"
        return failures.OUT_OF_MEMORY, f"the kernel of this machine killed {times} because no memory was left: {ADVICE}"
    if kind == failures.OUT_OF_MEMORY and failures.by_ray(error):
        return kind, f"Ray killed its process because nearly all memory of the machine was in use: {ADVICE}"
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return kind, advised(kind, lines[-1][:400])


def advised(kind: str, text: str) -> str:
    """The text, with what to do if memory ran out."""
    return f"{text.rstrip('.')}: {ADVICE}" if kind == failures.OUT_OF_MEMORY else text
