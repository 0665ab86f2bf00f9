"""Start a local Ray, or find the cluster that RAY_ADDRESS names. A failure is reported in one sentence.

Importing this module does not import Ray.
"""

import contextlib
import inspect
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from datasets.errors import InputError, first_line
from orchestrator.cluster import orphans
from orchestrator.console.log import log

LIMITS_S = (30.0, 180.0)
"""Seconds that a local Ray may take to start, at the first and the second attempt. A busy machine needs minutes."""
SOCKET_BYTES = 107
"""The longest path of a Unix socket (104 - 1 on macOS; Ray checks that itself)."""
SESSION = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
"""The longest path that Ray appends to its folder."""
GCS_WAIT = "RAY_gcs_server_port_wait_time_s"
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
LOOPBACK = "127.0.0.1"
FORMS = "accepted: host:port of Ray's GCS, e.g. 10.0.0.1:6379 (what `ray start --head` prints), or nothing for a Ray of this machine's own"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""The start of an HTTP/2 connection (RFC 9113, 3.4) with empty settings; a server answers with its settings."""
LOG_LINE = re.compile(r"\[[^]]* [EFC] [^]]*\]\s*(?:\(\w+\)\s*)?(?:[\w./-]+:\d+: )?(.*\S)")
"""A line in the logs of Ray's servers that reports an error; the group is its text."""


def named_address() -> str:
    """The cluster that RAY_ADDRESS names; empty if a local Ray is meant."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


# ---- joining a cluster ------------------------------------------------------------------------------------------------


def join(address: str, options: dict[str, Any]) -> None:
    """`ray.init` for the cluster at `address`. Raises InputError within seconds if there is none; Ray itself would wait for minutes."""
    import ray

    if address != "auto" and not address.startswith("ray://"):
        check_address(address)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises any exception here, even plain `Exception`
        text = first_line(error)
        hint = f": {FORMS}" if isinstance(error, ValueError) else ""
        raise InputError(f"the cluster at RAY_ADDRESS={address} does not answer: {text.rstrip('.')}{hint}.") from error


def check_address(address: str, timeout_s: float = 5.0) -> None:
    """InputError unless `address` is host:port and a server that may be Ray's GCS answers there."""
    where = f"RAY_ADDRESS={address}"
    if "://" in address:
        raise InputError(f"{where} is a web address, as of Ray's dashboard or of `ray job submit`; {FORMS}.")
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host:
        raise InputError(f"{where} has no port; {FORMS}.")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InputError(f"{where}: {port!r} is no port; {FORMS}.")
    if host in ("localhost", LOOPBACK, "::1"):  # Ray looks for it at the machine's own address
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s) as probe:
            probe.settimeout(timeout_s)
            probe.sendall(PREFACE)
            answer = probe.recv(4)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{where}: no Ray answers at {host}:{port} ({why}): start it, or name another; {FORMS}.") from error
    if answer[3:4] != b"\x04" and os.environ.get("RAY_USE_TLS", "0") == "0":
        raise InputError(f"{where}: what answers there is not Ray's GCS, but perhaps its dashboard or another server; {FORMS}.")


# ---- a Ray of this machine's own --------------------------------------------------------------------------------------


def start(options: dict[str, Any], limits_s: tuple[float, ...] = LIMITS_S) -> None:
    """`ray.init` for a local Ray that listens only on loopback. If it does not start, it is tried again with more time.

    Processes left by a failed attempt are stopped. InputError says what to do.
    """
    import ray

    folder = short_folder()
    if folder is not None:
        options = {**options, "_temp_dir": str(folder)}
        log.info(f"the path of TMPDIR is too long for Ray's sockets; they lie in {folder}")
    keep_token()
    unwatch()
    _WATCH.append(orphans.Watch(_place(folder), _sessions(folder)))
    _BEFORE.clear()
    _BEFORE.update(_children())
    log.info("starting Ray …")
    failed: list[Path] = []
    for attempt, limit_s in enumerate(limits_s, start=1):
        before = _sessions(folder)
        try:
            with _on_loopback(), _patient(limit_s), _named_ports() if attempt > 1 else contextlib.nullcontext():
                ray.init(**options, _node_ip_address=LOOPBACK, dashboard_host=LOOPBACK)
            for left in failed:  # once more, because an agent that outlived its raylet may have written there
                shutil.rmtree(left, ignore_errors=True)
            _RUNNING[:] = [_session(folder, before)]
            return
        except BaseException as error:
            with contextlib.suppress(Exception):  # of a partly started Ray; the rest is killed
                ray.shutdown()
            session = _session(folder, before)
            stop_started(session)
            if not isinstance(error, Exception):  # ctrl-C
                raise
            if attempt == len(limits_s):
                raise InputError(_why_not(error, session)) from error
            limit_s = limits_s[attempt]
            log.info(f"Ray did not start: {first_line(error).rstrip('.')} ({_load()}); trying once more, for up to {limit_s:.0f} s")
            if session is not None:
                failed.append(session)
                shutil.rmtree(session, ignore_errors=True)


def _why_not(error: BaseException, session: Path | None) -> str:
    """A sentence that says why Ray did not start."""
    text = first_line(error).rstrip(".")
    if "AF_UNIX" in text:
        return f"a local Ray does not start: {text}: set TMPDIR to a shorter path."
    logged = "" if session is None else last_error(session / "logs")
    return (
        f"a local Ray does not start: {text} ({_load()}). On a busy machine wait until it has less to do; or name a Ray that runs "
        f"by RAY_ADDRESS=host:port.{logged}"
    )


def _load() -> str:
    return f"the load is {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"


