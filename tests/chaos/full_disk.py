"""A small file system that fills, runs out of inodes, or becomes read-only while a run writes to it. Needs root on Linux."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tests.chaos import here
from tests.chaos.here import Ended
from tests.chaos.kill_here import Undisturbed
from tests.chaos.tried import Tried

STEPS = 20
BLOCK = 4096
IMAGE_BYTES = 128 << 20
SAYS = {"size": "No space left", "inodes": "No space left", "read-only": "Read-only file system", "remounted": "Read-only file system"}


class FullDisk:
    name = "full-disk"
    about = "a disk that fills, has no inode left, breaks, or is made read-only, in mid-run; then it is well, and the same command"

    def prepare(self, folder: Path) -> str:
        self.folder = folder
        try:
            with disk(folder / "probe", "size=1m"):
                pass
            shell("losetup", "--find")
            shell("mkfs.ext4", "-V")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            return f"no file system can be mounted here ({said.decode(errors='replace').strip()})"
        self.undisturbed = Undisturbed.of(folder)
        with disk(folder / "large", "size=1g") as mounted, peaks(mounted) as peak:
            ended = here.command(mounted / "store")
            assert ended.code == 0, ended.said
        self.blocks, self.inodes = peak
        return ""

    def again(self, number: int, draw: np.random.Generator) -> Tried:
        """The four ways in turn; the n-th try of each way at the next of 20 moments."""
        way, step = list(SAYS)[number % len(SAYS)], 7 * (number // len(SAYS)) % STEPS + 1
        after_s = self.undisturbed.seconds * (step - draw.random()) / STEPS
        if way == "read-only":
            return self.broken(after_s)
        if way == "remounted":
            return self.remounted(after_s)
        options = {
            "size": f"size={self.blocks * BLOCK * step // STEPS // BLOCK * BLOCK}",
            "inodes": f"size=1g,nr_inodes={2 + self.inodes * step // STEPS}",
        }[way]
        with disk(self.folder / "small", options) as mounted:
            ended = here.command(mounted / "store")
            remount(mounted, "size=1g,nr_inodes=1000000")
            return self.judge(mounted / "store", ended, way, f"{way} at moment {step} of {STEPS}")

    def broken(self, after_s: float) -> Tried:
        """An ext4 that stops in mid-run as after an error of its disk: from then on it is read-only, and what it had not written is lost.
        Then it is repaired and mounted again."""
        image, folder = self.folder / "image", self.folder / "broken"
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        shell("mkfs.ext4", "-q", image)
        folder.mkdir()
        shell("mount", "-o", "loop", image, folder)
        try:
            timer = threading.Timer(after_s, remount, (folder, "abort"))
            timer.start()
            ended = here.command(folder / "store")
            timer.cancel()
            timer.join()
            shell("umount", folder)
            subprocess.run(["e2fsck", "-fy", image], capture_output=True)  # ends with 1 where it mended something
            shell("mount", "-o", "loop", image, folder)
            return self.judge(folder / "store", ended, "read-only", f"read-only after {after_s:.2f} s")
        finally:
            shell("umount", folder)
            folder.rmdir()
            image.unlink()

    def remounted(self, after_s: float) -> Tried:
        """A sound file system that somebody makes read-only in mid-run: at the first moment at which no file is open for writing, for the
        kernel refuses it before."""
        with disk(self.folder / "sound", "size=1g") as mounted:
            over = threading.Event()

            def close() -> None:
                over.wait(after_s)
                closed = False
                while not closed and not over.is_set():
                    with suppress(subprocess.CalledProcessError):
                        remount(mounted, "ro")
                        closed = True

            thread = threading.Thread(target=close)
            thread.start()
            ended = here.command(mounted / "store")
            over.set()
            thread.join()
            remount(mounted, "rw")
            return self.judge(mounted / "store", ended, "remounted", f"made read-only after {after_s:.2f} s")

    def judge(self, store: Path, ended: Ended, way: str, what: str) -> Tried:
        if ended.code == 0:
            return Tried(f"{what}: it was enough", False, self.undisturbed.compare(store))
        wrong = [ended.fault] if ended.fault else []
        if not wrong and SAYS[way] not in ended.said:
            wrong.append(f"it does not say {SAYS[way]!r}: {ended.said.strip()[-300:]}")
        wrong += self.undisturbed.ended_well(store, here.command(store), "with a sound disk")
        return Tried(what, True, wrong, 2)


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory, mounted here."""
    folder.mkdir(parents=True)
    try:
        shell("mount", "-t", "tmpfs", "-o", options, "chaos", folder)
        try:
            yield folder
        finally:
            shell("umount", "--lazy", folder)
    finally:
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    shell("mount", "-o", f"remount,{options}", folder)


def shell(*words: str | Path) -> None:
    """Run a command; CalledProcessError where it fails."""
    subprocess.run([*map(str, words)], check=True, capture_output=True)


@contextmanager
def peaks(folder: Path) -> Iterator[list[int]]:
    """The most blocks and inodes that were in use within; filled in when the block ends."""
    most, over = [0, 0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            now = os.statvfs(folder)
            most[:] = max(most[0], (now.f_blocks - now.f_bfree) * now.f_frsize // BLOCK), max(most[1], now.f_files - now.f_ffree)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()

