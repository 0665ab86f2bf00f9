"""Python imports this before anything else where its folder is on PYTHONPATH: the process's clock then differs by CLEANSWEEP_CHAOS_CLOCK
seconds."""

import os
import time

SHIFT_S = "CLEANSWEEP_CHAOS_CLOCK"


def shift(seconds: float) -> None:
    """Let Python's clock of this process differ by so many seconds from now on. What is not asked of `time` stays: monotonic clocks, the
    times of files, and `datetime.now`."""
    now, now_ns, gmtime, localtime, strftime = time.time, time.time_ns, time.gmtime, time.localtime, time.strftime
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
    time.gmtime = lambda at=None: gmtime(now() + seconds if at is None else at)
    time.localtime = lambda at=None: localtime(now() + seconds if at is None else at)
    time.strftime = lambda form, at=None: strftime(form, localtime(now() + seconds) if at is None else at)


if float(os.environ.get(SHIFT_S, 0)):
    shift(float(os.environ[SHIFT_S]))
