"""MLflow's database is made complete or not at all."""

import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy

from datasets.errors import InputError
from orchestrator.tracking.tracker import Tracker
from tests.experiments import ROOT


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.8])
def test_a_process_killed_while_it_makes_the_database_leaves_none(tmp_path, after_s):
    """MLflow's own way leaves tables of which some lack columns, which no later command can use."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    program = f"from orchestrator.tracking.tracker import Tracker\nTracker({uri!r}, 'x').check()"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    while not any(tmp_path.glob(".mlflow.db.new*")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(after_s)
    process.kill()
    process.wait()
    Tracker(uri, "x").check()
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["mlflow.db"] and not any(tmp_path.glob(".mlflow.db.new*"))


def test_a_database_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(engine):
        (tmp_path / ".mlflow.db.new").write_bytes(b"half")
        raise sqlalchemy.exc.OperationalError("CREATE TABLE", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", full)
    with pytest.raises(InputError, match=r"mlflow\.db cannot be used: .*full"):
        Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "x").check()
    assert not [path.name for path in tmp_path.iterdir() if "mlflow.db" in path.name and not path.name.endswith(".lock")]