def last_error(logs: Path) -> str:
    """` Ray's log says: …` with the last error of the raylet or the GCS and its file; if there is no error, the folder alone."""
    for name in ("raylet.out", "raylet.err", "gcs_server.out", "gcs_server.err"):
        file = logs / name
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        errors = [match[1] for line in lines if (match := LOG_LINE.match(line))]
        if errors:
            return f" Ray's log says: {errors[-1][:300].rstrip('.')} ({file})."
    return f" Ray's logs lie in {logs}." if logs.is_dir() else ""


def _sessions(folder: Path | None) -> list[Path]:
    """The folders of all Ray sessions of processes with this one's id, the newest last: their names begin with a time."""
    return sorted(_place(folder).glob(f"session_*_{os.getpid()}"))


def _place(folder: Path | None) -> Path:
    """The folder in which Ray creates those of its sessions."""
    return folder or Path(_temporary()) / "ray"


def _session(folder: Path | None, before: list[Path]) -> Path | None:
    """The folder of the Ray session that this process started when there were those `before`."""
    return next((path for path in reversed(_sessions(folder)) if path not in before), None)


def _temporary() -> str:
    """The folder in which Ray creates its own."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def short_folder() -> Path | None:
    """A private folder of this user for Ray's sockets, if their path would be too long otherwise; else None. InputError if no short path
    can be written."""
    if len(os.fsencode(f"{_temporary()}/ray{SESSION}")) <= SOCKET_BYTES:
        return None
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm"]
    for place in places:
        folder = Path(place) / f"cleansweep-ray-{os.getuid()}"
        if len(os.fsencode(f"{folder}/r{SESSION}")) <= SOCKET_BYTES and _own(folder):
            return folder / "r"  # Ray makes its folder accessible to all, so it is put into a private one
    raise InputError(f"TMPDIR={_temporary()} is too long for Ray's sockets, of at most {SOCKET_BYTES} bytes: name a shorter one.")


def _own(folder: Path) -> bool:
    """Create the folder if it is missing; returns whether it belongs to this user and is closed to all others."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077 and os.access(folder, os.W_OK)


def token_file() -> Path:
    """The path of Ray's token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def keep_token() -> None:
    """Create the token of a local Ray, readable only by its user; Ray itself would make it readable by all."""
    file = token_file()
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    with contextlib.suppress(OSError):  # Ray reports a home folder that cannot be written
        if file.exists():
            return
        file.parent.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".auth_token-")  # mode 0600
        with open(handle, "w") as out:
            out.write(secrets.token_hex(32))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(name, file)  # complete at once, and never over an existing one
        finally:
            os.unlink(name)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make loopback the address of the node, on which its servers listen. Ray itself does so only on macOS and Windows."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _patient(limit_s: float) -> Iterator[None]:
    """Wait up to `limit_s` for the raylet and for the GCS, but not for a dead one. (Ray's own limit is 30 s and cannot be set.)"""
    from ray._private import services

    ask = services.get_node

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                return ask(*arguments)
            except RuntimeError as error:  # not there yet
                if any(_ended(child, "raylet") for child in _children() - _BEFORE):
                    raise ChildProcessError("its raylet ended by itself") from error
            time.sleep(0.2)
        raise TimeoutError(f"its raylet was not ready after {limit_s:g} s")

    services.get_node = get_node
    setting = os.environ.get(GCS_WAIT)
    os.environ[GCS_WAIT] = setting or f"{min(max(limit_s, 30), 90):.0f}"  # it would not notice that the GCS died
    try:
        yield
    finally:
        services.get_node = ask
        if setting is None:
            del os.environ[GCS_WAIT]


@contextlib.contextmanager
def _named_ports() -> Iterator[None]:
    """Choose the ports of Ray's agents. If they choose their own, the raylet waits only 15 s (which cannot be set) and then dies."""
    from ray._private import services
    from ray._raylet import persist_port  # type: ignore[attr-defined]

    launch = services.start_raylet

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        bound = inspect.signature(launch).bind(*arguments, **options).arguments
        with contextlib.ExitStack() as held:  # so that all ports differ
            for name in AGENT_PORTS:
                probe = held.enter_context(socket.create_server((LOOPBACK, 0)))
                bound[name] = bound.get(name) or probe.getsockname()[1]
                persist_port(bound["session_dir"], bound["node_id"], name, bound[name])  # where the agent would write its port
        return launch(**bound)

    services.start_raylet = start_raylet
    try:
        yield
    finally:
        services.start_raylet = launch


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _ended(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name() == name and process.status() == psutil.STATUS_ZOMBIE
    return False


_WATCH: list[orphans.Watch] = []
"""Ends what this process's Ray would leave behind if this process were killed."""


def unwatch() -> None:
    """Stop the watch, because Ray was stopped in order."""
    while _WATCH:
        _WATCH.pop().stop()


_BEFORE: set[psutil.Process] = set()
"""Child processes that this process had before it started Ray."""


_RUNNING: list[Path | None] = []
"""The session of the Ray that this process started last."""


def stop_started(session: Path | None = None) -> None:
    """Kill everything that Ray started on this machine for this process, and wait until it has ended.

    `session`: processes that work in this folder are killed too, because a raylet that died leaves its workers and agents behind; by
    default the folder of the running Ray.
    """
    session = session or next(iter(_RUNNING), None)
    for _ in range(3):  # includes what they start meanwhile
        processes = _children() - _BEFORE
        if session is not None:
            processes |= {one for one in psutil.process_iter() if one.pid != os.getpid() and orphans.works_in(one, str(session))}
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
