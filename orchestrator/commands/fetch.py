"""Fetch a list of pictures on Ray: one task for each shard, threads in each task, and an actor that limits their requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from datasets.acquire.fetch import Wanted, fetch_shard, finished, may_pass_later, settle
from datasets.acquire.manners import Manners, Pacer
from datasets.acquire.urllist import Row, UrlList
from datasets.acquire.urlparquet import ParquetList
from datasets.errors import InputError
from orchestrator.cluster import session
from orchestrator.console import live
from orchestrator.console.log import note
from orchestrator.console.progress import meter
from orchestrator.store import Store, read_json, write_json

NOTE = "fetch.json"
"""File in the output folder that records what its shards are made from."""
SUMMARY = "summary.json"
ASKED_S = 1.0
"""Seconds between two requests for the statuses of rows."""
TOGETHER_S = 0.02
"""Requests of a task's threads within this many seconds are sent to the desk in one call."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Desk:
    """Hands out turns, and counts the statuses of rows in the tasks that run now."""

    def __init__(self, manners: Manners) -> None:
        self.pacer, self.counts = Pacer(manners), Counter[str]()

    def turns(self, asked: list[str], left: list[str], told: list[str]) -> list[tuple[bool, float]]:
        for host in left:
            self.pacer.leave(host)
        self.counts.update(told)
        return [self.pacer.enter(host) for host in asked]

    def pause(self, host: str, seconds: float) -> None:
        self.pacer.pause(host, seconds)

    def told(self) -> Counter[str]:
        return self.counts


class _Turns:
    """`datasets.acquire.manners.Turns` of the whole cluster, for the threads of a task: requests and answers are sent together, because a
    call to the desk costs as much as a third of a picture."""

    def __init__(self, desk: Any) -> None:
        self.desk, self._lock, self._wake, self._closed = desk, threading.Lock(), threading.Event(), False
        self._asked: list[tuple[str, Future]] = []
        self._left: list[str] = []
        self._told: list[str] = []
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._thread.start()

    def enter(self, host: str) -> tuple[bool, float]:
        answer: Future = Future()
        with self._lock:
            self._asked.append((host, answer))
        self._wake.set()
        return answer.result()

    def leave(self, host: str) -> None:
        with self._lock:
            self._left.append(host)
        self._wake.set()

    def pause(self, host: str, seconds: float) -> None:
        ray.get(self.desk.pause.remote(host, seconds))

    def tell(self, status: str) -> None:
        with self._lock:
            self._told.append(status)

    def close(self) -> None:
        """Send the remaining requests."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            self._wake.wait()
            time.sleep(TOGETHER_S)
            self._wake.clear()
            last = self._closed
            with self._lock:
                (asked, self._asked), (left, self._left), (told, self._told) = (self._asked, []), (self._left, []), (self._told, [])
            try:
                answers = ray.get(self.desk.turns.remote([host for host, _ in asked], left, told))
            except Exception as error:  # the waiting thread raises it
                for _, answer in asked:
                    answer.set_exception(error)
            else:
                for (_, answer), given in zip(asked, answers):
                    answer.set_result(given)


def _fetch(number: int, rows: list[Row], folder: str, wanted: Wanted, manners: Manners, desk: Any, again: bool) -> dict[str, Any]:
    turns = _Turns(desk)
    try:
        return fetch_shard(number, rows, folder, wanted, manners, turns, turns.tell, again)
    finally:
        turns.close()


def fetch_list(
    urls: UrlList | ParquetList,
    out: Path,
    wanted: Wanted,
    manners: Manners,
    *,
    tasks: int | None = None,
    num_cpus: int | None = None,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Fetch `urls` (of blocks of `wanted.shard_size` rows) into shards in `out`, by a Ray task each.

    At most `tasks` shards at a time, None for one a CPU; where no Ray runs, one of `num_cpus` is started. Shards that
    are whole are not fetched again, so a run that was stopped is continued by the same call; with `retry_failed` failures that may have
    passed are tried again. Returns {rows, status {status: rows}, shards, bytes}, which `summary.json` holds too. Raises `InputError` for an
    `out` that holds something else, or the shards of another list or other options.
    """
    _folder(out)
    with Store(out).locked(out / ".lock", f"fetch: {out}", wait_s=0):
        _claim(urls, out, wanted)
        settle(out)
        stats = {number: found for number in range(urls.blocks) if (found := finished(out, number)) is not None}
        todo = [number for number in range(urls.blocks) if number not in stats]
        again = [number for number, found in stats.items() if any(map(may_pass_later, found["status_dict"]))] if retry_failed else []
        if todo or again:
            session.connect(num_cpus)
            _run(urls, out, wanted, manners, todo, again, tasks, stats)
            settle(out)  # left by workers that were killed while others went on
        counts = Counter[str]()
        for found in stats.values():
            counts.update(found["status_dict"])
        summary = {
            "rows": len(urls),
            "status": dict(counts.most_common()),
            "shards": sum(found["tar"] is not None for found in stats.values()),
            "bytes": sum(found["tar"]["bytes"] for found in stats.values() if found["tar"]),
        }
        assert sum(counts.values()) == len(urls), "every row has a status"
        write_json(out / SUMMARY, summary)
        if blocked := counts["blocked_address"]:
            note(
                f"{blocked} rows lead to private, loopback or link-local addresses and were blocked; --allow-private, with a new folder, "
                "allows them."
            )
        return summary


