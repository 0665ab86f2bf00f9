"""A store that was damaged: one byte of a file changed, a file cut, a file deleted. The command has to notice, or not to need it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from orchestrator.store import Store, verify
from tests.chaos import here
from tests.chaos.kill_here import Undisturbed, death
from tests.chaos.state import UNCOMPARED, differences, state
from tests.chaos.tried import Tried

WAYS = ("flipped", "cut", "deleted")
LATER = {"cleanings": ("clean", "sweep"), "all but data": ("pretrain", "clean", "sweep"), "the record": ("sweep",), "nothing": ()}
"""What is removed from a finished store before it is damaged, so that the command has to read what is left."""


class Flip:
    name = "flip"
    about = "a byte flipped, a file cut or deleted in a finished or unfinished store, then the same command"

    def prepare(self, folder: Path) -> str:
        self.folder = folder
        self.undisturbed = Undisturbed.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        store = self.folder / f"flip-{number}"
        try:
            stands = self.unfinished(store, draw) if draw.random() < 0.4 else self.finished(store, draw)
            damaged = pick(store, draw)
            if damaged is None:
                return Tried(f"{stands}: it holds no file yet", False)
            way = WAYS[int(draw.integers(len(WAYS)))]
            where = damage(damaged, way, draw)
            return self.judge(store, damaged, f"{stands}: {damaged.relative_to(store)} {way}{where}")
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def finished(self, store: Path, draw: np.random.Generator) -> str:
        """Copy the undisturbed store, and remove some of its last stages."""
        shutil.copytree(self.undisturbed.store, store)
        missing = list(LATER)[int(draw.integers(len(LATER)))]
        for kind in LATER[missing]:
            shutil.rmtree(store / kind)
        return f"finished store without {missing}" if LATER[missing] else "finished store"

    def unfinished(self, store: Path, draw: np.random.Generator) -> str:
        """A store whose run was killed."""
        one = death(draw, self.undisturbed)
        ended = here.command(store, one)
        return f"store killed {one}" if ended.killed else "store killed after the end"

    def judge(self, store: Path, damaged: Path, what: str) -> Tried:
        """Run the command: it ends with the same result, or it names the damaged file or its folder and, once that is deleted, does so."""
        stage = store.joinpath(*damaged.relative_to(store).parts[:2])
        before = damaged.read_bytes() if damaged.exists() else None
        ended = here.command(store)
        wrong, commands, refused = [ended.fault] if ended.fault else [], 1, ended.code != 0
        if refused and not wrong:
            if damaged.name not in ended.said and stage.name not in ended.said:
                wrong.append(f"the refusal names no file: {ended.said.strip()[-300:]}")
            shutil.rmtree(stage, ignore_errors=True)
            ended, commands = here.command(store), 2
            if ended.code or ended.fault:
                wrong.append(ended.fault or f"refused although its folder was deleted: {ended.said.strip()[-300:]}")
        if not wrong:
            wrong = self.compare(store, damaged, before)
            if refused and not stage.exists():  # nothing that was left to make needed it
                wrong = [line for line in wrong if not line.startswith(f"{stage.relative_to(store)}/")]
        return Tried(what, True, wrong, commands, refused)

    def compare(self, store: Path, damaged: Path, before: bytes | None) -> list[str]:
        """How the store differs from the undisturbed one. The damaged file may still be damaged, if checking the store names it."""
        name = str(damaged.relative_to(store))
        found = differences(self.undisturbed.state, state(store))
        after = damaged.read_bytes() if damaged.exists() else None
        if after == before and any(line.startswith(f"{name} ") for line in found):
            found = [line for line in found if not line.startswith(f"{name} ")]
            if not noticed(Store(store), damaged):
                found.append(f"{name} is damaged, and checking the store does not say so")
        return found


def noticed(store: Store, damaged: Path) -> bool:
    """Whether `cleansweep show --verify` names the file: one of an artefact, or a manifest."""
    bad = [artefact.folder / name for artefact in store.all() for name in verify(artefact)]
    return damaged in bad or damaged.parent in [folder for folder, _ in store.damaged()]


def pick(store: Path, draw: np.random.Generator) -> Path | None:
    """A random file of a stage, or None. Every other time it is one of an unfinished stage, if there is any; every other time it is one of
    a random folder, so that a folder of many pictures does not count more.
    """
    files = [path for path in sorted(store.glob("*/*/**/*")) if path.is_file() and path.relative_to(store).parts[0] not in UNCOMPARED]
    if draw.random() < 0.5:
        files = [path for path in files if path.relative_to(store).parts[1].startswith(".work-")] or files
    if draw.random() < 0.5 and files:
        folders = sorted({path.parent for path in files})
        chosen = folders[int(draw.integers(len(folders)))]
        files = [path for path in files if path.parent == chosen]
    return files[int(draw.integers(len(files)))] if files else None


def damage(path: Path, way: str, draw: np.random.Generator) -> str:
    """Damage a file; returns where, in words. What is written is a new file, as a copy back from a bad disk would be."""
    data = bytearray(path.read_bytes())
    path.unlink()
    if way == "deleted" or not data:
        return ""
    at = int(draw.integers(len(data)))
    if way == "cut":
        path.write_bytes(data[:at])
        return f" at byte {at} of {len(data)}"
    data[at] ^= 1 << int(draw.integers(8))
    path.write_bytes(data)
    return f" at byte {at} of {len(data)}"
