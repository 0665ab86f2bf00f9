"""MLflow's database as a file of the store: its address, a lock for creating it, where its artifacts are, and why it cannot be used.

A sqlite URI is `sqlite:///` and a literal path: nothing in it is decoded, so a folder may have any name.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from datasets.errors import InputError
from datasets.storage import sync
from orchestrator.locks import NO_LOCKS

SQLITE = "sqlite:///"
LOCK_WAIT_S = 180
"""Seconds to wait for the lock: creating a database takes seconds, on a busy machine a minute."""
UNLOCKABLE = "its file system cannot lock files, which a database needs"
SAID = {
    "BUSY": "another process keeps the database locked",
    "LOCKED": "another process keeps the database locked",
    "CORRUPT": "the database is damaged",
    "NOTADB": "the file is no database",
    "FULL": "the disk is full",
    "READONLY": "the database cannot be written",
    "CANTOPEN": "the database cannot be opened",
    "IOERR": "the disk cannot be read or written",
    "IOERR_LOCK": UNLOCKABLE, "IOERR_RDLOCK": UNLOCKABLE, "IOERR_UNLOCK": UNLOCKABLE, "IOERR_CHECKRESERVEDLOCK": UNLOCKABLE,
}  # fmt: skip
"""sqlite's error names → a message; the first part of a name stands for all that begin with it and are not named."""


def database(uri: str) -> Path | None:
    """The file of a sqlite URI; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def mlflow_uri(uri: str) -> str:
    """The tracking URI in a spelling that SQLAlchemy reads as exactly this file and for which MLflow makes no other folder. If the path
    must be quoted, its slashes are quoted too; otherwise MLflow would make the folder that the quoted text seems to name. InputError if no
    spelling works."""
    from sqlalchemy.engine import make_url

    path = database(uri)
    if path is None:
        return uri
    for text in (str(path), quote(str(path), safe="")):
        if make_url(f"{SQLITE}{text}").database == str(path):
            return f"{SQLITE}{text}"
    raise InputError(f"{path} cannot hold a tracking database: this SQLAlchemy cannot open a path with % or ? in it. Name another folder.")


@contextmanager
def making(uri: str) -> Iterator[None]:
    """The database with MLflow's tables, and a lock for its update, so that one process at a time does it. A server needs no lock."""
    from orchestrator.store import Store

    path = database(uri)
    if path is None:
        yield
    else:
        with Store(path.parent).locked(path.with_name(f".{path.name}.lock"), f"the tracking database {path}", LOCK_WAIT_S):
            if not path.exists():
                _create(path)
            yield


def _create(path: Path) -> None:
    """Make a database with MLflow's tables, complete or not at all.

    MLflow makes them by some fifty changes that are no transaction, so a process that is killed on the way would leave a database that
    nobody can use. They are made in a file beside it, which is renamed when it is complete.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    aside = path.with_name(f".{path.name}.new")
    _remove(aside)
    try:
        engine = create_sqlalchemy_engine(mlflow_uri(f"{SQLITE}{aside}"))
        try:
            _initialize_tables(engine)
        finally:
            engine.dispose()
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    """Remove a database and what sqlite keeps beside it."""
    for end in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def relocate(uri: str, artifacts: str | None) -> None:
    """Let the database of a store that was moved or copied find its artifacts: it holds absolute paths, which MLflow cannot change.

    Only for a database with its artifacts beside it. A run keeps its path if its files are only at the old place.
    """
    path = database(uri)
    if path is None or not path.is_file() or artifacts is None or _folder(artifacts).parent != path.parent:
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=20)) as connection, connection:  # MLflow reports what is wrong
        for number, old in connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall():
            if not old or not old.startswith("file:") or old == artifacts or _folder(old).name != _folder(artifacts).name:
                continue
            moved = not _folder(old).exists()
            select = "SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?"
            for run, place in connection.execute(select, (number,)).fetchall():
                new = f"{artifacts}{place.removeprefix(old)}"
                if place.startswith(f"{old}/") and (_folder(new).exists() or not _folder(place).exists()):
                    connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (new, run))
                    moved = True
            if moved:
                connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (artifacts, number))


def _folder(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))


def sqlite_problem(path: Path) -> str:
    """Why the database cannot be written; empty if it can, or if it does not exist yet and its folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return _locking_problem(path)
        with suppress(OSError):  # first, for sqlite says after a while of a database whose locks fail that it is busy
            if problem := _locking_problem(path):
                return problem
        with closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return why(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _locking_problem(path: Path) -> str:
    """Whether a database in this place could not be locked; OSError if its folder cannot be written."""
    probe = path.with_name(f".{path.name}.probe")  # not the database: closing that would end all locks that this process has on it
    try:
        with probe.open("w") as file, suppress(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return UNLOCKABLE
        raise
    finally:
        probe.unlink(missing_ok=True)
    return ""


def why(error: BaseException) -> str:
    """The cause of a failure of MLflow, its database or the network: one line without SQL."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, sqlite3.Error):
        cause = getattr(cause, "orig", None) or cause.__cause__
    if cause is not None:
        name = (getattr(cause, "sqlite_errorname", None) or "").removeprefix("SQLITE_")
        return SAID.get(name) or SAID.get(name.partition("_")[0], f"the database is damaged, or not MLflow's: {cause}")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" with url:")[0].split("[SQL")[0][:240].rstrip(" .:(")