def _run(
    urls: UrlList | ParquetList,
    out: Path,
    wanted: Wanted,
    manners: Manners,
    todo: list[int],
    again: list[int],
    tasks: int | None,
    stats: dict[int, dict[str, Any]],
) -> None:
    """Run a Ray task for each shard; their statistics are appended to `stats`."""
    cpus = max(1.0, ray.cluster_resources().get("CPU", 1.0))
    at_once = tasks or int(cpus)
    task = ray.remote(num_cpus=min(1.0, int(100 * cpus / at_once) / 100), scheduling_strategy="SPREAD")(_fetch)
    desk = _Desk.remote(manners)  # type: ignore[attr-defined]
    order = iter([(number, False) for number in todo] + [(number, True) for number in again])
    rows = sum(min(wanted.shard_size, len(urls) - number * wanted.shard_size) for number in todo)
    rows += sum(count for number in again for status, count in stats[number]["status_dict"].items() if may_pass_later(status))
    running: dict[Any, int] = {}
    progress, shards, told = meter("fetch", "rows"), 0, time.monotonic()
    while True:
        while len(running) < at_once and (following := next(order, None)) is not None:
            number, repeated = following
            reference = task.remote(number, urls.block(number), str(out), wanted, manners, desk, repeated)
            running[reference] = number
        if not running:
            live.drop("fetch")
            return
        ready, _ = ray.wait(list(running), timeout=1.0)
        for reference in ready:
            number = running.pop(reference)
            try:
                stats[number] = ray.get(reference)
            except Exception as error:  # Ray's exceptions have several base classes
                mistake = session.user_error(error)
                if mistake is None:
                    raise
                raise mistake from None
            shards += 1
        if time.monotonic() - told >= ASKED_S:
            told = time.monotonic()
            counts: Counter[str] = ray.get(desk.told.remote())
            shown = ", ".join(f"{status} {count}" for status, count in counts.most_common(6))
            progress(sum(counts.values()), rows, f"{shards}/{len(todo) + len(again)} shards  {shown}")


def _folder(out: Path) -> None:
    """Create the folder. InputError if something else is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / NOTE).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"fetch: {out} exists and is not empty; name a new folder, or one that fetch began.")
    except OSError as error:
        raise InputError(f"fetch: {out} cannot be written: {error.strerror}.") from None


def _claim(urls: UrlList | ParquetList, out: Path, wanted: Wanted) -> None:
    """Write into `out/fetch.json` what the folder is for; InputError if it is already used for something else."""
    asked = {
        "list": {"name": urls.path.name, "bytes": urls.bytes, "sha256": urls.sha256},
        "layout": urls.layout._asdict(),
        "options": asdict(wanted),
    }
    if not (out / NOTE).exists():
        write_json(out / NOTE, asked)
        return
    found = read_json(out / NOTE)
    if not isinstance(found, dict) or found.keys() != asked.keys():
        raise InputError(f"fetch: {out / NOTE} is damaged; name a new folder.")
    if found["list"]["sha256"] != urls.sha256:
        begun = found["list"].get("name")
        raise InputError(f"fetch: {out} was begun with another list ({begun}), or {urls.path} has changed since; name a new folder.")
    for part in ("layout", "options"):
        for name in asked[part]:
            if found[part].get(name) != asked[part][name]:
                was, now = found[part].get(name), asked[part][name]
                raise InputError(f"fetch: {out} was begun with {name} = {was!r}, now it is {now!r}; give the same again, or a new folder.")
