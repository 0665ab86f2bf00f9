"""Shards of fetched pictures: what they hold, and what dies or fails in between."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.acquire.fetch import Wanted, fetch_shard, finished, may_pass_later, settle
from datasets.acquire.manners import Pacer
from datasets.acquire.urllist import Row
from datasets.errors import InputError
from datasets.index.source import Source
from tests.misbehaving import PLAIN, WANTED, Server


def make_rows(server: Server, *paths: str, **captions: str) -> list[Row]:
    return [Row(i + 1, server.url(path), captions.get(f"c{i}", f"thing number {i}"), "") for i, path in enumerate(paths)]


def shard(rows: list[Row], folder: Path, wanted: Wanted = WANTED, **options) -> dict:
    return fetch_shard(7, rows, folder, wanted, PLAIN, Pacer(PLAIN), **options)


def test_a_shard_holds_the_successes_and_its_table_every_row(server, tmp_path):
    paths = ["good.jpg", "status?404", "png.jpg", *4 * ["good.jpg"]]
    rows = make_rows(server, *paths, c3="", c4="12!", c5="short")
    rows.append(Row(8, "", "", "2 columns instead of 1"))
    told = Counter[str]()
    stats = shard(rows, tmp_path, replace(WANTED, min_caption_length=6), tell=lambda status: told.update([status]))
    expected = {"bad_line": 1, "empty_caption": 1, "http_404": 1, "no_letters": 1, "short_caption": 1, "success": 3}
    assert stats["status_dict"] == expected == dict(told) and stats["count"] == 8 == sum(expected.values())
    assert stats["bad_lines"] == {"8": "2 columns instead of 1"} and stats == finished(tmp_path, 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00007.parquet", "00007.tar", "00007_stats.json"]
    with tarfile.open(tmp_path / "00007.tar") as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
        assert all(m.mtime == 0 for m in archive)
    assert list(members) == [f"00007000{i}.{kind}" for i, image in ((0, "jpg"), (2, "png"), (6, "jpg")) for kind in (image, "txt", "json")]
    fields = json.loads(members["000070002.json"])
    table = pq.read_table(tmp_path / "00007.parquet").to_pylist()
    assert fields == {k: v for k, v in table[2].items() if k != "line"} and len(table) == 8
    assert fields["url"] == rows[2].url and fields["status"] == "success" and fields["original_width"] == 32 and len(fields["sha256"]) == 64
    index = Source(urls=str(tmp_path)).index_shard(0, str(tmp_path / "00007.tar"))
    assert set(index["drop"].to_pylist()) == {""} and index["caption"].to_pylist() == ["thing number 0", "thing number 2", "thing number 6"]


def test_a_finished_shard_is_not_fetched_anew(server, tmp_path):
    first = shard(make_rows(server, "good.jpg"), tmp_path)
    assert shard(make_rows(server, "status?404"), tmp_path) == first, "its process died after the shard was whole"


def test_duplicate_addresses_are_two_samples(server, tmp_path):
    assert shard(make_rows(server, "good.jpg", "good.jpg"), tmp_path)["successes"] == 2


def test_a_shard_depends_on_neither_threads_nor_time(server, tmp_path):
    rows = make_rows(server, *[f"numbered?{i}" for i in range(10)], "status?404", "short", "html.jpg")
    for name, threads in (("a", 1), ("b", 8)):
        manners = replace(PLAIN, threads=threads)
        fetch_shard(0, rows, tmp_path / name, WANTED, manners, Pacer(manners))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_shard_without_a_success_has_no_tar(server, tmp_path):
    assert shard(make_rows(server, "status?404"), tmp_path)["tar"] is None
    assert finished(tmp_path, 7) and not (tmp_path / "00007.tar").exists()


def test_only_a_whole_shard_is_finished(server, tmp_path):
    shard(make_rows(server, "good.jpg"), tmp_path)
    whole = (tmp_path / "00007.tar").read_bytes()
    (tmp_path / "00007.tar").write_bytes(whole[:40] + b"!" + whole[41:])
    assert finished(tmp_path, 7) is None
    (tmp_path / "00007.tar").write_bytes(b"cut")
    assert finished(tmp_path, 7) is None
    (tmp_path / "00007_stats.json").write_text("{")
    assert finished(tmp_path, 7) is None and finished(tmp_path, 8) is None


@pytest.mark.parametrize("table", [b"", b"PAR1 and no more", None])
def test_a_damaged_table_of_a_shard_to_fetch_again_is_named(server, tmp_path, table):
    shard(make_rows(server, "status?404"), tmp_path)
    if table is None:
        pq.write_table(pa.table({"key": ["a"]}), tmp_path / "00007.parquet")
    else:
        (tmp_path / "00007.parquet").write_bytes(table)
    with pytest.raises(InputError, match="00007.parquet cannot be read"):
        shard(make_rows(server, "good.jpg"), tmp_path, again=True)


def test_failures_can_be_tried_again_and_successes_stay(server, tmp_path):
    paths = ["numbered?1", "at_last?500x1&again", "html.jpg", "numbered?2", "status?404&again"]
    rows = make_rows(server, *paths)
    first = shard(rows, tmp_path / "a")
    assert first["status_dict"] == {"http_404": 1, "http_500": 1, "not_an_image": 1, "success": 2}
    asked = Counter(server.asked)
    second = shard(rows, tmp_path / "a", again=True)
    assert second["status_dict"] == {"http_404": 1, "not_an_image": 1, "success": 3}
    assert {path for path in server.asked if server.asked[path] > asked[path]} == {"/at_last?500x1&again", "/status?404&again"}
    shard(rows, tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes(), "as if they had come at once"
    assert may_pass_later("http_500") and not may_pass_later("bomb") and not may_pass_later("success")


def test_wherever_a_second_attempt_is_killed_no_success_is_lost(server, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    real, left = os.replace, 0

    def replace_or_die(*places):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        real(*places)

    outcomes = []
    for replacements in range(6):
        folder = tmp_path / str(replacements)
        rows = make_rows(server, f"numbered?{replacements}", f"at_last?500x1&{replacements}")
        old = shard(rows, folder)
        monkeypatch.setattr(os, "replace", replace_or_die)
        left = replacements
        with contextlib.suppress(Killed):
            shard(rows, folder, again=True)
        monkeypatch.setattr(os, "replace", real)
        settle(folder)
        stats = finished(folder, 7)
        assert stats is not None, "a whole set, the old or the new one"
        outcomes.append(stats["successes"])
        with tarfile.open(folder / "00007.tar") as archive:
            assert len(archive.getnames()) == 3 * stats["successes"]
        assert sorted(p.name for p in folder.iterdir()) == ["00007.parquet", "00007.tar", "00007_stats.json"]
        assert pq.read_table(folder / "00007.parquet")["status"].to_pylist().count("success") == stats["successes"]
        assert old["successes"] == 1
    assert outcomes == [1, 1, 2, 2, 2, 2], "written aside, then put in place as a whole"


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        shard(make_rows(server, "good.jpg"), tmp_path / "file" / "out")
