"""A database of MLflow for each test."""

import sqlite3
from pathlib import Path

import pytest

from orchestrator.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """An empty database; making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    Tracker(f"sqlite:///{folder / 'mlflow.db'}", "quickstart").check()
    return folder / "mlflow.db"


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    """A fresh copy of it, with the experiment that `check` made taken out."""
    copy = tmp_path / "mlflow.db"
    with sqlite3.connect(template) as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute("DELETE FROM experiment_tags WHERE experiment_id != 0")
        target.execute("DELETE FROM experiments WHERE experiment_id != 0")
    return f"sqlite:///{copy}"
