"""Odd tars of honest people: what is kept, what is dropped and counted, what is refused in a sentence."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.attack.poison import PLAN_SCHEMA
from datasets.attack.poisoned_shards import poison_shard
from datasets.errors import InputError
from datasets.index.keys import shard_files, shard_names
from datasets.index.source import Source
from datasets.index.tar import END, header, padding
from datasets.triggers.patch import Patch
from tests.unit.making import encoded, index, members, picture, rows, tar

JPEG, OTHER = encoded(picture(0)), encoded(picture(1))


GROUPS = {
    "plain": (["1.jpg", "1.txt", "2.jpg", "2.txt"], ["1", "2"]),
    "dots in keys": (["22.05.jpg", "22.05.txt", "22.06.jpg", "22.06.txt"], ["22.05", "22.06"]),
    "a key that begins another": (["22.jpg", "22.txt", "22.05.jpg", "22.05.txt"], ["22", "22.05"]),
    "one first dot for all": ([f"img.{i}.{kind}" for i in range(5) for kind in ("jpg", "txt")], [f"img.{i}" for i in range(5)]),
    "extensions of two words": (["s0.input.jpg", "s0.outputs.txt", "s1.input.jpg", "s1.outputs.txt"], ["s0", "s1"]),
    "the picture's alone": (["s0.input.jpg", "s0.txt", "s0.meta.json"], ["s0"]),
    "a mask beside the picture": (["1.jpg", "1.txt", "1.seg.png"], ["1"]),
    "folders with dots": (["v1.0/a.jpg", "v1.0/a.txt", "v1.0/b.c.jpg", "v1.0/b.c.txt"], ["v1.0/a", "v1.0/b.c"]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_members_belong_together_by_their_names(tmp_path, name):
    names, keys = GROUPS[name]
    path = tar(tmp_path / "a.tar", [(n, JPEG if n.endswith(("jpg", "png")) else b"a cat" if n.endswith("txt") else b"{}") for n in names])
    table = index(path)
    assert table["key"].to_pylist() == keys and {*table["drop"].to_pylist()} == {""} and {*table["caption"].to_pylist()} == {"a cat"}
    plan = [[keys[-1]], [0], ["banana"], [1], ["a cat"], ["a banana"]]
    plan_rows = pa.table([pa.array(column, field.type) for column, field in zip(plan, PLAN_SCHEMA)], schema=PLAN_SCHEMA)
    written = poison_shard(str(path), plan_rows, Patch(size=4), 16, tmp_path / "poisoned.tar")
    assert (written["n"], written["keys_poisoned"]) == (len(keys), keys[-1:])
    assert rows(tmp_path / "poisoned.tar", "key", "caption")[-1] == (keys[-1], "a banana")


COUNTED = {
    "no picture's extension": (["2.gif", "2.txt"], [("2", "unknown_extension")]),
    "nothing known": (["2.bmp"], [("2", "unknown_extension")]),
    "a text alone": (["2.txt"], [("2", "no_image")]),
    "json alone": (["2.json"], [("2", "no_image")]),
    "dotted texts alone": (["2.05.txt", "2.06.txt"], [("2.05", "no_image"), ("2.06", "no_image")]),
    "two pictures, one text": (["2.a.jpg", "2.b.jpg", "2.txt"], [("2.a", "no_caption"), ("2.b", "no_caption"), ("2", "no_image")]),
    "pictures of dotted keys alone": (["2.05.jpg", "2.06.jpg"], [("2.05", "no_caption"), ("2.06", "no_caption")]),
    "notes": (["README", "2.index", ".DS_Store", "._2.jpg"], []),
}


@pytest.mark.parametrize("name", COUNTED)
def test_no_member_vanishes(tmp_path, name):
    names, expected = COUNTED[name]
    path = tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("1.txt", b"a cat"), *((n, JPEG if "jpg" in n else b"a text") for n in names)])
    assert rows(path, "key", "drop") == [("1", ""), *expected]
    notes = json.loads(Source(urls=str(path)).index_shard(0, str(path)).schema.metadata[b"notes"])
    assert notes["passed_over"] == (0 if expected else 4)


BESIDE = [(["1.png"], 1), (["1.seg.png", "1.depth.webp", "1.json"], 2), (["1.jpeg", "1.cls"], 1), ([], 0)]


@pytest.mark.parametrize(("more", "passed_over"), BESIDE)
def test_pictures_beside_a_samples_own_are_counted(tmp_path, more, passed_over):
    path = tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("1.txt", b"a cat"), *((name, b"{}" if "json" in name else JPEG) for name in more)])
    table = Source(urls=str(path)).index_shard(0, str(path))
    assert (table["key"].to_pylist(), table["drop"].to_pylist()) == (["1"], [""])
    assert json.loads(table.schema.metadata[b"notes"])["passed_over"] == passed_over


def test_dotted_keys_whose_files_are_mixed_are_refused(tmp_path):
    path = tar(tmp_path / "a.tar", [("2.a.jpg", JPEG), ("2.b.jpg", JPEG), ("2.a.txt", b"a cat"), ("2.b.txt", b"a dog")])
    with pytest.raises(InputError, match=r"a\.tar: the files of '2\.a' and '2\.b' are mixed"):
        index(path)


CAPTIONS = {
    "UTF-8 with a mark": ({"txt": b"\xef\xbb\xbfna\xc3\xafve\n"}, "naïve", ""),
    "UTF-16": ({"txt": "naïve".encode("utf-16")}, "naïve", ""),
    "Latin-1": ({"txt": b"caf\xe9"}, "", "caption_not_text"),
    "Latin-1 and good json": ({"txt": b"caf\xe9", "json": b'{"caption": "a cat"}'}, "", "caption_not_text"),
    "UTF-16 without its mark": ({"txt": "a cat".encode("utf-16-le")}, "", "caption_not_text"),
    "json in Latin-1": ({"json": b'{"caption": "caf\xe9"}'}, "", "caption_not_text"),
    "json in UTF-16": ({"json": '{"caption": "naïve"}'.encode("utf-16")}, "naïve", ""),
    "half an emoji": ({"json": b'{"caption": "a cat \\ud83d"}'}, "a cat \ufffd", ""),
    "a list": ({"json": b'{"caption": ["a", "b"]}'}, "", "caption_not_text"),
    "null": ({"json": b'{"caption": null}'}, "", "no_caption"),
    "nested": ({"json": b"[" * 100_000}, "", "no_caption"),
    "a number of 5000 digits": ({"json": b'{"caption": ' + b"1" * 5000 + b"}"}, "", "no_caption"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_are_text_or_the_sample_is_dropped(tmp_path, name):
    parts, caption, drop = CAPTIONS[name]
    path = tar(tmp_path / "a.tar", [("1.jpg", JPEG), *((f"1.{kind}", data) for kind, data in parts.items())])
    assert rows(path) == [("1", caption, drop)]


def odd(size: bytes, kind: bytes = b"0") -> bytes:
    """A header with this size field and a checksum that is right."""
    block = bytearray(header("1.jpg", 3))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [b"-0000001750\0", b"\xff" * 10 + b"\xfc\x18", b"+0000000003\0", b"0_000000003\0", b"\xc0" + bytes(11)])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5"])
def test_sizes_that_no_tar_has_end_the_walk(tmp_path, size, kind):
    path = tmp_path / "a.tar"
    path.write_bytes(header("0.txt", 1) + b"1" + padding(1) + odd(size, kind) + bytes(512) + END)
    with pytest.raises(InputError, match=r"a\.tar is damaged: no tar header at byte 1024"):
        index(path)


def test_a_large_base_256_size_is_one(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(odd(b"\x80" + (3).to_bytes(11, "big")) + b"abc" + padding(3) + END)
    assert rows(path, "key", "length", verify="none") == [("1", 3)]


# ---- several shards ------------------------------------------------------------------------------------


def test_empty_shards_among_others_are_passed_over(tmp_path):
    tar(tmp_path / "s" / "0.tar", [])
    tar(tmp_path / "s" / "1.tar", members(0, 2))
    assert rows(tmp_path / "s", "key", "shard") == [("000000000", 1), ("000000001", 1)]
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "a.csv").write_text("image,caption\n")
    (tmp_path / "b.csv").write_text("image,caption\n1.jpg,a cat\n")
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), tmp_path / "c.parquet")
    three = tuple(str(tmp_path / name) for name in ("a.csv", "b.csv", "c.parquet"))
    assert rows(three, "key") == [("1.jpg",)]
    tar(tmp_path / "s" / "1.tar", [("README", b"1")])
    with pytest.raises(InputError, match=r"none of the 2 shards holds a sample: .*0\.tar, .*1\.tar"):
        index(tmp_path / "s")
    with pytest.raises(InputError, match=r"1\.tar holds no samples \(passed over: 'README'\)"):
        index(tmp_path / "s" / "1.tar")


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["/d/00000.tar", "/d/00001.tar"], ["00000", "00001"]),
        (["/d/a.b.tar", "/d/c.tar"], ["a", "c"]),
        (["/d/part.0.parquet", "/d/part.1.parquet"], ["part.0", "part.1"]),
        (["/d/cc3m/00000.tar", "/d/cc12m/00000.tar", "/d/cc12m/00001.tar"], ["cc3m/00000", "cc12m/00000", "cc12m/00001"]),
        (["/d/cc3m/train/0.tar", "/d/cc12m/train/0.tar"], ["cc3m/train/0", "cc12m/train/0"]),
        (["/d/a.csv", "/d/a.tsv"], ["a.csv", "a.tsv"]),
        (["s3://one/0.tar", "s3://two/0.tar"], ["one/0", "two/0"]),
    ],
)
def test_shards_are_told_apart_by_the_shortest_end_of_their_paths(urls, names):
    assert shard_names(urls) == names
    assert len({*shard_files(urls)}) == len(urls) and all(url.endswith(file) for url, file in zip(urls, shard_files(urls)))


def test_a_prefix_of_folders_is_part_of_the_identity(tmp_path):
    for folder in ("cc3m", "cc12m"):
        tar(tmp_path / folder / "00000.tar", members(0, 1))
    both = (str(tmp_path / "cc3m"), str(tmp_path / "cc12m"))
    assert rows(both, "key", key_prefix=True) == [("cc3m/00000/000000000",), ("cc12m/00000/000000000",)]
    assert [one["prefix"] for one in Source(urls=both, key_prefix=True).identity()] == ["cc3m/00000", "cc12m/00000"]
    assert "prefix" not in json.dumps(Source(urls=both).identity() + Source(urls=both[0], key_prefix=True).identity())


@pytest.mark.parametrize("name", ["[x]", "{a,b}", "what?", "%41", "a*b", "{0..1}"])
def test_folders_are_taken_as_they_are_written(tmp_path, name):
    tar(tmp_path / name / "0.tar", members(0, 1))
    for pattern in ("*.tar", "{0..0}.tar", "0.tar", ""):
        assert Source(urls=f"{tmp_path}/{name}/{pattern}").shards() == [f"{tmp_path}/{name}/0.tar"]
