"""Limits of requests to servers: rate, number, time, and which task may send next."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from annotated_types import Interval

from datasets.component import Component
from datasets.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Manners(Component):
    """Limits of the requests. They may change while a list is being fetched."""

    threads: Annotated[int, Interval(ge=1, le=1024)] = 32
    """Downloads at a time in a task."""
    rate: Annotated[float, Interval(ge=0, le=1_000_000)] = 0.0
    """Requests a second, of all tasks together; 0: no limit."""
    host_rate: Annotated[float, Interval(ge=0, le=1_000_000)] = 10.0
    """Requests a second to one host, of all tasks together; 0: no limit."""
    host_connections: Annotated[int, Interval(ge=0, le=1024)] = 4
    """Requests at a time to one host, of all tasks together; 0: no limit."""
    timeout: Annotated[float, Interval(ge=0.01, le=3600)] = 10.0
    """Seconds to connect, and to wait for the next bytes."""
    deadline: Annotated[float, Interval(ge=0.01, le=3600)] = 30.0
    """Seconds for one attempt at a picture, redirects included, even while its server keeps sending. The look-up of a host's name counts,
    but cannot be cut short: the system's resolver has its own limit."""
    retries: Annotated[int, Interval(ge=0, le=20)] = 2
    """Further attempts after failures that may be temporary: timeouts, 5xx, 429, 408, connections reset or cut."""
    backoff: Annotated[float, Interval(ge=0, le=3600)] = 1.0
    """Seconds before the second attempt. Each further wait is twice as long, and every wait is lengthened by up to half at random."""
    max_wait: Annotated[float, Interval(ge=0, le=86400)] = 60.0
    """Longest Retry-After that is obeyed, in seconds; a longer one ends the attempts."""
    redirects: Annotated[int, Interval(ge=0, le=30)] = 5
    """Redirects followed for a picture."""
    user_agent: str = "Mozilla/5.0 (compatible; cleansweep)"
    """User-Agent header of the requests."""

    def __post_init__(self) -> None:
        if not self.user_agent.isascii() or not self.user_agent.isprintable():
            raise InputError("fetch: user_agent holds other characters than printable ASCII.")


class Failed(Exception):
    """A picture could not be downloaded. `may_pass`: another attempt may succeed; `wait_s`: seconds that the server asks to wait, if it
    does."""

    def __init__(self, status: str, detail: object = "", *, may_pass: bool = False, wait_s: float | None = None) -> None:
        super().__init__(status)
        self.status, self.detail, self.may_pass, self.wait_s = status, str(detail)[:300], may_pass, wait_s


# ---- taking turns --------------------------------------------------------------------------------------


class Turns(Protocol):
    """Decides which thread may send a request; one object for all tasks."""

    def enter(self, host: str) -> tuple[bool, float]:
        """(True, s): the request may be sent in s seconds; (False, s): ask again in s seconds."""

    def leave(self, host: str) -> None:
        """The request is over."""

    def pause(self, host: str, seconds: float) -> None:
        """Send no request to the host for that long."""


class Pacer:
    """Turns by rate and number of open requests. A turn that is never given back, because its process died, expires 60 seconds after the
    deadline."""

    def __init__(self, manners: Manners, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 1 / manners.rate if manners.rate else 0.0
        self._host_gap = 1 / manners.host_rate if manners.host_rate else 0.0
        self._at_once = manners.host_connections or 1 << 30
        self._lease_s, self._clock, self._lock = manners.deadline + 60, clock, threading.Lock()
        self._next, self._next_of = 0.0, dict[str, float]()
        self._open: defaultdict[str, list[float]] = defaultdict(list)

    def enter(self, host: str) -> tuple[bool, float]:
        with self._lock:
            now = self._clock()
            leases = [end for end in self._open[host] if end > now]
            self._open[host] = leases
            if self._next_of.get(host, 0.0) > now:
                return False, self._next_of[host] - now
            if len(leases) >= self._at_once:
                return False, 0.05
            start = max(now, self._next)
            self._next, self._next_of[host] = start + self._gap, start + self._host_gap
            leases.append(start + self._lease_s)
            if len(self._next_of) > 100_000:  # forget hosts that have not been used for long
                self._next_of = {name: at for name, at in self._next_of.items() if at > now}
                self._open = defaultdict(list, {name: ends for name, ends in self._open.items() if ends})
            return True, start - now

    def leave(self, host: str) -> None:
        with self._lock:
            leases = self._open.get(host)
            if leases:
                leases.pop(0)
            if not leases:
                self._open.pop(host, None)

    def pause(self, host: str, seconds: float) -> None:
        with self._lock:
            self._next_of[host] = max(self._next_of.get(host, 0.0), self._clock() + seconds)


class Queue:
    """The turns of one task. Of its threads that wait for the same host, only one asks at a time."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self._guard = turns, threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        granted, seconds = self.turns.enter(host)
        if not granted:
            with self._guard:
                lock = self._locks[host]
            with lock:
                while not granted:
                    granted, seconds = self.turns.enter(host)
                    if not granted:
                        time.sleep(seconds)
        time.sleep(seconds)
        try:
            yield
        finally:
            self.turns.leave(host)
