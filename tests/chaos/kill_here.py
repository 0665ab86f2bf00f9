"""Kills of a run in one process, without Ray: several in a row, by the clock and just before a change in the store."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path

import numpy as np

from tests.chaos import here
from tests.chaos.here import Death, Ended
from tests.chaos.state import differences, leftovers, state
from tests.chaos.tried import Tried, log_uniform


class Undisturbed:
    """A store whose run nothing disturbed, made once for all kinds: what it holds, how long it took, how many changes it needed."""

    _made: dict[Path, Undisturbed] = {}

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "undisturbed"
        self.changes = here.count_changes(self.store)
        self.state = state(self.store)
        left = leftovers(self.store)
        assert self.state and not left, f"an undisturbed run leaves {left}"

    @cached_property
    def seconds(self) -> float:
        """How long a run takes; the first of all took longer, for the process that commands are forked from was started with it."""
        again = self.folder / "again"
        ended = here.command(again)
        found = [f"code {ended.code}: {ended.said}"] if ended.code else differences(self.state, state(again))
        assert not found, f"a second undisturbed run differs: {found}"
        shutil.rmtree(again)
        return ended.seconds

    @classmethod
    def of(cls, folder: Path) -> Undisturbed:
        if folder not in cls._made:
            cls._made[folder] = cls(folder)
        return cls._made[folder]

    def compare(self, store: Path) -> list[str]:
        """How a store that a command ended well in differs from this one, and what is left over in it."""
        return differences(self.state, state(store)) + [f"{name} is left over" for name in leftovers(store)]

    def ended_well(self, store: Path, ended: Ended, when: str = "") -> list[str]:
        """What is wrong with the end of a command that nothing disturbed any more, and with the store that it left. `when`: why it should
        have ended well."""
        if ended.code or ended.fault:
            return [ended.fault or f"{when} the same command ends with code {ended.code}: {ended.said.strip()[-300:]}".strip()]
        return self.compare(store)


def death(draw: np.random.Generator, undisturbed: Undisturbed) -> Death:
    """A random death: half of them before a change in the store, the others at a moment of the undisturbed run."""
    if draw.random() < 0.5:
        return Death(before_change=int(draw.integers(1, undisturbed.changes + 1)))
    if draw.random() < 0.5:
        return Death(after_s=float(draw.uniform(0, undisturbed.seconds)))
    return Death(after_s=log_uniform(draw, 0.05, undisturbed.seconds))


class KillHere:
    name = "kill-here"
    about = "SIGKILL of a run in one process without Ray, one to four times in a row, then the same command"

    def prepare(self, folder: Path) -> str:
        self.folder = folder
        self.undisturbed = Undisturbed.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        store = self.folder / f"kill-here-{number}"
        try:
            return self.kill(store, [death(draw, self.undisturbed) for _ in range(int(draw.integers(1, 5)))])
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def kill(self, store: Path, deaths: list[Death]) -> Tried:
        """Give the command with each of these deaths in turn, then without one."""
        said, commands = [], 0
        for one in deaths:
            ended = here.command(store, one)
            commands += 1
            if ended.killed:
                said.append(str(one))
            elif ended.code or ended.fault:  # it was not even killed
                break
        else:
            ended = here.command(store)
            commands += 1
        what = f"killed {', '.join(said)}" if said else "the end came before the kills"
        return Tried(what, bool(said), self.undisturbed.ended_well(store, ended), commands)
