"""A filter of this process's system calls that lets locking a file fail, as on a file system without locks. Linux, x86_64 or aarch64."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of the classic BPF (linux/filter.h)
AT_CALL, AT_ARCH, AT_SECOND = 0, 4, 24  # places in struct seccomp_data (linux/seccomp.h); the lower half of the second argument
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NO_NEW_PRIVS, SET_FILTER, ALL_THREADS = 38, 1, 1
LOCKING = (5, 6, 7, 36, 37, 38)
"""F_GETLK, F_SETLK, F_SETLKW, and the same three of open file descriptions."""
MACHINES = {"x86_64": (0xC000003E, 73, 72, 317), "aarch64": (0xC00000B7, 32, 25, 277)}
"""Machine → its AUDIT_ARCH, and its numbers of the calls flock, fcntl and seccomp."""


def deny_locks(number: int, after_s: float = 0.0) -> None:
    """From now on, or after so many seconds, flock and the locks of fcntl fail in every thread of this process with this errno.

    What it starts inherits that. Nothing undoes it. OSError if the kernel refuses.
    """
    if after_s > 0:
        timer = threading.Timer(after_s, deny_locks, (number,))
        timer.daemon = True
        timer.start()
        return
    _, _, _, seccomp = MACHINES[platform.machine()]
    code = _program(number)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))  # struct sock_fprog
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if libc.syscall(seccomp, SET_FILTER, ALL_THREADS, program):
        raise OSError(ctypes.get_errno(), "seccomp")


def _program(number: int) -> bytes:
    """The filter: struct sock_filter {code, jump if true, jump if false, value}, jumps counted in instructions."""
    arch, flock, fcntl, _ = MACHINES[platform.machine()]
    denied = 6 + len(LOCKING) + 1
    program = [(LOAD, 0, 0, AT_ARCH), (EQUAL, 0, denied - 3, arch), (LOAD, 0, 0, AT_CALL), (EQUAL, denied - 4, 0, flock)]
    program += [(EQUAL, 0, denied - 6, fcntl), (LOAD, 0, 0, AT_SECOND)]
    program += [(EQUAL, denied - 7 - place, 0, command) for place, command in enumerate(LOCKING)]
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | number)]
    return b"".join(struct.pack("HBBI", *one) for one in program)


TRY = """
import errno, fcntl, sys, tempfile, threading
from tests.chaos.seccomp import deny_locks
go, wrong = threading.Event(), []
def locks():
    go.wait()
    with tempfile.TemporaryFile() as file:
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                wrong.append(lock)
            except OSError as error:
                wrong.extend([error] if error.errno != int(sys.argv[1]) else [])
        fcntl.fcntl(file, fcntl.F_GETFL)
        file.write(b"x")
thread = threading.Thread(target=locks)
thread.start()
deny_locks(int(sys.argv[1]))
go.set()
thread.join()
locks()
sys.exit(f"locks do not fail: {wrong}" if wrong else 0)
"""


def why_not(number: int) -> str:
    """Why locks cannot be made to fail here; empty where they can, which a process of its own has tried in two threads."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"the filter is written for Linux on {' and '.join(MACHINES)}, and this is {sys.platform} on {platform.machine()}"
    tried = subprocess.run([sys.executable, "-c", TRY, str(number)], capture_output=True, text=True, env={**os.environ})
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or [f"code {tried.returncode}"])[-1]
