"""A file system on which no file can be locked, as NFS without a lock manager: the command says so at once and writes nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from tests.chaos import here
from tests.chaos.flip import LATER
from tests.chaos.here import Ended
from tests.chaos.kill_here import Undisturbed
from tests.chaos.seccomp import deny_locks, why_not
from tests.chaos.tried import Tried

ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
SAYS = "cannot lock files"


class NoLocks:
    name = "no-locks"
    about = "locks of files that fail with one of three errors, from the start or from a moment of the run on; then with locks again"

    def prepare(self, folder: Path) -> str:
        self.folder = folder
        for number in ERRORS:
            if why := why_not(number):
                return f"no filter of system calls can be had here ({why})"
        self.undisturbed = Undisturbed.of(folder)
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        """The three errors in turn; every other round from the start. The store is new, or its last stages are missing."""
        error, store = ERRORS[number % 3], self.folder / f"no-locks-{number}"
        after_s = 0.0 if number // 3 % 2 == 0 else float(draw.uniform(0, self.undisturbed.seconds))
        missing = ["all", *LATER][int(draw.integers(len(LATER) + 1))]
        if missing in LATER:
            shutil.copytree(self.undisturbed.store, store)
            for kind in LATER[missing]:
                shutil.rmtree(store / kind)
        try:
            return self.deny(store, error, after_s, f"{errno.errorcode[error]}, store without {missing}")
        finally:
            shutil.rmtree(store, ignore_errors=True)

    def deny(self, store: Path, error: int, after_s: float, what: str) -> Tried:
        before = files(store)
        ended = here.command(store, first=partial(deny_locks, error, after_s))
        what += f", after {after_s:.2f} s" if after_s else ", from the start"
        if ended.code == 0 and after_s:
            return Tried(f"{what}: no lock was needed any more", False, self.undisturbed.compare(store))
        wrong = self.told(ended)
        if not after_s and files(store) != before:
            wrong.append(f"it has written: {sorted(dict(files(store).items() ^ before.items()))[:5]}")
        wrong += self.undisturbed.ended_well(store, here.command(store), "with locks")
        return Tried(what, True, wrong, 2)

    @staticmethod
    def told(ended: Ended) -> list[str]:
        """What is wrong with the end of such a command. A trial that found the locks gone has failed: then the code is 1."""
        if ended.fault:
            return [ended.fault]
        if ended.code in (1, 2) and SAYS in " ".join(ended.said.split()):
            return []
        return [f"code {ended.code}, and it does not say what is wrong: {ended.said.strip()[-300:]}"]


def files(store: Path) -> dict[str, str]:
    """Every file below the store, hidden ones too → digest."""
    found = (Path(above) / name for above, _, names in os.walk(store) for name in names)
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
