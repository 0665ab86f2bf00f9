"""Kills under a real Ray: the driver, a training worker, a trial, the raylet, the GCS, or the driver's whole process group."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from tests.chaos.here import SWEEP
from tests.chaos.state import differences, leftovers, state, tracked
from tests.chaos.tried import Tried, log_uniform
from tests.experiments import furnish, make_database, results

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = {
    "driver": "", "worker": "ray::RayTrainWorker", "trial": "ray::ImplicitFunc", "raylet": "raylet", "GCS": "gcs_server", "group": "",
}  # fmt: skip
"""Whom a kill meets → how the process is named; the first and last are the command itself, alone and with its process group."""
DATA = ("world", "index", "testset")
MARK = "CLEANSWEEP_CHAOS"
POLL_S = 0.05
PATIENCE_S = 600.0
"""Seconds after which a command counts as hanging."""
GONE_S = 60.0
"""Seconds in which everything that a command started has to end after it."""
COMMANDS = 4
"""How often the command is given without a fault until it counts as lost."""


class Command:
    """`cleansweep run small_sweep.py --store STORE` on two cores with two training workers, or with other words after `run`. Its processes
    are known by a mark."""

    def __init__(
        self, folder: Path, store: Path, words: Sequence[str] = (SWEEP, "--workers", "2", "--cpus-per-worker", "0.5"),
        within: Sequence[str] = (), **more: str,
    ) -> None:
        """`within`: what it is started by, which becomes the command; `more`: further variables of its environment."""
        self.mark, self.out = secrets.token_hex(8), folder / f"{store.name}.said"
        (folder / "t").mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"OMP_NUM_THREADS": "1", "CLEANSWEEP_LEDGER": "1", "TMPDIR": str(folder / "t"), MARK: self.mark, **more}
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "orchestrator", "run", *words, "--store", str(store)],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )
        self.began = time.monotonic()

    def ran(self) -> float:
        return time.monotonic() - self.began

    def own(self) -> Iterator[psutil.Process]:
        """Every process that the command started and that is still there."""
        for process in psutil.process_iter():
            try:
                if self.marks(process.pid) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except (psutil.Error, OSError):
                continue

    def marks(self, pid: int) -> bool:
        """Whether the process has the mark. psutil reads no further than an empty entry, and Ray's agents have some before their others."""
        return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def find(self, victim: str) -> psutil.Process | None:
        """A process of the command with the victim's name."""
        for process in self.own():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if words and (words[0].startswith(VICTIMS[victim]) or Path(words[0]).name == VICTIMS[victim]):
                return process
        return None

    def wait(self) -> tuple[int, str]:
        """Wait for its end; gives the exit code and what it said."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return 99, f"hangs for {PATIENCE_S:.0f} s: {self.said()[-500:]}"
        return self.process.returncode, self.said()

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def clear(self) -> tuple[float, list[str]]:
        """Wait until its processes have ended, and kill those that do not: (seconds, their names)."""
        began = time.monotonic()
        while (left := list(self.own())) and time.monotonic() - began < GONE_S:
            time.sleep(0.5)
        names = []
        for process in left:
            try:
                names.append(f"{process.pid} {' '.join(process.cmdline()).strip()[-80:]}")
                process.kill()
            except psutil.Error:
                continue
        return time.monotonic() - began, names


class Kill:
    name = "kill"
    about = f"SIGKILL under a real Ray ({', '.join(VICTIMS)} in turn) at a random moment, then the same command"

    _made: dict[Path, Kill] = {}

    @classmethod
    def of(cls, folder: Path) -> Kill:
        """The one of this folder, prepared: the undisturbed run is made once."""
        if folder not in cls._made:
            cls().prepare(folder)
        return cls._made[folder]

    def prepare(self, folder: Path) -> str:
        if folder in self._made:
            vars(self).update(vars(self._made[folder]))
            return ""
        self.folder, self.store = folder, folder / "undisturbed-ray"
        make_database(folder)
        self.life: dict[str, float] = dict.fromkeys(VICTIMS, 0.0)
        first: dict[str, float] = {}
        command = Command(folder, self.store)
        try:
            while command.process.poll() is None:
                for victim in VICTIMS:
                    if VICTIMS[victim] and command.find(victim):
                        self.life[victim] = command.ran() - first.setdefault(victim, command.ran())
                time.sleep(0.2)
            code, said = command.wait()
            self.life |= {"driver": command.ran(), "group": command.ran()}
        finally:
            command.process.kill()
            command.clear()
        assert code == 0, said
        self.state, self.points, self.runs = state(self.store), results(self.store), tracked(self.store)
        print(f"kill: the undisturbed run took {self.life['driver']:.0f} s", flush=True)
        self._made[folder] = self
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        """The victims in turn. Every other round copies what is before the victim from the undisturbed store, which saves time: index,
        world and test set; before a trial the pre-training too."""
        victim = list(VICTIMS)[number % len(VICTIMS)]
        store = self.folder / f"kill-{number}"
        store.mkdir()
        copied: tuple[str, ...] = ()
        if victim in ("worker", "trial") or number // len(VICTIMS) % 2:
            copied = (*DATA, "poison", "cleanset", "pretrain") if victim == "trial" else DATA
            furnish(store, self.store, *copied)
        try:
            kills = [victim] if draw.random() < 0.7 else [victim, victim]
            return self.kill(store, kills, draw)
        finally:
            shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree(self.folder / "t", ignore_errors=True)

    def kill(self, store: Path, kills: list[str], draw: np.random.Generator) -> Tried:
        done: list[str] = []
        wrong: list[str] = []
        commands, code = 0, -1
        while code and commands < len(kills) + COMMANDS and not wrong:
            command = Command(self.folder, store)
            try:
                if commands < len(kills):
                    done += self.strike(command, kills[commands], draw)
                commands += 1
                code, said = command.wait()
                took, left = command.clear()
            finally:
                command.process.kill()
                command.clear()
            if done:
                done[-1] += f" (code {code}; all ended {took:.0f} s later)" if commands <= len(kills) else ""
            if left:
                wrong.append(f"still alive {GONE_S:.0f} s after the command: {'; '.join(left)}")
            if "Traceback (most recent" in said:
                wrong.append(f"prints a traceback: {said.strip()[-1500:]}")
            if code == 99:
                wrong.append(said)
        if code:
            wrong.append(f"the same command ends with code {code}: {said.strip()[-300:]}")
        else:
            wrong += self.compare(store)
        return Tried("; ".join(done) or f"the end came before the kill of the {kills[0]}", bool(done), wrong, commands)

    def strike(self, command: Command, victim: str, draw: np.random.Generator) -> list[str]:
        """Wait for the victim, then for a random time of its life, and kill it; returns what was done, nothing where it came too late."""
        while VICTIMS[victim] and command.find(victim) is None:
            if command.process.poll() is not None:
                return []
            time.sleep(POLL_S)
        after_s = log_uniform(draw, 0.05 if VICTIMS[victim] else 1.0, self.life[victim])
        until = command.ran() + after_s
        while command.ran() < until:
            if command.process.poll() is not None:
                return []
            time.sleep(POLL_S)
        if victim == "driver":
            command.process.kill()
        elif victim == "group":
            os.killpg(command.process.pid, signal.SIGKILL)
        else:
            found = command.find(victim)
            if found is None:
                return []
            found.kill()
        return [f"{victim} killed {after_s:.1f} s after its start"]

    def compare(self, store: Path) -> list[str]:
        """What a store in which the command ended well has otherwise than the undisturbed one."""
        found = differences(self.state, state(store)) + [f"{name} is left over" for name in leftovers(store)]
        if results(store) != self.points:
            found.append("points.csv differs")
        runs = tracked(store)
        if runs != self.runs:
            found.append(f"MLflow differs: {len(runs)} runs for {len(self.runs)}, {len(set(runs) - set(self.runs))} of them are others")
        return found
