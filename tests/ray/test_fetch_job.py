"""Fetching a list by the command, on a real Ray, from a server on this machine."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.acquire.fetch import finished
from datasets.index.source import Source
from tests.experiments import cleansweep, start, stop, wait_for
from tests.misbehaving import Server, serving

OPTIONS = ("--shard-size", "20", "--allow-private", "--host-rate", "0", "--host-connections", "0", "--threads", "4", "--backoff", "0.01")
OPTIONS += ("--retries", "1", "--timeout", "20", "--num-cpus", "2")
ODD = ("status?404", "html.jpg", "bomb", "short", "loop", "reset", "at_last?500x1", "nothing")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def urls(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 rows: slow pictures, a bad habit for every tenth, two broken lines."""
    lines = [f"a picture of thing {i}\t{server.url(ODD[i // 10 % len(ODD)] if i % 10 == 3 else f'slow?{i}')}" for i in range(110)]
    lines[7], lines[50] = "no tab", "12 34\t" + server.url("slow?50")
    path = tmp_path_factory.mktemp("list") / "list.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def undisturbed(urls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run in a process and a Ray of its own fetches."""
    out = tmp_path_factory.mktemp("fetched") / "out"
    code, output = cleansweep("fetch", str(urls), str(out), *OPTIONS)
    assert code == 0, output
    return out


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_the_counts_add_up_and_the_shards_are_a_source(undisturbed: Path):
    summary = json.loads((undisturbed / "summary.json").read_text())
    status = Counter(summary["status"])
    assert summary["rows"] == 110 == sum(status.values()) and summary["shards"] == 6
    assert status["bad_line"] == status["no_letters"] == 1 and status["bomb"] == status["http_404"] == 2
    assert status["truncated"] == status["redirect_limit"] == status["reset"] == status["empty"] == 1
    source = Source(urls=str(undisturbed))
    rows = [row for n, url in enumerate(source.shards()) for row in source.index_shard(n, url).to_pylist()]
    assert len(rows) == status["success"] and {row["drop"] for row in rows} == {""}
    assert all(row["caption"] == f"a picture of thing {20 * int(row['key'][:5]) + int(row['key'][5:])}" for row in rows)


def test_running_again_asks_nobody(here: Run, urls: Path, undisturbed: Path, server: Server):
    before, asked = files(undisturbed), sum(server.asked.values())
    code, output = here("fetch", str(urls), str(undisturbed), *OPTIONS)
    assert code == 0 and files(undisturbed) == before and sum(server.asked.values()) == asked, output


def test_killed_and_run_again(urls: Path, undisturbed: Path, tmp_path: Path):
    """SIGKILL of the driver, then SIGTERM of its successor; the third comes to the bytes of the undisturbed run."""
    out = tmp_path / "out"
    for number, code, shards in ((signal.SIGKILL, -9, 1), (signal.SIGTERM, 130, 3)):
        process = start("fetch", str(urls), str(out), *OPTIONS, "--tasks", "1")
        try:
            wait_for(lambda shards=shards: sum(finished(out, n) is not None for n in range(6)) >= shards, process)
            os.kill(process.pid, number)
            if number == signal.SIGTERM:
                output, _ = process.communicate(timeout=120)
                assert "the same command continues" in output and "Traceback" not in output
        finally:
            stop(process)
        assert process.returncode == code
    whole = {n: (out / f"{n:05d}_stats.json").stat().st_mtime_ns for n in range(6) if finished(out, n)}
    assert len(whole) < 6 and not (out / "summary.json").exists()
    code, output = cleansweep("fetch", str(urls), str(out), *OPTIONS)
    assert code == 0 and files(out) == files(undisturbed), output
    assert all((out / f"{n:05d}_stats.json").stat().st_mtime_ns == at for n, at in whole.items()), "whole shards were left alone"


def test_failures_are_tried_again(here: Run, tmp_path: Path, server: Server):
    (tmp_path / "list.csv").write_text("url,text\n" + "".join(f"{server.url(f'at_last?500x{n}&r')},picture {n}\n" for n in (0, 1, 2, 9)))
    words = ("fetch", str(tmp_path / "list.csv"), str(tmp_path / "out"), *OPTIONS, "--retries", "0")
    for flags, expected in (((), 1), (("--retry-failed",), 2), (("--retry-failed",), 3)):
        code, output = here(*words, *flags)
        assert code == 0, output
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == {"success": expected, "http_500": 4 - expected}


def test_mistakes_are_told_in_a_sentence(here: Run, urls: Path, undisturbed: Path, tmp_path: Path):
    before = files(undisturbed)
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "changed.tsv").write_text(urls.read_text() + "one more\thttp://127.0.0.1/x\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for words, said in (
        ((str(tmp_path / "empty.tsv"), str(tmp_path / "o")), "empty.tsv is empty"),
        ((str(urls.with_name("none.tsv")), str(tmp_path / "o")), "none.tsv cannot be read"),
        ((str(urls), "s3://bucket/shards"), "is no folder"),
        ((str(urls), str(tmp_path / "mine"), *OPTIONS), "mine exists and is not empty"),
        ((str(urls), str(undisturbed), *OPTIONS, "--resize", "64"), "begun with resize = None, now it is 64"),
        ((str(tmp_path / "changed.tsv"), str(undisturbed), *OPTIONS), "another list"),
        ((str(urls), str(undisturbed), *OPTIONS, "--threads", "0"), "threads is 0"),
    ):
        code, output = here("fetch", *words)
        [line] = [line for line in output.splitlines() if line.startswith("cleansweep: ")]
        assert code == 2 and said in line and "Traceback" not in output
    assert files(undisturbed) == before and not (tmp_path / "o").exists()


def test_a_parquet_list_gives_the_shards_of_its_text(here: Run, server: Server, tmp_path: Path):
    rows = [(f"a picture of thing {i}", server.url("nothing" if i == 7 else f"slow?{i}")) for i in range(30)]
    (tmp_path / "list.tsv").write_text("".join(f"{caption}\t{url}\n" for caption, url in rows))
    columns = {"id": list(range(30)), "URL": [url for _, url in rows], "TEXT": [text for text, _ in rows]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    outputs = []
    for name in ("list.tsv", "list.parquet"):
        code, output = here("fetch", str(tmp_path / name), str(tmp_path / f"{name}-out"), *OPTIONS)
        assert code == 0, output
        outputs.append(output)
    text, parquet = (files(tmp_path / f"{name}-out") for name in ("list.tsv", "list.parquet"))
    assert text.keys() == parquet.keys() and [text[name] for name in text if name.endswith(".tar")] == [
        parquet[name] for name in parquet if name.endswith(".tar")
    ]
    assert json.loads(parquet["summary.json"])["status"] == json.loads(text["summary.json"])["status"]
    assert "addresses from the column 'URL', captions from 'TEXT'" in outputs[1]
