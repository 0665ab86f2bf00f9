"""A few tries of `python -m tests.chaos`, without Ray, with fixed moments and bytes; and that its comparison sees what it is there for."""

from __future__ import annotations

import calendar
import errno
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.chaos import here, soak
from tests.chaos.clock import negative, redate
from tests.chaos.flip import Flip, damage
from tests.chaos.here import Death
from tests.chaos.kill_here import KillHere, Undisturbed
from tests.chaos.no_locks import NoLocks
from tests.chaos.shifted.sitecustomize import shift
from tests.chaos.state import differences, leftovers, state
from tests.chaos.tried import Count, Tried, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Iterator[Undisturbed]:
    yield Undisturbed.of(folder)
    here.leave()


def test_two_kills_in_a_row(folder: Path, undisturbed: Undisturbed) -> None:
    kind = KillHere()
    kind.folder, kind.undisturbed = folder, undisturbed
    tried = kind.kill(folder / "killed", [Death(before_change=undisturbed.changes // 2), Death(before_change=undisturbed.changes // 3)])
    assert tried.met and tried.commands == 3 and not tried.wrong, tried
    ledger, expected = (next(store.glob("pretrain/*/ledger.jsonl")) for store in (folder / "killed", undisturbed.store))
    assert ledger.read_text() == expected.read_text()
    steps = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [one["step"] for one in steps] == list(range(12))
    for epoch in range(2):
        keys = [key for one in steps[6 * epoch : 6 * epoch + 6] for key in one["keys"]]
        assert len(keys) == len(set(keys)) == 96, "an epoch has every key once"


@pytest.mark.parametrize(("name", "way", "refused"), [
    ("pretrain/*/epoch_0002/open_clip_model.safetensors", "flipped", True),
    ("world/*/train/00000.tar", "cut", True),
])  # fmt: skip
def test_a_damaged_file_that_is_needed(folder: Path, undisturbed: Undisturbed, name: str, way: str, refused: bool) -> None:
    kind, store = Flip(), folder / way
    kind.folder, kind.undisturbed = folder, undisturbed
    shutil.copytree(undisturbed.store, store)
    for stage in ("clean", "sweep"):
        shutil.rmtree(store / stage)
    [damaged] = store.glob(name)
    damage(damaged, way, np.random.default_rng(0))
    tried = kind.judge(store, damaged, way)
    assert tried.refused == refused and not tried.wrong, tried


def test_the_comparison_sees_a_bit_a_lost_file_and_what_is_left_over(folder: Path, undisturbed: Undisturbed) -> None:
    store = folder / "changed"
    shutil.copytree(undisturbed.store, store)
    assert undisturbed.compare(store) == []
    [weights] = store.glob("pretrain/*/epoch_0002/open_clip_model.safetensors")
    damage(weights, "flipped", np.random.default_rng(0))
    ledger = next(store.glob("clean/*/ledger.jsonl"))
    ledger.unlink()
    line = next(store.glob("pretrain/*/metrics.jsonl"))
    line.write_text(line.read_text().replace('"step": 12', '"step": 13'))
    (store / "clean" / ".work-0").mkdir()
    (store / "ray").mkdir()
    (store / "ray" / "x").mkdir()
    assert sorted(undisturbed.compare(store)) == sorted([
        f"{weights.relative_to(store)} differs", f"{ledger.relative_to(store)} is missing", f"{line.relative_to(store)} differs",
        "clean/.work-0 is left over", "ray/x is left over",
    ])  # fmt: skip
    assert leftovers(undisturbed.store) == [] and differences(state(undisturbed.store), undisturbed.state) == []


@pytest.mark.parametrize(("code", "said", "fault"), [
    (0, "done", ""), (2, "cleansweep: x is damaged", ""), (1, "Traceback (most recent call last):\nKeyError", "prints a traceback"),
    (-7, "", "ended by SIGBUS"), (here.HUNG, "", "hangs"),
])  # fmt: skip
def test_what_counts_as_a_fault_of_the_command(code: int, said: str, fault: str) -> None:
    found = here.Ended(code, said, 1.0).fault
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_the_table() -> None:
    tries = [Tried("a", True, commands=2), Tried("b", True, ["x differs"], commands=4), Tried("c", False), Tried("d", True, refused=True)]
    rows = table({"kill": Count(tries=tries, seconds=3.2), "hosts": Count(skipped="no root")}).splitlines()
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == ["kill", "4", "3", "2", "1", "1", "2.3", "3"]
    assert rows[3] == "hosts was not tried: no root."


def test_locks_that_fail_from_the_start(folder: Path, undisturbed: Undisturbed) -> None:
    kind = NoLocks()
    if why := kind.prepare(folder):
        pytest.skip(why)
    tried = kind.deny(folder / "no-locks", errno.ENOLCK, 0.0, "a new store")
    assert tried.met and not tried.wrong, tried


def test_the_same_command_with_the_clock_an_hour_back(folder: Path, undisturbed: Undisturbed) -> None:
    store = folder / "clock"
    assert here.command(store, Death(before_change=undisturbed.changes // 2)).killed
    redate(store, 3600.0)
    ended = here.command(store, first=partial(shift, -3600.0))
    assert ended.code == 0 and not ended.fault, ended
    assert undisturbed.compare(store) == [] and negative(store) == []
    created = json.loads(next(store.glob("sweep/*/manifest.json")).read_text())["created"]
    ago = time.time() - calendar.timegm(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ"))
    assert 3600 <= ago < 2 * 3600, "its clock was an hour behind"


def test_what_a_soak_counts_as_growing() -> None:
    trials = np.arange(0.0, 201.0, 5.0)
    wobble = np.random.default_rng(0).normal(0, 1.0, len(trials))

    def verdict(name: str, values: np.ndarray) -> tuple[str, bool]:
        text, wrong = soak.table([{"trials": float(count), name: float(one)} for count, one in zip(trials, values)])
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        return row.split("|")[5].strip(), wrong

    assert verdict("driver memory", 500 + wobble) == ("flat", False)
    assert verdict("driver memory", 500 + wobble + 300 * (trials < 40)) == ("flat", False), "the start does not count"
    assert verdict("driver memory", 500 + wobble + 0.2 * trials) == ("GROWS", True)
    assert verdict("driver open files", 40 + trials // 50) == ("GROWS", True)
    assert verdict("MLflow database", 1000 + 60 * trials + 5 * wobble) == ("in proportion", False)
    assert verdict("MLflow database", 1000 + 0.5 * trials**2) == ("GROWS faster than the trials", True)
