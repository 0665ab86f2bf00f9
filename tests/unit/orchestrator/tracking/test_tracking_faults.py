"""MLflow's database in a store at any path, moved, made by two at once, damaged; runs deleted, answers lost."""

import http.client
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datasets.errors import InputError
from datasets.seeding import rng
from orchestrator.results.outcome import Study
from orchestrator.running.driver import make_tracker
from orchestrator.store import Store
from orchestrator.tracking.server import CALM, QUIET, absolute_uri, serve, ui_command
from orchestrator.tracking.tracker import Tracker, TrackingError
from tests.experiments import ROOT
from tests.unit.fake_study import fake_study


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A store with a database and no experiment of ours; making one takes seconds."""
    root = tmp_path_factory.mktemp("made")
    Tracker(f"sqlite:///{root / 'mlflow.db'}", "other").check()
    return root


def store_at(root: Path, made: Path) -> Store:
    root.mkdir(parents=True)
    shutil.copy(made / "mlflow.db", root)
    return Store(root)


def small(root: Path) -> Study:
    """One pre-training and one cleaning."""
    study = fake_study(root)
    study.pretrains, study.trials = study.pretrains[:1], study.trials[:1]
    return study


def log(tracker: Tracker, study: Study) -> str:
    parent = tracker.sweep_run(study)
    for role, result in (("pretrain", study.pretrains[0]), ("clean", study.trials[0])):
        tracker.stage_run(result, parent, role)
        tracker.finish(result)
    tracker.finish_sweep(parent, study)
    tracker.close_stale(parent)
    return parent


def active(tracker: Tracker) -> dict[str, str]:
    """Fingerprint → id of every run that is not deleted; fails where two have the same."""
    found = tracker._client.search_runs([tracker._experiment])
    by_fingerprint = {run.data.tags["cleansweep.fingerprint"]: run.info.run_id for run in found}
    assert len(by_fingerprint) == len(found), "a run is doubled"
    return by_fingerprint


ODD = (
    "with space", "ü", "#1", "%41", "feature%2Fx", "what?", "a?b=c", "[x]", "{a,b}", "'\"", "back\\slash", "a\tb", "*", "100%", ":memory:",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_store_of_any_name_holds_its_database_and_its_files(name: str, tmp_path: Path, made: Path):
    store = store_at(tmp_path / name / "store", made)
    study = small(store.root)
    tracker = make_tracker(store, "", study.name)
    tracker.check()
    parent = log(tracker, study)
    assert {file.path for file in tracker._client.list_artifacts(parent)} == {"config.json", "poison.json"}
    files = {path.name for path in (store.root / "mlflow-artifacts" / parent / "artifacts").iterdir()}
    assert files == {"config.json", "poison.json"}
    assert [path.name for path in tmp_path.iterdir()] == [name] and [path.name for path in (tmp_path / name).iterdir()] == ["store"]
    with sqlite3.connect(store.root / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_a_new_database_is_made_at_a_path_that_has_to_be_quoted(tmp_path: Path):
    store = Store(tmp_path / "what?%41")
    store.prepare()
    make_tracker(store, "", "x").check()
    assert [path.name for path in tmp_path.iterdir()] == ["what?%41"]
    assert (store.root / "mlflow.db").stat().st_size > 0


def test_the_pages_show_the_files_of_a_store_of_any_name(tmp_path: Path, made: Path):
    store = store_at(tmp_path / "what? %41 [x]", made)
    study = small(store.root)
    tracker = make_tracker(store, "", study.name)
    parent = log(tracker, study)
    with served(f"sqlite:///{store.root / 'mlflow.db'}", tmp_path) as port:
        address = f"http://127.0.0.1:{port}/get-artifact?path=config.json&run_uuid={parent}"
        assert b"quickstart" in urllib.request.urlopen(address, timeout=60).read()
    assert [path.name for path in tmp_path.iterdir()] == ["what? %41 [x]"]


class served:
    """MLflow's own server for a database, until the block ends; gives its port."""

    def __init__(self, uri: str, folder: Path):
        self.uri, self.folder = uri, folder

    def __enter__(self) -> int:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, **QUIET, **CALM, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            ui_command(self.uri, port), env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )  # fmt: skip
        for _ in range(900):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    return port
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.2)
        self.__exit__()
        raise AssertionError("the server did not start")

    def __exit__(self, *exception: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)


MAKE = (
    "import sys; from orchestrator.tracking.tracker import Tracker\n"
    "Tracker(f'sqlite:///{sys.argv[1]}/mlflow.db', sys.argv[2]).check()"
)


def test_processes_that_come_to_a_new_store_at_once_all_go_on(tmp_path: Path):
    """Of one sweep and of different ones."""
    (tmp_path / "store").mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path / "store"), name], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("a", "a", "b")
    ]
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as database:
        assert sorted(database.execute("SELECT name FROM experiments")) == [("Default",), ("a",), ("b",)]


