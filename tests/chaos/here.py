"""The product's own `run` without Ray, in a process that can be killed: a try takes seconds.

Every command is a fork of one process that has imported everything. Nothing that trains has run in that process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
SWEEP = str(ROOT / "tests" / "chaos" / "small_sweep.py")
PATIENCE_S = 300.0
"""Seconds after which a command counts as hanging; an undisturbed one takes a few."""
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link"}
"""Audit events of Python that may change a folder."""


@dataclass(frozen=True)
class Death:
    """When a command is killed: after so many seconds, or just before its n-th change in the store; the other is negative."""

    after_s: float = -1.0
    before_change: int = -1

    def __str__(self) -> str:
        return f"after {self.after_s:.2f} s" if self.after_s >= 0 else f"before change {self.before_change}"


NEVER = Death()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """exit code; the negative number of the signal where one ended it"""
    said: str
    seconds: float
    killed: bool = False
    """whether it was killed as asked"""

    @property
    def fault(self) -> str:
        """What no command may do: die of a signal that nobody sent, print a traceback, hang. Empty if it did nothing of it."""
        if self.killed:
            return ""
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if self.code > 2:
            return f"hangs or ends with code {self.code}"
        return f"prints a traceback: {self.said.strip()[-1500:]}" if "Traceback (most recent" in self.said else ""


HUNG = 99
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "CLEANSWEEP_LEDGER": "1",
}  # fmt: skip


@cache
def context() -> Any:
    """Starts the process that commands are forked from, which has this environment, with the first command."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.chaos.preload"])
    with patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return made


def leave() -> None:
    """End the process that commands are forked from, which holds the memory of all that it imported; another command starts it again."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # Python ends it only with the process that started it
    context.cache_clear()


def command(store: Path, death: Death = NEVER, first: Callable[[], None] | None = None) -> Ended:
    """Run `cleansweep run small_sweep.py --store STORE` to its end or to its death. `first` is called in its process before it begins."""
    with tempfile.NamedTemporaryFile() as said:  # not beside the store, whose disk may be full
        return _ended(store, death, Path(said.name), first)


def _ended(store: Path, death: Death, said: Path, first: Callable[[], None] | None) -> Ended:
    process = context().Process(target=_command, args=(str(store), str(said), death.before_change, "", first))
    began = time.monotonic()
    process.start()
    process.join(death.after_s if death.after_s >= 0 else PATIENCE_S)
    killed = hung = False
    if process.is_alive():
        killed, hung = death.after_s >= 0, death.after_s < 0
        process.kill()
        process.join()
    code = HUNG if hung else process.exitcode
    killed = (killed or death.before_change >= 0) and code == -signal.SIGKILL
    return Ended(code, said.read_text(errors="replace"), time.monotonic() - began, killed)


def count_changes(store: Path) -> int:
    """Run the command to its end, and count its changes in the store."""
    counted = store.with_name(f"{store.name}.count")
    process = context().Process(target=_command, args=(str(store), os.devnull, -1, str(counted)))
    process.start()
    process.join()
    assert process.exitcode == 0, f"the undisturbed run ended with {process.exitcode}"
    changes = int(counted.read_text())
    counted.unlink()
    return changes


def _command(store: str, said: str, before_change: int, counted: str = "", first: Callable[[], None] | None = None) -> None:
    """In the forked process."""
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    from orchestrator.commands import cli
    from tests.inprocess import without_ray

    watch = Watch(store, before_change)
    if before_change >= 0 or counted:
        sys.addaudithook(watch)
    if first is not None:
        first()
    with without_ray():
        code = cli.run(["run", SWEEP, "--store", store])
    sys.stdout.flush()
    watch.store = "\0"
    if counted:
        Path(counted).write_text(str(watch.seen))
    sys.exit(code)


class Watch:
    """Counts what Python changes in the store and kills this process just before one change.

    What libraries write without Python (tensors, tables) is not seen: for that there are deaths by the clock.
    """

    def __init__(self, store: str, before_change: int) -> None:
        self.store, self.last, self.seen = store, before_change, 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(given[0], str | os.PathLike) or not os.fspath(given[0]).startswith(self.store):
            return
        if event == "open" and not (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
