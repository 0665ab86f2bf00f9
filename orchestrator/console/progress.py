"""Progress of something countable: rate and time left, every few seconds."""

import math
import time
from collections.abc import Callable

from orchestrator.console import live
from orchestrator.console.live import Progress
from orchestrator.console.log import log

SMOOTHING_S = 30.0
"""Time constant of the displayed rate: work done this long ago has the weight 1/e."""


def smoothed(start: float = 0.0, since: float | None = None) -> Callable[[float, float], float]:
    """A function (done, now in seconds) -> rate a second: an exponential moving average over time, 0 until something is done.

    Amounts and times decay alike, so it begins as the plain average and does not depend on how regularly it is called. `start` was done at
    the time `since`, by default that of the first call.
    """
    amount = span = 0.0
    last_done, last = start, since

    def rate(done: float, now: float) -> float:
        nonlocal amount, span, last_done, last
        if last is not None and now > last:
            decay = math.exp((last - now) / SMOOTHING_S)
            amount, span = amount * decay + (done - last_done), span * decay + (now - last)
        if last is None or now > last:
            last_done, last = done, now
        return amount / span if span else 0.0

    return rate


def clock(seconds: float) -> str:
    """`1:02:03`; `unknown` while nothing is done yet."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}" if math.isfinite(seconds) else "unknown"


def left(remaining: float, rate: float) -> str:
    """The time left at this rate a second, as text."""
    return clock(remaining / rate if rate > 0 else math.inf)


def tell(progress: Progress, **extra: str) -> None:
    """Log a line of progress, or draw it if the terminal has a view."""
    log.info("%s", progress, extra={"progress": True, **extra})


def meter(what: str, unit: str, every_s: float = 5.0) -> Callable[..., None]:
    """A callback `progress(done, total, more="")` that tells rate and ETA every few seconds; the rate is smoothed over SMOOTHING_S."""
    told = time.monotonic()
    rate = smoothed(since=told)

    def progress(done: int, total: int, more: str = "") -> None:
        nonlocal told
        now = time.monotonic()
        speed = rate(done, now)
        shown = Progress(
            title=what, done=done, total=total, unit=unit, rate=f"{speed:.1f} {unit}/s", left=left(total - done, speed), more=more
        )
        if done < total:
            live.show(what, shown)
        else:
            live.drop(what)
        if now - told >= every_s:
            told = now
            tell(shown)

    return progress
