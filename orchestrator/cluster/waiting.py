"""Says what a run on Ray waits for: a lost node, missing resources, or a Ray that has ended.

Ray itself says nothing: with a placement group that fits no node, or with dead servers, it waits for ever.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster import session, start
from orchestrator.console import live
from orchestrator.console.log import WAITING, log

POLL_S = 5.0
"""Seconds between two checks of the nodes."""
GRACE_S = 10.0
"""Seconds that something may be missing before it is reported."""
AGAIN_S = 60.0
"""Seconds until the same line is logged again."""
PULSE_S = 1.0
"""Seconds between two attempts to reach Ray's servers."""
SILENCE_S = 45.0
"""Seconds that a cluster's GCS may stay silent: slightly less than the minute after which Ray ends this process."""
LEAVE_S = 20.0
"""Seconds that the main thread has to leave a Ray that has ended; after that the process is ended."""


class RayEnded(RuntimeError):
    """Ray's servers died during a run. The message is the whole sentence for the user."""


@dataclass(frozen=True)
class Wanted:
    """The resources that the running stages need: `count` processes at the same time, each with these CPUs and GPUs."""

    what: str
    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    more_cpus: float = 0.0
    """Further CPUs, on any node."""

    def fits(self, nodes: list[dict[str, float]]) -> bool:
        """Whether nodes with these resources can hold it."""
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        room = [min((int(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need), default=self.count) for node in nodes]
        in_all = sum(node.get("CPU", 0.0) for node in nodes)
        return sum(room) >= self.count and in_all + 1e-9 >= self.count * self.cpus + self.more_cpus

    def __str__(self) -> str:
        each = [f"{number:g} {name}{'' if number == 1 else 's'}" for number, name in ((self.cpus, "CPU"), (self.gpus, "GPU")) if number]
        extra = f" and {self.more_cpus:g} more for its feed" if self.more_cpus else ""
        return f"{self.what} needs {f'{self.count} times ' if self.count > 1 else ''}{' and '.join(each) or 'nothing'}{extra}"


class Watch:
    """Watches the cluster during a run; `wants` sets what the run needs. Use it through `watching`."""

    def __init__(self, poll_s: float, grace_s: float, again_s: float):
        import ray

        self._poll_s, self._grace_s, self._again_s = poll_s, grace_s, again_s
        self._wanted: Wanted | None = None
        self._left = threading.Event()
        self.ended = ""
        """How Ray ended; empty while it runs."""
        self._missing = _Since()
        self._told: dict[str, float] = {}
        self._away: dict[str, _Since] = {}
        self._seen: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        node_id = ray.get_runtime_context().get_node_id()
        node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
        self._gcs = _address(ray.get_runtime_context().gcs_address)
        self._raylet = (node["NodeManagerAddress"], node["NodeManagerPort"]) if node else None
        self._signals = threading.current_thread() is threading.main_thread()
        self._threads = [threading.Thread(target=target, daemon=True, name=target.__name__) for target in (self._pulse, self._look)]

    def wants(self, wanted: Wanted | None) -> None:
        """Set the resources that the run needs from now on."""
        self._wanted = wanted
        self._missing = _Since()

    def start(self) -> None:
        if self._signals:
            self._before = signal.signal(signal.SIGUSR2, _interrupt)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._left.set()
        if self._signals:
            signal.signal(signal.SIGUSR2, self._before)

    # ---- Ray's servers ----

    def _pulse(self) -> None:
        """Connect to the GCS and to this machine's raylet without Ray, whose own calls hang if these are dead."""
        local, since, refused = not start.named_address(), _Since(), 0
        while not self._left.wait(PULSE_S):
            gcs, raylet = knock(*self._gcs), "" if self._raylet is None else knock(*self._raylet)
            refused = refused + 1 if "refused" in (raylet, gcs if local else "") else 0
            if refused >= 3:
                name = "raylet" if raylet == "refused" else "GCS"
                self._end(f"Ray's {name} on this machine ended: it was killed, or ran out of memory")
                return
            away_s = since.of(bool(gcs))
            if away_s >= SILENCE_S:
                self._end(f"the head of the Ray cluster at {_place(self._gcs)} has not answered for {away_s:.0f} s")
                return
            if away_s >= self._grace_s:
                head = f"the Ray cluster's head at {_place(self._gcs)}"
                self._tell(logging.WARNING, f"{head} does not answer; waiting for it up to {SILENCE_S:.0f} s")

    def _end(self, text: str) -> None:
        """Interrupt the main thread. If it is stuck in Ray, end the process."""
        session.mute()
        self.ended = f"{text}. What was finished is kept; the same command continues from the last checkpoints."
        if not self._signals:
            log.warning(self.ended)
            return
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        if not self._left.wait(LEAVE_S):
            live.drop()
            print(f"cleansweep: {self.ended}", file=sys.stderr, flush=True)
            session.abandon()
            os._exit(1)

    # ---- nodes and resources ----

    def _look(self) -> None:
        import ray

        while not self._left.wait(self._poll_s):
            if self.ended or knock(*self._gcs):
                continue  # the other thread reports it
            alive = [node for node in ray.nodes() if node["Alive"]]
            with ThreadPoolExecutor(16) as pool:
                here = [node for node, answers in zip(alive, pool.map(self._answers, alive)) if answers]
            names = {node["NodeID"]: _host(node) for node in here}
            for node in self._seen.keys() - names.keys() - self._lost.keys():
                self._lost[node] = self._seen[node]
                log.warning(f"node {self._lost[node]} of the cluster is lost: what ran there starts again from its last checkpoint")
            for node in self._lost.keys() & names.keys():
                log.info(f"node {self._lost.pop(node)} of the cluster is back")
            self._seen |= names
            self._compare(here)

    def _answers(self, node: dict[str, Any]) -> bool:
        """Whether a node that Ray counts as alive can be reached; Ray needs a minute to notice a broken link."""
        since = self._away.setdefault(node["NodeID"], _Since())
        silent = bool(knock(node["NodeManagerAddress"], node["NodeManagerPort"]))
        return since.of(silent) < self._grace_s

    def _compare(self, here: list[dict[str, Any]]) -> None:
        """Log which needed resources are missing."""
        wanted = self._wanted
        if wanted is None:
            return
        resources = [node["Resources"] for node in here]
        fits = wanted.fits(resources)
        missing = not fits or self._pending()
        if self._missing.of(missing) < self._grace_s or not missing:
            return
        cpus, gpus = (sum(one.get(name, 0.0) for one in resources) for name in ("CPU", "GPU"))
        has = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus or wanted.gpus else "")
        lost = f" (lost: {', '.join(sorted(self._lost.values()))})" if self._lost else ""
        way = "other work holds them" if fits else "add a node, or stop with ctrl-C, ask for less and run the same command again"
        self._tell(WAITING, f"{wanted}; the cluster has {has} on {len(here)} node{'' if len(here) == 1 else 's'} now{lost}: {way}")

    def _pending(self) -> bool:
        """Whether resources are requested and none are in use, so nothing of this run can be at work."""
        from ray.util import placement_group_table

        states = {entry["state"] for entry in placement_group_table().values()}
        return bool(states & {"PENDING", "RESCHEDULING"}) and "CREATED" not in states

    def _tell(self, level: int, line: str) -> None:
        now = time.monotonic()
        if now - self._told.get(line, float("-inf")) >= self._again_s:
            self._told[line] = now
            log.log(level, line)


class _Since:
    """Seconds for which a condition has held."""

    def __init__(self) -> None:
        self._from: float | None = None

    def of(self, so: bool) -> float:
        now = time.monotonic()
        self._from = (self._from or now) if so else None
        return now - self._from if self._from is not None else 0.0


@contextmanager
def watching(poll_s: float = POLL_S, grace_s: float = GRACE_S, again_s: float = AGAIN_S) -> Iterator[Callable[[Wanted | None], None]]:
    """While the block runs, say what it waits for. The block gets a function that sets what it needs. RayEnded if Ray died meanwhile.

    Does nothing if no Ray runs.
    """
    import ray

    if not ray.is_initialized():
        yield lambda wanted: None
        return
    watch = Watch(poll_s, grace_s, again_s)
    watch.start()
    try:
        yield watch.wants
    except BaseException as error:
        watch.stop()
        if watch.ended:
            raise RayEnded(watch.ended) from error
        raise
    watch.stop()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def knock(host: str, port: int, timeout_s: float = 3.0) -> str:
    """Empty if something listens there; else "refused" or "silent"."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return ""


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _place(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _host(node: dict[str, Any]) -> str:
    name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
    return f"{name} ({address})"
