"""Ends what the Ray of a killed driver leaves behind: `python orphans.py PLACE PID [SESSION ...]`, beside the driver.

The kernel kills Ray's servers together with their driver, and most workers end because their raylet is gone. Its two agents, and a worker
that is just starting, wait for up to 70 s for the GCS, which is dead too: in their start they look for nothing else, and later they want
to tell it that the raylet is gone. This process ends them at once. Until then it waits for the end of a pipe that only the driver holds
open.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

PAUSE_S, TIMES = 0.2, 25
"""Seconds between two searches for processes of the driver's sessions, and how often it searches at most."""


class Watch:
    """That process, beside this one, whose Ray will make its session's folder in `place`; `known`: the sessions there that are not its
    own."""

    def __init__(self, place: Path, known: Iterable[Path]) -> None:
        read, self._open = os.pipe()  # a number and no file, which Python would close before this process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(place), str(os.getpid()), *(path.name for path in known)],
            stdin=read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            start_new_session=True,  # neither ctrl-C nor a kill of this process's group may reach it
        )  # fmt: skip
        os.close(read)

    def stop(self) -> None:
        """End it, because Ray was stopped in order."""
        self.process.kill()
        self.process.wait()
        os.close(self._open)


def end(place: str, pid: int, known: Iterable[str] = ()) -> None:
    """Kill every process of a session in `place` of the process `pid`, but not that process, and none of the sessions that are known."""
    import psutil  # only now, so that the waiting process stays small

    for _ in range(TIMES):
        sessions = [str(path) for path in Path(place).glob(f"session_*_{pid}") if path.name not in known]
        left = [one for one in psutil.process_iter() if one.pid not in (os.getpid(), pid) and any(works_in(one, path) for path in sessions)]
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except psutil.Error:  # it has ended
                continue
        time.sleep(PAUSE_S)


def works_in(process: psutil.Process, session: str) -> bool:
    """Whether a process is Ray's and works for the session: a server or an agent names it in its command; a worker, whose command has
    changed, writes its log there. A program that names or reads those logs is no process of Ray."""
    import psutil

    try:
        program, words = process.exe(), process.cmdline()
        rays = "/ray/" in program
        if not rays and os.path.realpath(program) != os.path.realpath(sys.executable):
            return False
        if any(session in word for word in words) and (rays or any("/ray/" in word and word.endswith(".py") for word in words)):
            return True
        return any(session in file.path and getattr(file, "mode", "w") != "r" for file in process.open_files())  # the mode is Linux's
    except psutil.Error:  # it has ended, or belongs to another user
        return False


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the driver has ended
    end(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