def places(root: Path) -> set[str]:
    with sqlite3.connect(root / "mlflow.db") as database:
        rows = database.execute("SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM experiments WHERE name = 'quickstart'")
        return {row[0] for row in rows}


def logged_by_another_process(root: Path) -> str:
    """As the next command does; MLflow remembers where a run's files are as long as a process lives."""
    script = (
        "import sys; from tests.unit.orchestrator.tracking.test_tracking_faults import *\n"
        "store = Store(sys.argv[1]); tracker = make_tracker(store, '', 'quickstart'); parent = log(tracker, small(store.root))\n"
        "print(parent, len(active(tracker)), *sorted(file.path for file in tracker._client.list_artifacts(parent)))"
    )
    paths = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(root)]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_that_was_moved_has_its_files_and_writes_no_others(how: str, tmp_path: Path, made: Path):
    old = store_at(tmp_path / "old", made)
    study = small(old.root)
    parent = log(make_tracker(old, "", study.name), study)
    before = sorted(tmp_path.glob("old/mlflow-artifacts/**/*"))
    if how == "moved":
        old.root.rename(tmp_path / "new %41")
    else:
        shutil.copytree(old.root, tmp_path / "new %41")
    new = Store(tmp_path / "new %41")
    assert logged_by_another_process(new.root) == f"{parent} 3 config.json poison.json"
    assert all(place.startswith(f"{(new.root / 'mlflow-artifacts').as_uri()}") for place in places(new.root))
    assert old.root.exists() == (how == "copied")
    if how == "copied":
        assert sorted(tmp_path.glob("old/mlflow-artifacts/**/*")) == before
        assert all(place.startswith(f"{(old.root / 'mlflow-artifacts').as_uri()}") for place in places(old.root))


def test_the_files_of_another_store_that_uses_the_database_stay_where_they_are(tmp_path: Path, made: Path):
    store, other = store_at(tmp_path / "store", made), Store(tmp_path / "other")
    study = small(other.root)
    log(make_tracker(other, f"sqlite:///{store.root / 'mlflow.db'}", study.name), study)
    make_tracker(store, "", "x").check()
    assert all(place.startswith((other.root / "mlflow-artifacts").as_uri()) for place in places(store.root))


@pytest.mark.parametrize("which", ["sweep", "pretrain", "clean", "all", "experiment"])
def test_what_was_deleted_in_the_pages_comes_back_once(which: str, tmp_path: Path, made: Path):
    store = store_at(tmp_path / "store", made)
    study = small(store.root)
    first = make_tracker(store, "", study.name)
    log(first, study)
    before = active(first)
    if which == "experiment":
        first._client.delete_experiment(first._experiment)
    for run in first._client.search_runs([first._experiment]):
        if which in ("all", run.data.tags["role"]):
            first._client.delete_run(run.info.run_id)
    again = make_tracker(store, "", study.name)
    again.check()
    log(again, study)
    assert active(again) == before
    assert {run.info.status for run in again._client.search_runs([again._experiment])} == {"FINISHED"}


def test_a_run_that_is_deleted_while_it_is_written_is_an_error_that_the_same_driver_mends(tmp_path: Path, made: Path):
    store = store_at(tmp_path / "store", made)
    study = small(store.root)
    tracker = make_tracker(store, "", study.name)
    parent = tracker.sweep_run(study)
    run_id = tracker.stage_run(study.trials[0], parent, "clean")
    tracker._client.delete_run(run_id)
    with pytest.raises(TrackingError, match="the same command logs them later"):
        tracker.sync(study.trials[0])
    log(tracker, study)
    assert active(tracker)[study.trials[0].fingerprint] == run_id


def test_a_parent_that_is_gone_for_good_costs_no_child_a_twin(tmp_path: Path, made: Path):
    store = store_at(tmp_path / "store", made)
    study = small(store.root)
    parent = log(make_tracker(store, "", study.name), study)
    with sqlite3.connect(store.root / "mlflow.db") as database:  # as `mlflow gc` does
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (parent,))
    again = make_tracker(store, "", study.name)
    new = log(again, study)
    assert new != parent and len(active(again)) == 3
    children = [run for run in again._client.search_runs([again._experiment]) if run.info.run_id != new]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {new}


def test_an_answer_that_is_lost_makes_no_second_run(tmp_path: Path, made: Path):
    """Of the answers to each kind of request that makes or changes something the first is lost between MLflow's server and its client by
    a cut connection, and the third by a gateway's error."""
    study = small(tmp_path)
    shutil.copy(made / "mlflow.db", tmp_path)
    with served(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path) as port:
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), losing(port))
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            tracker = Tracker(f"http://127.0.0.1:{proxy.server_port}", study.name)
            log(tracker, study)
            assert all(proxy.RequestHandlerClass.posts[f"/api/2.0/mlflow/runs/{what}"] >= 3 for what in ("create", "log-batch"))
            runs = tracker._client.search_runs([tracker._experiment], run_view_type=3)
            assert len(runs) == len(active(tracker)) == 3 and {run.info.status for run in runs} == {"FINISHED"}
            for result in (study.pretrains[0], study.trials[0]):
                history = tracker._client.get_metric_history(active(tracker)[result.fingerprint], "zeroshot/top1")
                assert sorted(point.step for point in history) == [entry["epoch"] for entry in result.metrics]
        finally:
            proxy.shutdown()


