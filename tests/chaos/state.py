"""What a store holds, so that two stores can be compared: everything but times, and what may not be left over in one."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNCOMPARED = ("logs", "reports", "mlflow-artifacts", "ray")
"""Folders of the store that hold no result; the points in `reports` are compared by themselves."""
TIMES = ("seconds", "digest")
RATE = "train/samples_per_second"


def state(store: Path) -> dict[str, str]:
    """Path in the store → digest of what determines a result in it, for every file of a finished stage.

    Weights, ledgers of keys, plans and pictures count to the last byte; of metrics, checkpoints' notes and manifests everything counts but
    times, package versions and the commit.
    """
    return {str(path.relative_to(store)): hashlib.sha256(_content(path)).hexdigest() for path in _files(store)}


def _files(store: Path) -> Iterator[Path]:
    for path in sorted(store.glob("*/*/**/*")):
        words = path.relative_to(store).parts
        if path.is_file() and words[0] not in UNCOMPARED and path.name != "notes.txt" and not any(word.startswith(".") for word in words):
            yield path


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        if path.name == "metrics.jsonl":
            return json.dumps([_line(json.loads(line)) for line in data.splitlines()]).encode()
        if path.name == "meta.json":
            meta = json.loads(data)
            lines = [_line(line) for line in (*meta.get("before", ()), meta.get("line")) if line]
            return _json({**_timeless(meta), "line": None, "before": lines})
        if path.name == "manifest.json":
            manifest = json.loads(data)
            timed = ("metrics.jsonl", "meta.json")
            files = {name: "" if Path(name).name in timed else digest for name, digest in manifest["files"].items()}
            return _json([manifest[name] for name in ("stage", "name", "fingerprint", "inputs", "config")] + [files])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # damaged: compared as it is
    return data


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _timeless(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in TIMES}


def _line(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without its times."""
    metrics = {name: value for name, value in line.get("metrics", {}).items() if name != RATE}
    return {**_timeless(line), "metrics": metrics}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The files that are missing, too many, or hold another result; each with how it differs."""
    said = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            said.append(f"{name} is missing")
        elif name not in expected:
            said.append(f"{name} is too many")
        elif expected[name] != found[name]:
            said.append(f"{name} differs")
    return said


def leftovers(store: Path) -> list[str]:
    """What may not remain in a store when a command has ended well: locks, working folders, unfinished files, Ray's folders."""
    found = [path for path in store.rglob("*") if path.name.startswith(".") or path.name.endswith((".tmp", ".partial"))]
    found += list(store.glob("ray/*"))
    return [str(path.relative_to(store)) for path in sorted(found)]


def tracked(store: Path) -> list[str]:
    """Every MLflow run of the store's database as text: its experiment, name, status, parameters and metrics without times; sorted."""
    database = sqlite3.connect(f"file:{store / 'mlflow.db'}?mode=ro", uri=True)
    try:
        told = []
        for run, name, status, experiment in database.execute(
            "SELECT r.run_uuid, r.name, r.status, e.name FROM runs r JOIN experiments e ON r.experiment_id = e.experiment_id"
        ).fetchall():
            params = sorted(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)).fetchall())
            metrics = database.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run,)).fetchall()
            kept = sorted(metric for metric in metrics if "seconds" not in metric[0] and not metric[0].startswith(("system/", RATE)))
            told.append(str((experiment, name, status, params, kept)).replace(str(store), "STORE"))
        return sorted(told)
    finally:
        database.close()
