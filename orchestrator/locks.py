"""Locks on files of the store. A process that dies lets go of its locks, so nothing has to be cleared away by hand."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from datasets.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system answers that cannot lock files: NFS without a lock manager, Lustre mounted without locks, some of FUSE."""


def try_folder(folder: Path) -> None:
    """Write and lock a file in the folder, and remove it. OSError if it cannot be written, InputError if it cannot be locked."""
    probe = folder / ".probe"  # one name, so that the next command removes what a killed one left
    try:
        with probe.open("w+") as file:  # readable too: NFS makes record locks of these, and a shared one needs that
            file.write("x")
            file.flush()
            with locks_of(folder):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, for other commands may be trying it now
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def held(path: Path, what: str, wait_s: float) -> Iterator[None]:
    """Hold the lock file; InputError after `wait_s` seconds of waiting, or where files cannot be locked.

    The file says who holds it and is removed while it is held, so that only a killed process leaves one.
    """
    lock = FileLock(path, timeout=wait_s, poll_interval=0.5, fallback_to_soft=False)
    try:
        with locks_of(path.parent):  # where they fail the file stays: another process may hold it
            lock.acquire()
    except Timeout:
        holder = "another process"
        with suppress(FileNotFoundError):
            holder += path.read_text()
        again = "Wait for it, or stop it, and run the same command again."
        raise InputError(f"{what} is being made by {holder} (lock {path}). {again}") from None
    try:
        path.write_text(f", {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)
        try:
            lock.release()
        except OSError as error:  # its file is gone, so nobody waits for this lock; the next one says what is wrong
            if error.errno not in NO_LOCKS:
                raise


@contextmanager
def locks_of(folder: Path) -> Iterator[None]:
    """Within, InputError says that files in the folder cannot be locked.

    There is no other way that is as safe. A plain file as a mark would outlive a killed process, and from another host nobody could tell
    whether the process that made it still works.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"{folder} lies on a file system that cannot lock files ({error.strerror}), so two commands could write the same stage: "
            "mount it with locks (NFS with a lock manager and without `nolock`, Lustre with `flock`), or give another folder with --store."
        ) from error
