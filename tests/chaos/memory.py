"""A training worker or a trial that takes more memory than the command may have: within a limit as of a container, either so fast that the
kernel kills it, or so slowly that Ray's monitor does; once, or at every attempt until the command gives up."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import psutil

from tests.chaos.hungry.sitecustomize import HUNGER
from tests.chaos.kill import DATA, PATIENCE_S, POLL_S, VICTIMS, Command, Kill
from tests.chaos.limit import Limit, why_not
from tests.chaos.tried import Tried, log_uniform
from tests.experiments import furnish

WAYS = (
    ("worker", "slow", "once"), ("trial", "fast", "every time"), ("trial", "slow", "once"), ("worker", "fast", "every time"),
    ("worker", "fast", "once"), ("trial", "slow", "every time"), ("trial", "fast", "once"), ("worker", "slow", "every time"),
)  # fmt: skip
LIMITS = {"worker": 7 << 29, "trial": 5 << 29}
"""Bytes that a command may have, some 1 to 2 GB more than it needs, by the victim."""
RATES = {"slow": 300.0, "fast": 4000.0}
"""MB a second that the victim takes. Ray looks four times a second whether more than 95 % of the limit are used."""
LIFE_S = {"worker": 10.0, "trial": 5.0}
SAYS = re.compile(
    r"(pretrain \S+-[0-9a-f]{12} ran out of memory|trial [0-9a-f]{12} \([^\n]*\))[^\n]*: [^\n]*memory[^\n]*: run fewer [^\n]*more memory"
)
"""How a command says which stage or trial had too little memory, and what to do; in one line."""


class Memory:
    name = "memory"
    about = "a worker or a trial that takes more memory than there is, once or at every attempt, then the same command; needs root"

    def prepare(self, folder: Path) -> str:
        if why := why_not():
            return why
        self.folder, self.alone = folder, Kill.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        victim, speed, often = WAYS[number % len(WAYS)]
        store = self.folder / f"memory-{number}"
        store.mkdir()
        furnish(store, self.alone.store, *DATA, *(("poison", "cleanset", "pretrain") if victim == "trial" else ()))
        limit = Limit(f"cschaos-{os.getpid()}")
        limit.set(LIMITS[victim])
        try:
            return self.starve(store, limit, victim, speed, often, draw)
        finally:
            limit.remove()
            shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree(self.folder / "t", ignore_errors=True)

    def starve(self, store: Path, limit: Limit, victim: str, speed: str, often: str, draw: np.random.Generator) -> Tried:
        hunger = self.folder / "hunger"
        hunger.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [str(Path(__file__).with_name("hungry")), os.environ.get("PYTHONPATH")]))
        first = Command(self.folder, store, within=limit.within, PYTHONPATH=path, **{HUNGER: str(hunger)})
        wrong, commands = [], 1
        try:
            after_s, fed = self.strike(first, store, hunger, victim, RATES[speed], often == "every time", draw)
            code, said = first.wait()
            _, left = first.clear()
            by_kernel, by_ray = limit.kills(), killed_by_ray(self.folder / "t")
            if left:
                wrong.append(f"still alive after the command: {'; '.join(left)}")
            what = f"a {victim} takes {RATES[speed]:g} MB/s {after_s:.1f} s after its start, {often}: {fed} did, the kernel killed "
            what += f"{by_kernel} and Ray {by_ray}; code {code}{f': {found[0]}' if (found := SAYS.search(said)) else ''}"
            wrong += self.judge(store, victim, code, said)
            while code and commands < 4 and not wrong:  # now with enough memory
                again, commands = Command(self.folder, store), commands + 1
                try:
                    code, later = again.wait()
                finally:
                    again.process.kill()
                    again.clear()
            if code and not wrong:
                wrong.append(f"the same command with enough memory ends with code {code}: {later.strip()[-500:]}")
            return Tried(what, by_kernel + by_ray > 0, wrong or self.alone.compare(store), commands)
        finally:
            first.process.kill()
            first.clear()
            shutil.rmtree(hunger)

    def strike(
        self, command: Command, store: Path, hunger: Path, victim: str, rate: float, every: bool, draw: np.random.Generator
    ) -> tuple[float, int]:
        """Let a worker or trial become hungry a random time after its start, and if asked each that follows it in the same stage: (that
        time, how many did)."""
        after_s, met, stage = log_uniform(draw, 0.05, LIFE_S[victim]), set[int](), None
        while command.process.poll() is None and command.ran() < PATIENCE_S:
            time.sleep(POLL_S)
            found = command.find(victim)
            if found is None or found.pid in met or (met and not every):
                continue
            if not met:
                until = command.ran() + after_s
                while command.ran() < until and command.process.poll() is None:
                    time.sleep(POLL_S)
            if victim == "trial":
                works = working(store, found)
                if works is None or works != (stage or works):
                    continue
                stage = works
            (hunger / f".{found.pid}").write_text(str(rate))
            (hunger / f".{found.pid}").rename(hunger / str(found.pid))
            met.add(found.pid)
        return after_s, len(met)

    def judge(self, store: Path, victim: str, code: int, said: str) -> list[str]:
        """What a command that had too little memory did otherwise than it should: end well, or say which stage had too little and what to
        do, with the other trial made."""
        if "Traceback (most recent" in said:
            return [f"prints a traceback: {said.strip()[-1500:]}"]
        if code < 0 or code > 2:
            return [f"ends with code {code}: {said.strip()[-1500:]}"]
        wrong = []
        if code and not SAYS.search(said):
            wrong.append(f"does not say what had too little memory, and what to do: {said.strip()[-1500:]}")
        if code and victim == "trial" and not list(store.glob("clean/*/manifest.json")):
            wrong.append(f"the other trial is not made: {said.strip()[-1500:]}")
        return wrong


def killed_by_ray(folder: Path) -> int:
    """How many processes Ray's monitor killed, by the logs of its servers in a folder for temporary files."""
    logs = [path.read_text(errors="replace") for path in folder.glob("ray/session_*/logs/raylet.out")]
    return sum(int(number) for log in logs for number in re.findall(r"Ray killed (\d+) worker", log))


def working(store: Path, process: psutil.Process) -> str | None:
    """The cleaning that a process works on."""
    for lock in store.glob("clean/.lock-*"):
        try:
            if lock.read_text().startswith(f", {process.pid} on "):
                return lock.name
        except OSError:
            continue
    return None


assert {victim for victim, _, _ in WAYS} <= set(VICTIMS)
