"""An index under way goes on from the tables of its shards that are whole; the others are made again. Without Ray: threads index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from datasets.index.source import Source
from orchestrator.cluster import streaming
from orchestrator.cluster.streaming import index_shards
from tests.unit.making import members, tar


def flipped(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b"000000001")
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def another_count(path: Path) -> None:
    note = json.loads(path.read_text())
    path.write_text(json.dumps({**note, "passed_over": 7}))


@pytest.mark.parametrize(
    ("ending", "harm"),
    [(".arrow", flipped), (".arrow", cut), (".json", cut), (".json", another_count), (".json", Path.unlink), (".arrow", Path.unlink)],
)
def test_a_damaged_part_is_made_again_and_that_is_said(tmp_path: Path, said: list[str], ending: str, harm: Callable[[Path], None]):
    tar(tmp_path / "data" / "0.tar", members(0, 3))
    (tmp_path / "data" / "1.tar").write_bytes(b"no tar" * 200)
    source = Source(urls=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="1.tar"):
        index_shards(source, tmp_path / "out")
    tar(tmp_path / "data" / "1.tar", members(3, 6))
    (part,) = (tmp_path / "out" / "parts").glob(f"00000-*{ending}")
    harm(part)
    made: list[int] = []
    index_one = streaming._index_shard

    def counted(item: dict, source: Source) -> dict:
        made.append(item["number"])
        return index_one(item, source)

    with patch.object(streaming, "_index_shard", counted):
        summary = index_shards(source, tmp_path / "out")
    whole = index_shards(source, tmp_path / "whole")
    assert summary == whole and sorted(made) == [0, 1]
    assert (tmp_path / "out" / "index.arrow").read_bytes() == (tmp_path / "whole" / "index.arrow").read_bytes()
    lost = ending == ".arrow" and harm is Path.unlink
    assert [("00000-" in line, "made again" in line) for line in said] == ([] if lost else [(True, True)])
