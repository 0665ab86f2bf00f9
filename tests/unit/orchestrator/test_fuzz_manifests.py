"""Damaged manifests, failures and trials of a store, some hundred: they are read as they were, or refused in a sentence."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.commands.show import show
from orchestrator.stages.graph import stages
from orchestrator.store import FAILED, MANIFEST, METRICS, Store, read_failure, write_json, write_lines
from orchestrator.sweep.plan import make_plan
from orchestrator.sweep.records import recorded_trials, remember_trial
from orchestrator.sweep.stored import load_study
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import line

PLAN = make_plan(SWEEP)
TOKENS = [b'"', b"{", b"}", b"[" * 3000, b"null", b"1e999", b"9" * 5000, b"\0", b"\xff\xfe", b"\xe9", b'"../x"', b"NaN", b"\\ud83d", b"\n"]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three changes: cut off, cut out, doubled, a token put in, or a byte changed."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 2, 8, 60])
        ways = [data[:at], data[:at] + data[at + length :], data[:at] + data[at : at + length] * 2 + data[at + length :]]
        ways += [data[:at] + draw.choice(TOKENS) + data[at:], data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]]
        data = draw.choice(ways)
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a finished cleaning, one that failed, and what is remembered of the two trials."""
    store = Store(tmp_path_factory.mktemp("whole"))
    finished, failed = (stages(experiment)["clean"] for _, experiment in (PLAN.grid or ())[:2])
    with store.working("clean", finished.fingerprint) as folder:
        write_lines(folder / METRICS, [line(0, 80.0, 97.0), line(1, 80.0, 9.0)])
        store.seal("clean", finished.name, finished.fingerprint, config={"lr": 1}, inputs={}, seconds=1.0)
    with store.working("clean", failed.fingerprint) as folder:
        write_lines(folder / METRICS, [line(0, 80.0, 97.0)])
        write_json(folder / FAILED, {"kind": "diverged", "error": "loss is nan", "rank": 0})
    for (overrides, _), stage in zip(PLAN.grid or (), (finished, failed)):
        remember_trial(store, PLAN.fingerprint, stage.fingerprint, overrides)
    return store


def seen(store: Store) -> dict[str, object]:
    """What each way to read the store gives; the sentence of those that refuse it."""
    finished, failed = (stages(experiment)["clean"] for _, experiment in (PLAN.grid or ())[:2])
    ways = {
        "all": lambda: [artefact.manifest for artefact in store.all()],
        "find": lambda: getattr(store.find("clean", finished.fingerprint), "manifest", None),
        "show": lambda: show(str(store.root), None, False),
        "show one": lambda: show(str(store.root), finished.fingerprint[:12], True),
        "failure": lambda: read_failure(store.work("clean", failed.fingerprint)),
        "trials": lambda: sorted((record.trial, str(record.overrides), record.status) for record in recorded_trials(PLAN, store)),
        "study": lambda: [(trial.fingerprint, trial.status, len(trial.metrics)) for trial in load_study(PLAN, store).trials],
    }
    found: dict[str, object] = {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except InputError as error:
            found[name] = f"refused: {error}"
    return found


@pytest.mark.parametrize("kind", [MANIFEST, FAILED, "trials"])
def test_a_damaged_file_is_refused_in_a_sentence_or_changes_nothing(whole: Store, tmp_path: Path, kind: str, bounded, capsys):
    pattern = "sweep/.trials-*/*.json" if kind == "trials" else f"clean/*/{kind}"
    file = sorted(path.relative_to(whole.root) for path in whole.root.glob(pattern))[0]
    expected, refused = seen(whole), 0
    for seed in range(100):
        store = Store(shutil.copytree(whole.root, tmp_path / str(seed)))
        (store.root / file).write_bytes(mutated((store.root / file).read_bytes(), random.Random(f"{kind} {seed}")))
        got: dict[str, object] = {}
        assert bounded(lambda: got.update(seen(store)))  # noqa: B023 (called at once)
        told = [str(value) for value in got.values() if str(value).startswith("refused")]
        assert all(str(store.root / file) in one and "\n" not in one for one in told), (seed, told)
        if kind == FAILED:  # what can be read of it is shown, and it decides nothing
            assert {k: v for k, v in got.items() if k not in ("failure", "study")} == {
                k: v for k, v in expected.items() if k not in ("failure", "study")
            }
        else:
            untouched = {"all", "find", "show", "show one", "failure"} if kind == "trials" else {"failure", "trials"}
            assert all(got[name] == expected[name] for name in untouched), seed
            assert told or got == expected, seed
        refused += bool(told)
        shutil.rmtree(store.root)
    assert refused == 0 if kind == FAILED else refused > 50
