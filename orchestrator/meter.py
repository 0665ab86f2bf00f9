"""Progress of what is counted: rate and time left, now and then."""

import time
from collections.abc import Callable


def meter(what: str, unit: str, say: Callable[[str], None], every_s: float = 5.0) -> Callable[[int, int], None]:
    """A progress callback (done, all) that says rate and ETA every few seconds."""
    start = told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= every_s:
            told = now
            rate = done / (now - start)
            say(f"{what}  {done}/{total} {unit}  {rate:.1f} {unit}/s  ETA {int((total - done) / max(rate, 1e-9))} s")

    return progress
