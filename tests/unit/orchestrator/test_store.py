"""The store: artefacts are complete or absent, whoever dies when."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.errors import InputError
from orchestrator.commands.show import show
from orchestrator.experiment.identity import weights_identity
from orchestrator.store import Store, checked, read_lines, slug, verify, write_json, write_lines
from tests.experiments import ROOT
from trainers.model import Model

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


def test_a_sealing_whose_process_was_killed_is_finished_and_one_at_work_is_left_alone(tmp_path):
    store, pattern = Store(tmp_path), {"clean": "epoch_*/state"}
    make(store)
    folder = store.find("clean", FP).folder
    left = [folder / "epoch_0002" / "state", store.lock("clean", FP)]
    unfinished = store.lock("clean", "cd" * 32)  # that a stage was killed in which is not finished: the next attempt takes it
    kept = [folder / "epoch_0002" / "weights", folder / "weights", unfinished]
    left[0].parent.mkdir()
    for path in (*left, *kept):
        path.write_text("x")
    with store.locked(store.lock("clean", FP), "x", 0):
        store.finish_sealing(pattern)
        assert all(path.exists() for path in left + kept)
    left[1].write_text("x")
    store.finish_sealing(pattern)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)


def test_what_a_killed_command_left_of_trying_the_store_goes(tmp_path):
    (tmp_path / ".probe").write_text("x")
    Store(tmp_path).prepare()
    assert list(tmp_path.iterdir()) == []


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
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
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
    assert time.monotonic() - start < 30 and not list(tmp_path.glob("clean/.lock*"))


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


def test_a_stage_is_held_even_when_its_folder_goes_and_no_lock_is_left(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError), store.working("clean", FP) as folder:
        store.discard("clean", FP)
        with pytest.raises(InputError, match=f"another process, {os.getpid()} on "), store.working("clean", FP, wait_s=0):
            pass
        raise ValueError
    make(store)
    assert not folder.exists() and [path.name for path in folder.parent.iterdir()] == [store.find("clean", FP).folder.name]


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


def spoil(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [
    lambda path: path.write_bytes(b"\xff\xfe\x00"),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_text("null"),
    lambda path: path.write_text(""),
    lambda path: path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "files"})),
    lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"files": ["weights"]})),
    lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"created": 3})),
    lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 3.0})),
    lambda path: path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digest"})),
    lambda path: path.unlink(),
])  # fmt: skip
def test_a_damaged_manifest_names_itself_and_hurts_its_own_stage_alone(tmp_path, capsys, harm):
    store = Store(tmp_path)
    make(store)
    other = "cd" * 32
    with store.working("clean", other) as folder:
        (folder / "weights").write_text("y")
        store.seal("clean", "other", other, config={}, inputs={}, seconds=1.0)
    manifest = store.find("clean", FP).folder / "manifest.json"
    harm(manifest)
    with pytest.raises(InputError, match=f"{manifest} .*delete the folder"):
        store.find("clean", FP)
    assert [artefact.fingerprint for artefact in store.all()] == [other] and store.find("clean", other) is not None
    assert [folder for folder, _ in store.damaged()] == [manifest.parent]
    assert show(str(tmp_path), None, False) == 1
    printed = capsys.readouterr().out
    assert "DAMAGED manifest.json" in printed and "other" in printed
    assert show(str(tmp_path), other[:8], False) == 0 and show(str(tmp_path), FP[:8], False) == 1


def test_a_manifest_without_a_digest_of_an_older_version_is_read(tmp_path):
    store = Store(tmp_path)
    make(store)
    path = store.find("clean", FP).folder / "manifest.json"
    older = {k: v for k, v in json.loads(path.read_text()).items() if k != "digest"} | {"format": 1}
    path.write_text(json.dumps(older))
    assert store.find("clean", FP).manifest == older


@pytest.mark.parametrize("at", [0, 0.2, 0.4, 0.6, 0.8, 1])
def test_a_byte_of_a_manifest_is_never_another_without_a_word(tmp_path, at):
    store = Store(tmp_path)
    make(store)
    whole = store.find("clean", FP).manifest
    spoil(store.find("clean", FP).folder / "manifest.json", at)
    try:
        assert store.find("clean", FP).manifest == whole, "a blank that became another character between the fields"
    except InputError as error:
        assert "manifest.json" in str(error)


def test_a_file_is_checked_once_and_again_when_it_changed(tmp_path):
    store = Store(tmp_path)
    make(store)
    folder = store.find("clean", FP).folder
    file = folder / "weights"
    assert checked(file) == file and checked(str(folder)) == folder and checked(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert checked("s3://bucket/x") == Path("s3://bucket/x")
    file.write_text("y")
    for path in (file, folder):
        with pytest.raises(InputError, match=f"{file} is not as its stage wrote it"):
            checked(path)
    copied = shutil.copytree(folder, tmp_path / "copies" / folder.name)
    with pytest.raises(InputError, match="copies/.*/weights is not as its stage wrote it"):
        checked(copied / "weights")
    file.unlink()
    with pytest.raises(InputError, match="weights is missing"):
        checked(file)


def test_a_file_is_checked_through_links_and_other_spellings(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    with store.working("clean", FP) as folder:
        (folder / "epoch_0001").mkdir()
        (folder / "epoch_0001" / "weights").write_text("x")
        store.seal("clean", "m", FP, config={}, inputs={}, seconds=1.0)
    folder = store.find("clean", FP).folder
    (tmp_path / "stage").symlink_to(folder)
    (tmp_path / "epoch").symlink_to(folder / "epoch_0001")
    monkeypatch.chdir(folder / "epoch_0001")
    ways = [tmp_path / "stage" / "epoch_0001", tmp_path / "epoch", tmp_path / "epoch" / "weights", "../epoch_0001", "weights"]
    assert [checked(way) for way in ways] == [Path(way) for way in ways]
    (folder / "epoch_0001" / "weights").write_text("y")
    for way in ways:
        with pytest.raises(InputError, match="epoch_0001/weights is not as its stage wrote it"):
            checked(way)
    (folder / "epoch_0001" / "weights").rename(tmp_path / "elsewhere")
    (folder / "epoch_0001" / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="epoch_0001/weights is not as its stage wrote it"):
        checked(folder / "epoch_0001" / "weights")
    (folder / "other").write_text("z")
    with pytest.raises(InputError, match="other is none of the files that its stage wrote"):
        checked(folder / "other")


def test_data_of_a_users_own_are_no_artefact_and_one_without_its_manifest_is(tmp_path):
    own = tmp_path / "clean" / "cc3m-202301011200" / "00000.tar"
    own.parent.mkdir(parents=True)
    own.write_text("x")
    assert checked(own) == own and checked(own.parent) == own.parent
    store = Store(tmp_path / "store")
    make(store)
    with store.working("pretrain", "ef" * 32):
        store.seal("pretrain", "m", "ef" * 32, config={}, inputs={}, seconds=1.0)
    folder = store.find("clean", FP).folder
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="manifest.json is missing"):
        checked(folder / "weights")


def test_half_written_and_half_removed_files_are_never_sealed(tmp_path):
    store = Store(tmp_path)
    with store.working("clean", FP) as folder:
        for name in (".epoch_0001.removed/w", ".epoch_0003.partial/w", "epoch_0002/weights", ".metrics.jsonl.7.tmp", "sub/.x.tmp"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
        sealed = store.seal("clean", "m", FP, config={}, inputs={}, seconds=1.0)
    assert list(sealed.manifest["files"]) == ["epoch_0002/weights"]
    assert sorted(path.name for path in sealed.folder.iterdir()) == ["epoch_0002", "manifest.json", "sub"]


def test_a_line_of_metrics_that_is_not_as_it_was_written_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"epoch": 0, "metrics": {"asr/top1": 97.5}}, {"epoch": 1, "metrics": {}}]
    write_lines(path, lines)
    assert read_lines(path) == lines
    path.write_text(path.read_text().replace("97.5", "07.5"))
    with pytest.raises(InputError, match="metrics.jsonl is not as it was written"):
        read_lines(path)
    path.write_text(path.read_text().replace("07.5", "17.5"))
    with pytest.raises(InputError, match="metrics.jsonl is not as it was written"):
        read_lines(path)


def test_a_model_does_not_start_from_a_damaged_checkpoint_of_a_store(tmp_path):
    store = Store(tmp_path)
    with store.working("clean", FP) as folder:
        (folder / "epoch_0001").mkdir()
        (folder / "epoch_0001" / "open_clip_model.safetensors").write_text("x")
        store.seal("clean", "m", FP, config={}, inputs={}, seconds=1.0)
    epoch = store.find("clean", FP).folder / "epoch_0001"
    assert weights_identity(Model(pretrained=str(epoch)))["size"] == 1
    (epoch / "open_clip_model.safetensors").write_text("y")
    with pytest.raises(InputError, match="epoch_0001/open_clip_model.safetensors is not as its stage wrote it"):
        weights_identity(Model(pretrained=str(epoch)))
