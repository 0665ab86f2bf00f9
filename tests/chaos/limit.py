"""A limit on the memory of a command and of all that it starts, as a container has one: a cgroup of Linux, which only root can make."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

PLACES = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
"""Where groups with limits of memory are made, in version 1 and in version 2."""
FILES = {"limit": ("memory.limit_in_bytes", "memory.max"), "events": ("memory.oom_control", "memory.events")}


class Limit:
    """A group of processes, and how much memory they may have together. `within` is what a command is started by to be in it; Ray, which
    looks for the limit in one place only, finds it there."""

    def __init__(self, name: str) -> None:
        """OSError where no such group can be made."""
        self.version = 0 if PLACES[0].is_dir() else 1
        self.place = PLACES[self.version]
        if self.version and "memory" not in (self.place / "cgroup.subtree_control").read_text().split():
            (self.place / "cgroup.subtree_control").write_text("+memory")
        self.path = self.place / name
        self.path.mkdir(exist_ok=True)
        if not self._file("limit").exists():
            self.path.rmdir()
            raise OSError(errno.ENOTSUP, "the kernel has no limit of memory", str(self.path))

    def _file(self, name: str) -> Path:
        return self.path / FILES[name][self.version]

    def set(self, limit: int) -> None:
        """Allow so many bytes; 0: as many as there are."""
        self._file("limit").write_text(str(limit) if limit else ("-1", "max")[self.version])

    def kills(self) -> int:
        """How many processes of the group the kernel has killed because there was no memory left."""
        fields = dict(line.split() for line in self._file("events").read_text().splitlines())
        return int(fields["oom_kill"])

    @property
    def within(self) -> list[str]:
        enter = f'echo $$ > {self.path}/cgroup.procs && mount --bind {self.path} {self.place} && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "sh"]

    def remove(self) -> None:
        """Remove the group, whose processes have ended or end soon; what does not is left in the group above."""
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        for pid in (self.path / "cgroup.procs").read_text().split():
            (self.place / "cgroup.procs").write_text(pid)
        self.path.rmdir()


def why_not() -> str:
    """Why there can be no limit here; empty if there can."""
    if os.geteuid():
        return "a limit of memory needs root"
    try:
        one = Limit(f"cschaos-{os.getpid()}-probe")
        one.remove()
    except OSError as error:
        return f"no limit of memory can be made here ({error})"
    return ""
