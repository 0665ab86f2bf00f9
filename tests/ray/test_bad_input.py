"""Mistakes that only a run can find: one sentence, exit code 2, nothing under a final name, no traceback."""

import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from datasets.synthetic import tiny
from tests.experiments import ROOT, artefacts

OWN = str(ROOT / "tests" / "own_sweep.py")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """200 pairs in one shard and 40 test pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    tiny(train=200, test=40).write(folder)
    return folder


def refused(output: str, code: int) -> str:
    """The one line a user reads."""
    assert code == 2, output
    assert "Traceback" not in output, output
    [line] = [line for line in output.splitlines() if line.startswith("cleansweep: ")]
    return line


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(here: Run, data: Path) -> Run:
    """`cleansweep run` of the sweep over these data."""
    return lambda *words: here("run", OWN, "--store", str(data.parent / "store"), *words, OWN_DATA=str(data))


def test_truncated_tar(data: Path, run: Run):
    shard = data / "train" / "00000.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    code, output = run()
    line = refused(output, code)
    assert "00000.tar" in line and "byte" in line
    assert artefacts(data.parent / "store", "index") == {}


def test_missing_shards(data: Path, run: Run):
    (data / "train" / "00000.tar").unlink()
    code, output = run()
    assert "train/*.tar" in refused(output, code)


def test_pictures_that_do_not_decode_are_counted_and_too_many_fail(data: Path, here: Run, run: Run):
    from tests.unit.making import members, tar

    good = members(0, 160)
    tar(data / "train" / "00000.tar", good)
    tar(data / "train" / "00001.tar", [(f"bad{i}.{kind}", text) for i in range(10) for kind, text in (("jpg", b"no"), ("txt", b"a dog"))])
    store = data.parent / "store"
    code, output = here("poison", OWN, "--store", str(store), "--out", str(data.parent / "out"), OWN_DATA=str(data))
    assert code == 0, output
    [index] = artefacts(store, "index").values()
    assert json.loads((index / "summary.json").read_text())["drops"] == {"undecodable": 10}
    tar(data / "train" / "00002.tar", [(f"worse{i}.{kind}", text) for i in range(90) for kind, text in (("jpg", b"no"), ("txt", b"a dog"))])
    code, output = run()
    line = refused(output, code)
    assert "undecodable 100" in line and "max_dropped" in line


def test_a_label_that_is_no_class(data: Path, run: Run):
    (data / "test" / "classnames.txt").write_text("banana\ncircle\n")
    code, output = run()
    assert "label" in refused(output, code)


def test_a_target_that_is_no_class_and_workers_that_cannot_share_a_batch(data: Path, run: Run):
    code, output = run("--poison.target", "zebra")
    assert "zebra" in refused(output, code)
    code, output = run("--workers", "3", "--cpus-per-worker", "0.5")
    assert "16" in refused(output, code) and "3" in refused(output, code)


@pytest.mark.parametrize(("path", "value", "said"), [("poison.rate", "0.0001", "no victims"), ("clean.pairs", "5000", "5000")])
def test_numbers_that_the_data_do_not_have(run: Run, path: str, value: str, said: str):
    code, output = run(f"--{path}", value)
    assert said in refused(output, code)


def test_a_checkpoint_of_another_architecture(data: Path, here: Run, tmp_path: Path):
    import torch

    torch.save({"state_dict": {"visual.conv1.weight": torch.zeros(3)}}, tmp_path / "other.pt")
    code, output = here(
        "evaluate", OWN, "--store", str(tmp_path / "store"), "--checkpoint", str(tmp_path / "other.pt"), OWN_DATA=str(data)
    )
    assert "other.pt" in refused(output, code)


def test_a_store_that_cannot_be_written(data: Path, run: Run):
    (data.parent / "store").write_text("a file")
    code, output = run()
    assert "store" in refused(output, code)


def test_a_tracking_server_that_is_not_there(data: Path, run: Run):
    code, output = run("--tracking-uri", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in refused(output, code)
    assert not list((data.parent / "store").glob("*/*/manifest.json")), "found before anything is made"


def test_a_server_that_is_not_mlflow(data: Path, run: Run):
    class Teapot(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 (the name is http.server's)
            self.send_error(418)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Teapot)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        code, output = run("--tracking-uri", f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
    assert str(server.server_port) in refused(output, code)
