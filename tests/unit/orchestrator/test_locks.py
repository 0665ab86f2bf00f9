"""A file system on which no file can be locked: said in a sentence, and nothing is written. The locks fail by a filter of system calls."""

import errno
import fcntl
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.store import Store
from tests.chaos.seccomp import why_not
from tests.experiments import ROOT

FP = "ab" * 32
ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
PROGRAM = """
import sys
from pathlib import Path
from datasets.errors import InputError
from orchestrator.store import Store
from orchestrator.tracking.file import sqlite_problem
from tests.chaos.seccomp import deny_locks

store, number = Store(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "released":  # the locks fail while one is held
    with store.working("clean", "ab" * 32) as folder:
        (folder / "whole").write_text("x")
        deny_locks(number)
        store.seal("clean", "x", "ab" * 32, config={}, inputs={}, seconds=1.0)
deny_locks(number)
for attempt in (store.prepare, store.working("clean", "cd" * 32).__enter__):
    try:
        attempt()
        print("it worked")
    except InputError as error:
        print(error)
print(sqlite_problem(store.root / "made.db"))
print(sqlite_problem(store.root / "new.db"))
"""


@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
@pytest.mark.parametrize("when", ["at once", "released"])
def test_a_store_whose_files_cannot_be_locked_is_refused_and_left_as_it_is(tmp_path: Path, number: int, when: str) -> None:
    if why := why_not(number):
        pytest.skip(f"no filter of system calls: {why}")
    (tmp_path / "clean").mkdir()
    database = sqlite3.connect(tmp_path / "made.db")
    database.execute("CREATE TABLE x (y)")
    database.close()
    words = [sys.executable, "-c", PROGRAM, str(tmp_path), str(number), when]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    prepared, worked, made, new = ended.stdout.splitlines()
    for said, folder in ((prepared, tmp_path), (worked, tmp_path / "clean")):
        assert said.startswith(f"{folder} lies on a file system that cannot lock files (") and said.endswith("another folder with --store.")
    assert made == new == "its file system cannot lock files, which a database needs"
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    sealed = ["manifest.json", "whole"] if when == "released" else []
    assert left == sorted([".lock-cdcdcdcdcdcd", "made.db", *sealed])
    store = Store(tmp_path)
    store.prepare()
    assert (store.find("clean", FP) is not None) == bool(sealed)
    with store.working("clean", "cd" * 32):
        pass
    assert not list(tmp_path.rglob(".lock*"))


def test_a_store_on_nfs_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS makes record locks of flock's, and a shared record lock needs a file that is open for reading."""
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    Store(tmp_path).prepare()
    assert not list(tmp_path.iterdir())
