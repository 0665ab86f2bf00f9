"""The store: artefacts are complete or absent, whoever dies when."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.store import Store, read_lines, slug, verify, write_json

FP = "ab" * 32


def make(store: Store, text: str = "x") -> None:
    with store.working("clean", FP) as folder:
        (folder / "weights").write_text(text)
        (folder / "progress.json").write_text("{}")
        store.seal("clean", "My Model", FP, config={"lr": 1}, inputs={"pretrain": "cd" * 32}, seconds=1.5)


def test_sealed_artefacts_are_found_with_their_manifest(tmp_path):
    store = Store(tmp_path)
    store.prepare()
    assert store.find("clean", FP) is None
    make(store)
    found = store.find("clean", FP)
    assert found.folder.name == f"my-model-{FP[:12]}"
    assert found.manifest["config"] == {"lr": 1} and list(found.manifest["files"]) == ["weights"]
    assert [a.fingerprint for a in store.all()] == [FP] and verify(found) == []
    (found.folder / "weights").write_text("y")
    assert verify(found) == ["weights"]


def test_what_only_an_unfinished_stage_needs_goes_when_it_is_sealed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    with store.working("clean", FP) as folder:
        for name in ("epoch_0002/weights", "epoch_0002/state", "other/state"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            store.seal("clean", "m", FP, config={}, inputs={}, seconds=1.0, spent="epoch_*/state")
        assert (folder / "epoch_0002" / "state").exists(), "whoever goes on after a kill needs it"
        sealed = store.seal("clean", "m", FP, config={}, inputs={}, seconds=1.0, spent="epoch_*/state")
    assert list(sealed.manifest["files"]) == ["epoch_0002/weights", "other/state"] and verify(sealed) == []
    assert not (sealed.folder / "epoch_0002" / "state").exists()


def test_another_fingerprint_with_the_same_start_is_not_taken_for_it(tmp_path):
    store = Store(tmp_path)
    make(store)
    assert store.find("clean", FP[:12] + "0" * 52) is None


def test_a_killed_maker_leaves_no_artefact_and_lets_go_of_the_lock(tmp_path):
    program = (
        "import sys, time; from orchestrator.store import Store\n"
        "with Store(sys.argv[1]).working('clean', 'ab' * 32) as folder:\n"
        "    (folder / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout.readline() == b"ready\n"
    store = Store(tmp_path)
    with pytest.raises(InputError, match="another process"), store.working("clean", FP, wait_s=0):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert store.find("clean", FP) is None
    start = time.monotonic()
    with store.working("clean", FP) as folder:
        assert (folder / "half").exists(), "the next attempt continues in the same folder"
    assert time.monotonic() - start < 30


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/store"):
        Store(tmp_path / "file" / "store").prepare()
    with pytest.raises(InputError, match="s3://bucket"):
        Store("s3://bucket/x")


def test_a_half_written_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1')
    assert read_lines(path) == [{"epoch": 0}]
    assert read_lines(tmp_path / "absent") == []


def test_what_ends_in_an_error_with_nothing_made_leaves_no_folder(tmp_path):
    store = Store(tmp_path)
    for made in ((), ("half",)):
        with pytest.raises(ValueError), store.working("clean", FP) as folder:
            for name in made:
                (folder / name).write_text("")
            raise ValueError
        assert folder.exists() == bool(made)


def test_a_lock_that_another_holds_meanwhile_is_left_alone(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError), store.working("clean", FP) as folder:
        store.discard("clean", FP)
        with store.working("clean", FP, wait_s=0) as other:  # a new folder with a new lock
            assert other == folder
        raise ValueError
    assert (folder / ".lock").exists()


def test_nothing_stays_of_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / "out.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "other.json", object())
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_slug():
    assert slug("MMCL + SSL / é") == "mmcl-ssl"
    assert slug("…") == "stage"
