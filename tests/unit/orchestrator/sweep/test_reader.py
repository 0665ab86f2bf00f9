"""A sweep that is read again and again: the same as read once, but what has ended is not opened again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator import manifest, store
from orchestrator.results.outcome import Study
from orchestrator.stages.base import Stage, seal
from orchestrator.stages.graph import cleaned_by, trained_by
from orchestrator.stages.measured import lacking, measurements
from orchestrator.store import METRICS, Store, digest_of, write_json, write_lines
from orchestrator.sweep.plan import Plan, make_plan
from orchestrator.sweep.records import recorded_trials, remember_trial
from orchestrator.sweep.stored import Reader, load_study
from orchestrator.training.measuring import MEASURED
from tests.tiny_sweep import BASE, SWEEP
from trainers.evaluate.mmbd import MMBD

PLAN = make_plan(SWEEP)
CLEANINGS = [cleaned_by(experiment) for _, experiment in PLAN.grid or ()]


def train(at: Store, stage: Stage, epochs: int, whole: bool = True) -> None:
    """Leave what a training of that many epochs leaves."""
    values = [{"zeroshot/top1": 50.0 + epoch, "asr/top1": 9.0 - epoch} for epoch in range(epochs + 1)]
    lines = [{"epoch": epoch, "step": epoch, "seconds": 1.0 * epoch, "metrics": metrics} for epoch, metrics in enumerate(values)]
    source = stage.pretrained
    assert source is not None
    measured = {source.digests[0]: {"from": 0, "names": ["asr/top1", "zeroshot/top1"]}}
    with at.working(stage.kind, stage.fingerprint) as folder:
        write_lines(folder / METRICS, lines)
        write_json(folder / MEASURED, {"measured": measured, "digest": digest_of(measured)})
        if whole:
            seal(stage, at, 3.0)


def told(study: Study) -> object:
    """Everything in a study that the store decides."""
    return replace(study, commit="")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of finished artefacts that are read, in turn."""
    files: list[Path] = []
    part, read = store.part, manifest.read_manifest

    def listed(artefact: store.Artefact, name: str) -> bytes:
        files.append(artefact.folder / name)
        return part(artefact, name)

    def listed_manifest(folder: Path) -> dict:
        files.append(folder / manifest.MANIFEST)
        return read(folder)

    for module in ("orchestrator.store", "orchestrator.stages.measured", "orchestrator.sweep.stored"):
        monkeypatch.setattr(f"{module}.part", listed)
    monkeypatch.setattr("orchestrator.store.read_manifest", listed_manifest)
    return files


def test_every_look_gives_what_a_first_look_gives_and_opens_only_what_is_new(tmp_path, opened):
    at, reader = Store(tmp_path), Reader(PLAN, Store(tmp_path))

    def look() -> tuple[Study, list[str]]:
        opened.clear()
        seen = reader.read(live=True)
        files = [str(path.relative_to(tmp_path)) for path in opened if path.parent.parent.name == "clean"]
        assert told(seen) == told(load_study(PLAN, at, live=True))
        return seen, files

    assert look()[0].missing == 4
    train(at, trained_by(BASE), 2)
    assert [one.status for one in look()[0].pretrains] == ["finished"]
    train(at, CLEANINGS[0], 1, whole=False)
    assert [(one.status, len(one.metrics)) for one in look()[0].trials] == [("running", 2)]
    train(at, CLEANINGS[0], 2, whole=False)
    assert [(one.status, len(one.metrics)) for one in look()[0].trials] == [("running", 3)]
    train(at, CLEANINGS[0], 3)
    seen, files = look()
    assert [(one.status, len(one.metrics)) for one in seen.trials] == [("finished", 4)] and len(files) >= 2
    train(at, CLEANINGS[2], 3)
    seen, files = look()
    assert len(seen.trials) == 2 and files and all(CLEANINGS[2].fingerprint[:12] in file for file in files)
    assert look()[1] == []
    [gone] = at.folders("clean", CLEANINGS[0].fingerprint[:12])
    shutil.rmtree(gone)
    seen, files = look()
    assert [one.fingerprint for one in seen.trials] == [CLEANINGS[2].fingerprint] and seen.missing == 3 and files == []


def test_what_is_measured_after_a_training_has_ended_is_read(tmp_path):
    asked = replace(BASE, evaluate=replace(BASE.evaluate, evaluators=(MMBD(),)))
    plan: Plan = make_plan(replace(SWEEP, base=asked))
    at, stage = Store(tmp_path), trained_by(asked)
    reader = Reader(plan, at)
    train(at, stage, 2)
    assert [sorted(line["metrics"]) for line in reader.read(live=True).pretrains[0].metrics] == [["asr/top1", "zeroshot/top1"]] * 3
    [later] = lacking(at, stage)
    assert later in list(measurements(stage))
    with at.working(later.kind, later.fingerprint) as folder:
        write_lines(folder / METRICS, [{"epoch": 2, "step": 0, "seconds": 0.0, "metrics": {"mmbd/p": 7.0}}])
        seal(later, at, 1.0)
    found = reader.read(live=True).pretrains[0].metrics
    assert found == load_study(plan, at, live=True).pretrains[0].metrics and found[2]["metrics"]["mmbd/p"] == 7.0


def test_damage_is_found_by_the_next_reader(tmp_path):
    at, stage = Store(tmp_path), trained_by(BASE)
    train(at, stage, 2)
    reader = Reader(PLAN, at)
    reader.read(live=True)
    [folder] = at.folders(stage.kind, stage.fingerprint[:12])
    (folder / METRICS).write_bytes(b"{}")
    with pytest.raises(InputError, match="not as its stage wrote it"):
        load_study(PLAN, at, live=True)


def test_a_record_that_changes_is_read_again(tmp_path):
    at, reader = Store(tmp_path), Reader(PLAN, Store(tmp_path))
    for stage, (overrides, _) in zip(CLEANINGS[:2], PLAN.grid or (), strict=False):
        remember_trial(at, PLAN.fingerprint, stage.fingerprint, overrides)
        train(at, stage, 1, whole=False)
    assert [one.status for one in reader.read(live=True).trials] == ["running", "running"]
    remember_trial(at, PLAN.fingerprint, CLEANINGS[1].fingerprint, (PLAN.grid or ())[1][0], status="stopped")
    assert [one.status for one in reader.read(live=True).trials] == ["running", "stopped"]
    [path] = tmp_path.glob(f"sweep/.trials-*/{CLEANINGS[1].fingerprint[:12]}.json")
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "status": "began"}))
    with pytest.raises(InputError, match="not as it was written"):
        reader.read(live=True)
    path.unlink()
    assert len(recorded_trials(PLAN, at)) == 1 and [one.status for one in reader.read(live=True).trials] == ["running", "running"]


def test_a_listed_store_finds_what_was_there_and_nothing_that_came_later(tmp_path):
    at, stage = Store(tmp_path), trained_by(BASE)
    before = at.listed()
    assert before.find(stage.kind, stage.fingerprint) is None
    train(at, stage, 1)
    after = at.listed()
    assert before.find(stage.kind, stage.fingerprint) is None
    found = after.find(stage.kind, stage.fingerprint)
    assert found is not None and found == at.find(stage.kind, stage.fingerprint)
    assert after.find(stage.kind, stage.fingerprint[:12] + "0" * 52) is None, "of another artefact with the same digits"
    assert not after.has(at.lock(stage.kind, stage.fingerprint)) and after.has(found.folder) and not after.has(found.folder.with_name("x"))
