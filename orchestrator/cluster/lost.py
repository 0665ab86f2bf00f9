"""The reason of a failure in one line, also where it is only that a process is gone: memory may have run out.

Importing this module does not import Ray.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator import failures

VMSTAT = Path("/proc/vmstat")
ADVICE = "run fewer processes side by side (workers, max_concurrent_trials), make batch_size smaller, or use a machine with more memory"


def killed_by_kernel() -> int:
    """How many processes of this machine the kernel has killed since its start because memory ran out; 0 where it does not tell."""
    try:
        fields = dict(line.split() for line in VMSTAT.read_text().splitlines())
        return int(fields.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


BEFORE = killed_by_kernel()
"""How many it had killed when this process began."""


def reason(error: BaseException) -> tuple[str, str]:
    """(kind, one line) of a failure that its own process did not record; where memory ran out the line says what to do.

    A process that the kernel killed is just gone. Its count of such kills, which covers the whole machine, tells that memory ran out here.
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
