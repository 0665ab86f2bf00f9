"""The MLflow server: its address, whether it answers, silencing it, and serving its pages on this machine."""

import logging
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from datasets.errors import InputError
from orchestrator.tracking.file import SQLITE, database, making, mlflow_uri, relocate, sqlite_problem, why

VIEW = "cleansweep.view"
"""Tag of an MLflow experiment: the path of its saved view."""
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def absolute_uri(uri: str) -> str:
    """The tracking URI, for sqlite with an absolute path. InputError for anything that is no URI or that MLflow no longer supports."""
    accepted = (
        "accepted: sqlite:///PATH, http(s)://SERVER, postgresql://…, mysql://…, mssql://…. MLflow no longer writes to plain folders."
    )
    if {"\0", "\n", "\r"} & set(uri):
        raise InputError(f"tracking URI is {uri!r}, which is not one line of text; {accepted}")
    head, slashes, path = uri.partition(":///")
    if head.partition("+")[0] == "sqlite" or uri.startswith("sqlite:"):
        name = Path(path).name
        if not slashes or name in ("", "..", ":memory:") or "?" in name:
            raise InputError(f"tracking URI is {uri!r}; for sqlite accepted is sqlite:///PATH, the path of a file, without options.")
        try:
            return f"{SQLITE}{Path(path).expanduser().resolve()}"
        except (OSError, RuntimeError) as error:  # an unknown user's home, circular links
            raise InputError(f"tracking URI is {uri!r}: {error}.") from None
    try:
        parts = urlsplit(uri)
        scheme, _ = parts.scheme.split("+")[0], parts.port
    except ValueError as error:
        raise InputError(f"tracking URI is {uri!r}, which is no address ({error}); {accepted}") from None
    if scheme not in (*PORTS, "databricks"):
        raise InputError(f"tracking URI is {redacted(uri)!r}; {accepted}")
    return uri


def redacted(uri: str) -> str:
    """The URI without its password."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":…@") if parts.password else uri


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages for a database on this machine's loopback only."""
    uri = absolute_uri(uri)
    artifacts = artifact_location(uri, None)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", mlflow_uri(uri)),
        *(["--default-artifact-root", artifacts] if artifacts else []),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def serve(uri: str, port: int = 5000) -> int:
    """Print the links to the saved views and serve MLflow's pages until interrupted; returns the exit code.

    For a tracking server nothing is started, because the links point there. InputError if there is no database yet.
    """
    uri = absolute_uri(uri)
    file = database(uri)
    if file is not None and not file.is_file():
        raise InputError(f"there is no tracking database at {redacted(uri)} yet; a sweep creates it.")
    quiet()
    if why := why_unusable(uri):
        raise InputError(f"tracking URI {redacted(uri)} cannot be used: {why}.")
    remote = urlsplit(uri).scheme in ("http", "https")
    base = uri.rstrip("/") if remote else f"http://127.0.0.1:{port}"
    if not remote and _listening(port):
        raise InputError(f"port {port} is in use on this machine; give another with --port.")
    with making(uri):
        relocate(uri, artifact_location(uri, None))
        paths = views(uri)
    for name, path in paths.items():
        print(f"{name}: {base}{path}", flush=True)
    if remote:
        return 0
    print("Ctrl-C ends it.", flush=True)
    environment = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **CALM}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(ui_command(uri, port), env=environment, start_new_session=True)
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:  # the server has a child process: end both
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
        signal.signal(signal.SIGTERM, before)


def views(uri: str) -> dict[str, str]:
    """Name of each experiment → path of its saved view, or of its plain page, newest first. InputError for a damaged database."""
    from mlflow import MlflowClient

    uri = absolute_uri(uri)
    with telling(lambda error: InputError(f"tracking URI {redacted(uri)} cannot be used: {why(error)}.")):
        client = MlflowClient(tracking_uri=mlflow_uri(uri))
        experiments = client.search_experiments(order_by=["last_update_time DESC"])
        return {
            e.name: e.tags.get(VIEW, f"/#/experiments/{e.experiment_id}/runs")
            for e in experiments
            if VIEW in e.tags or e.name != "Default"
        }


@contextmanager
def telling(told: Callable[[Exception], Exception]) -> Iterator[None]:
    """Turns every error of MLflow, its database or the network into the error that `told` makes of it.

    A damaged database makes MLflow raise any error, so an error counts as theirs if it comes out of these packages.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        theirs = any(frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES for frame, _ in frames)
        if isinstance(error, InputError) or not (theirs or isinstance(error, OSError)):
            raise
        raise told(error) from error


QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "DO_NOT_TRACK": "true"}


CALM = {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "ERROR"}
PACKAGES = ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "sqlite3")


def quiet() -> None:
    """Turn off telemetry and the migration log, and let requests give up in time. The user's own settings are kept."""
    for name, value in {
        **QUIET,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "12",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it would print SQL, and every failure is raised anyway
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "mlflow.store.db.utils", "alembic.runtime.migration", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def patience(timeout_s: int | None, retries: int) -> Iterator[None]:
    """Within the block, MLflow's requests give up after this time; None leaves the time unchanged."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    names |= {} if timeout_s is None else {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def why_unusable(uri: str) -> str:
    """Why the URI cannot work, found without MLflow (whose retries take a minute); empty if it may work."""
    parts = urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if file := database(uri):
        return sqlite_problem(file)
    if scheme in PORTS and parts.hostname:
        try:
            with socket.create_connection((parts.hostname, parts.port or PORTS[scheme]), timeout=5):
                return ""
        except OSError as error:
            return f"{parts.hostname}:{parts.port or PORTS[scheme]} does not answer ({error})"
    return ""


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def artifact_location(uri: str, folder: str | Path | None) -> str | None:
    """The folder for files if the URI is a database; None for a server, which decides by itself."""
    if urlsplit(uri).scheme in ("http", "https", "databricks"):
        return None
    if folder is None and (file := database(uri)):
        folder = file.parent / "mlflow-artifacts"
    return Path(folder).expanduser().resolve().as_uri() if folder else None