def losing(port: int):
    """Handler of a proxy before this port, which loses the first and the third answer to each kind of POST."""

    class Proxy(BaseHTTPRequestHandler):
        posts: Counter[str] = Counter()

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            data = answer.read()
            server.close()
            if self.command == "POST" and not self.path.endswith("search"):
                self.posts[self.path] += 1
                if self.posts[self.path] == 1:
                    self.close_connection = True
                    self.connection.close()
                    return
                if self.posts[self.path] == 3:
                    self.send_error(502)
                    return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = forward  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    return Proxy


def test_twins_that_an_earlier_driver_left_are_made_one(tmp_path: Path, made: Path):
    store = store_at(tmp_path / "store", made)
    study = small(store.root)
    first = make_tracker(store, "", study.name)
    log(first, study)
    before = active(first)
    whole = first._client.get_run(before[study.trials[0].fingerprint])
    twin = first._client.create_run(first._experiment, start_time=1, tags=dict(whole.data.tags) | {"cleansweep.complete": ""})
    first._client.delete_tag(twin.info.run_id, "cleansweep.complete")
    again = make_tracker(store, "", study.name)
    log(again, study)
    assert active(again) == before


def test_what_failed_has_no_final_point_and_what_goes_on_after_it_has_one(tmp_path: Path, made: Path):
    store = store_at(tmp_path / "store", made)
    study = small(store.root)
    trial, whole = study.trials[0], study.trials[0].metrics
    tracker = make_tracker(store, "", study.name)
    trial.metrics, trial.status, trial.error = whole[:1], "failed", "No space left on device"
    log(tracker, study)
    trial.metrics, trial.status, trial.error = whole, "finished", None
    again = make_tracker(store, "", study.name)
    log(again, study)
    [final] = again._client.get_metric_history(active(again)[trial.fingerprint], "final/asr")
    assert (final.step, final.value) == (whole[-1]["epoch"], whole[-1]["metrics"]["asr/top1"])


def damaged(root: Path, number: int) -> None:
    """Flip a byte, in one of four kinds of place: the header, any, a text of ours, or cut the file."""
    file = root / "mlflow.db"
    data = bytearray(file.read_bytes())
    draw = rng("damage", number)
    if number % 10 == 0:
        del data[int(draw.integers(1, len(data))) :]
    elif number % 3 == 0:
        data[int(draw.integers(100))] ^= 1 << int(draw.integers(8))
    else:
        words = [b"cleansweep.", b"FINISHED", b"active", b"file:///", b"zeroshot/", b"mlflow.", b"CREATE TABLE"]
        word = words[int(draw.integers(len(words)))]
        starts = [at for at in range(len(data)) if data.startswith(word, at)]
        data[starts[int(draw.integers(len(starts)))] + int(draw.integers(-34, len(word)))] ^= 1 << int(draw.integers(8))
    file.write_bytes(data)


def test_a_damaged_database_is_a_sentence_without_sql_or_is_written_to_the_end(tmp_path: Path, made: Path):
    whole = store_at(tmp_path / "whole", made)
    study = small(tmp_path / "results")
    log(make_tracker(whole, "", study.name), study)
    said = []
    for number in range(40):
        root = tmp_path / f"{number}"
        shutil.copytree(whole.root, root)
        damaged(root, number)
        try:
            tracker = make_tracker(Store(root), "", study.name)
            tracker.check()
            log(tracker, study)
        except (InputError, TrackingError) as error:
            said.append(str(error))
    assert said, "no flip was noticed"
    for text in said:
        assert "\n" not in text and "mlflow.db" in text
        assert not [word for word in ("SELECT ", "INSERT ", "UPDATE ", "[SQL", "sqlalche") if word in text], text


@pytest.mark.parametrize(("uri", "said"), [
    ("http://[x", "no address"), ("http://host:port", "no address"), ("http://a\nb", "one line"), ("sqlite:///", "sqlite:///PATH"),
    ("sqlite://", "sqlite:///PATH"), ("sqlite:///:memory:", "sqlite:///PATH"), ("sqlite:///x.db?timeout=3", "without options"),
    ("sqlite:///~nobody-of-this-name/x.db", "home"), ("sqlite:///a\0b", "one line"), ("", "sqlite:///PATH"), ("ftp://x", "sqlite:///PATH"),
])  # fmt: skip
def test_an_address_that_is_none(uri: str, said: str):
    with pytest.raises(InputError, match=said):
        absolute_uri(uri)


def test_the_pages_of_a_damaged_database_are_refused(tmp_path: Path):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match="mlflow.db cannot be used: the file is no database"):
        serve(f"sqlite:///{tmp_path / 'mlflow.db'}")
