"""Packing folders and tables of pictures into shards."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.acquire.ingest import ingest
from datasets.errors import InputError
from datasets.images.view import decode
from datasets.index.addresses import read_bytes
from datasets.index.source import Source
from orchestrator.commands import cli
from tests.unit.making import encoded, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for i in range(7):
        place = root / ("cats", "big_dogs")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        kind = ("JPEG", "PNG", "WEBP", "GIF")[i % 4]
        name = place / f"{i}.{kind.lower().replace('jpeg', 'JPG')}"
        name.write_bytes(encoded(picture(i), kind))
        name.with_suffix(".txt").write_text(f"a picture of thing {i}\n")
    (root / "cats" / "silent.jpg").write_bytes(encoded(picture(9)))
    (root / "cats" / "broken.jpg").write_bytes(b"nothing")
    (root / "cats" / "broken.txt").write_text("a caption")
    (root / "cats" / "numbers.png").write_bytes(encoded(picture(9), "PNG"))
    (root / "cats" / "numbers.txt").write_text("12 34")
    (root / "cats" / ".hidden.jpg").write_bytes(b"nothing")
    return root


def test_a_folder_becomes_shards(tmp_path, folder):
    calls: list[tuple[int, int]] = []
    manifest = ingest(folder, tmp_path / "out", shard_size=3, classes="folder", progress=lambda *a: calls.append(a))
    assert manifest["n"] == 7 and manifest["dropped"] == {"no_caption": 1, "no_letters": 1, "undecodable": 1}
    assert list(manifest["shards"]) == ["00000.tar", "00001.tar", "00002.tar"] and manifest["classes"] == ["big_dogs", "cats"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert (tmp_path / "out" / "classnames.txt").read_text() == "big_dogs\ncats\n" and calls[-1] == (10, 10)
    source = Source(urls=str(tmp_path / "out"))
    urls = source.shards()
    rows = [row for n, url in enumerate(urls) for row in source.index_shard(n, url).to_pylist()]
    assert [row["key"] for row in rows] == [f"{i // 3:05d}{i % 3:04d}" for i in range(7)]
    assert {row["drop"] for row in rows} == {""}
    originals = sorted(p for p in folder.rglob("[0-9].*") if p.suffix != ".txt")
    for row, path in zip(rows, originals):
        data = read_bytes(urls[row["shard"]], row["offset"], row["length"], row["member"])
        assert np.array_equal(decode(data), decode(path.read_bytes()))
        assert (data == path.read_bytes()) == (path.suffix != ".gif")
        assert row["caption"] == path.with_suffix(".txt").read_text().strip()
        assert manifest["classes"][row["label"]] == path.parent.name


def test_packing_again_gives_the_same_bytes(tmp_path, folder):
    assert ingest(folder, tmp_path / "a")["shards"] == ingest(folder, tmp_path / "b" / "c")["shards"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "in"]


def test_captions_from_folder_names(tmp_path, folder):
    ingest(folder, tmp_path / "out", captions="folder")
    table = Source(urls=str(tmp_path / "out")).index_shard(0, str(tmp_path / "out" / "00000.tar"))
    assert set(table["caption"].to_pylist()) == {"cats", "big dogs"} and set(table["label"].to_pylist()) == {-1}


def test_a_table_becomes_shards(tmp_path, folder):
    lines = ["cats/0.JPG|first one|4", "cats/0.JPG|the same again|4", "cats/nowhere.jpg|a caption|1", "cats/2.webp| |"]
    (folder / "pairs.txt").write_text("file|words|class\n" + "\n".join(lines) + "\n")
    keys = {"image_key": "file", "caption_key": "words", "label_key": "class", "delimiter": "|"}
    manifest = ingest(folder / "pairs.txt", tmp_path / "out", **keys)
    assert manifest["n"] == 2 and manifest["dropped"] == {"empty_caption": 1, "no_image": 1}
    table = Source(urls=str(tmp_path / "out")).index_shard(0, str(tmp_path / "out" / "00000.tar"))
    assert table["caption"].to_pylist() == ["first one", "the same again"] and table["label"].to_pylist() == [4, 4]


def test_bad_input(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (folder / "headless.csv").write_text("cats/0.JPG,a cat\n")
    for args, match in (
        ((tmp_path / "nowhere", "o"), "nowhere does not exist"),
        ((tmp_path / "empty", "o"), "empty holds no pictures"),
        ((folder, "full"), "full exists and is not empty"),
        ((folder, "in/out"), "out lies inside"),
        ((folder / "headless.csv", "o"), r"headless\.csv has no column 'image'"),
    ):
        with pytest.raises(InputError, match=match):
            ingest(args[0], tmp_path / args[1])
    for options, match in (
        ({"shard_size": 0}, "shard_size is 0"),
        ({"captions": "exif"}, "captions is 'exif'; accepted are txt, folder"),
        ({"min_caption_length": 999}, "none of the 10 pairs of .* can be used: no_caption 1, no_letters 1, short_caption 8"),
    ):
        with pytest.raises(InputError, match=match):
            ingest(folder, tmp_path / "o", **options)
    assert not (tmp_path / "o").exists() and (tmp_path / "full" / "x").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_resize_shrinks_what_is_larger_and_leaves_the_rest_alone(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    small, large = encoded(picture(1, 20, 30), "PNG"), encoded(picture(2, 120, 90), "PNG")
    for name, data in (("a", small), ("b", large)):
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text("a dog")
    ingest(folder, tmp_path / "out", resize=32)
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}
    assert members["000000000.png"] == small
    assert decode(members["000000001.jpg"]).shape == (43, 32, 3)


def packed(out: Path) -> dict[str, bytes]:
    with tarfile.open(out / "00000.tar") as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def listed(out: Path) -> list[list[str]]:
    with open(out / "dropped.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_what_is_left_out_is_listed(tmp_path, folder):
    (folder / "cats" / "lost.txt").write_text("a caption without its picture")
    (folder / "cats" / "odd.png").write_bytes(encoded(picture(9), "PNG"))
    (folder / "cats" / "odd.txt").write_bytes(b"caf\xe9")
    (folder / "notes.json").write_text("{}")
    manifest = ingest(folder, tmp_path / "out")
    expected = {"caption_not_text": 1, "no_caption": 1, "no_image": 1, "no_letters": 1, "undecodable": 1}
    assert manifest["n"] == 7 and manifest["dropped"] == expected and manifest["passed_over"] == 2
    assert sorted(listed(tmp_path / "out")) == [
        ["cats/.hidden.jpg", "cats/.hidden.jpg", "", "hidden"],
        ["cats/broken.jpg", "cats/broken.jpg", "", "undecodable"],
        ["cats/lost.txt", "cats/lost.txt", "", "no_image"],
        ["cats/numbers.png", "cats/numbers.png", "", "no_letters"],
        ["cats/odd.png", "cats/odd.png", "", "caption_not_text"],
        ["cats/silent.jpg", "cats/silent.jpg", "", "no_caption"],
        ["notes.json", "notes.json", "", "unknown_extension"],
    ]
    (folder / "pairs.csv").write_text('image,caption\ncats/0.JPG,"one\ntwo"\n"no, where.jpg",a cat\n' + "x" * 300 + ",a cat\ncats,a cat\n")
    manifest = ingest(folder / "pairs.csv", tmp_path / "table")
    assert manifest["n"] == 1 and manifest["columns"] == {"image": "image", "caption": "caption"}
    assert [row[1:] for row in listed(tmp_path / "table")] == [["pairs.csv", str(line), "no_image"] for line in (4, 5, 6)]
    assert listed(tmp_path / "table")[0][0] == "no, where.jpg"


def test_parquet_becomes_shards(tmp_path):
    jpeg, webp = encoded(picture(1)), encoded(picture(2), "WEBP")
    (tmp_path / "a.jpg").write_bytes(jpeg)
    columns = {"jpg": [jpeg, webp, None], "text": [["a cat", "two cats"], [" a dog\n"], ["a cow"]], "label": [1.0, None, 2.0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the caption column 'text' holds several .*set captions to `first`"):
        ingest(tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = ingest(tmp_path / "a.parquet", tmp_path / "out", captions="each")
    assert manifest["n"] == 3 and manifest["dropped"] == {"no_image": 1}
    assert listed(tmp_path / "out") == [["a-00000002", "a.parquet", "3", "no_image"]]
    files = packed(tmp_path / "out")
    assert [files[name] for name in ("000000000.jpg", "000000001.jpg", "000000002.webp")] == [jpeg, jpeg, webp]
    assert [files[f"00000000{i}.txt"] for i in range(3)] == [b"a cat", b"two cats", b"a dog"]
    assert [files.get(f"00000000{i}.cls") for i in range(3)] == [b"1", b"1", None]
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "caption": ["a cat", "a dog"]}), tmp_path / "paths.parquet")
    assert ingest(tmp_path / "paths.parquet", tmp_path / "paths")["dropped"] == {"no_image": 1}
    with pytest.raises(InputError, match="captions is 'first', but .* is a folder; accepted are txt, folder"):
        ingest(tmp_path, tmp_path.parent / "elsewhere", captions="first")


def test_names_that_are_not_utf8(tmp_path):
    place = tmp_path / "in" / "cat"
    place.mkdir(parents=True)
    (place / "caf\udc82.jpg").write_bytes(encoded(picture(1)))
    (place / "caf\udc82.txt").write_text("a cat")
    manifest = ingest(tmp_path / "in", tmp_path / "out")
    assert manifest["n"] == 1 and json.loads(packed(tmp_path / "out")["000000000.json"])["source"] == "cat/caf\\x82.jpg"
    (place / "caf\udc82.txt").write_text("")
    (place / "ok.jpg").write_bytes(encoded(picture(1)))
    (place / "ok.txt").write_text("a cat")
    assert ingest(tmp_path / "in", tmp_path / "again")["n"] == 1
    assert listed(tmp_path / "again") == [["cat/caf\\x82.jpg", "cat/caf\\x82.jpg", "", "empty_caption"]]
    place.rename(tmp_path / "in" / "caf\udc82")
    assert ingest(tmp_path / "in", tmp_path / "third")["n"] == 1
    with pytest.raises(InputError, match=r"the folder 'caf\\\\x82' has a name that is not UTF-8"):
        ingest(tmp_path / "in", tmp_path / "fourth", classes="folder")


def test_a_class_without_a_usable_picture_is_refused_by_name(tmp_path):
    for name, data in {"a/0.jpg": encoded(picture(0)), "b/0.heic": b"x", "c/0.jpg": encoded(picture(1))}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(InputError, match=r"the class folder 'b' has no usable picture \(\.jpg"):
        ingest(tmp_path / "in", tmp_path / "out", captions="folder", classes="folder")
    (tmp_path / "in" / "b" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"the class folder 'b' has no usable picture: .*undecodable 1"):
        ingest(tmp_path / "in", tmp_path / "out", captions="folder", classes="folder")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (tmp_path / "in" / "b" / "1.jpg").write_bytes(encoded(picture(2)))
    made = ingest(tmp_path / "in", tmp_path / "out", captions="folder", classes="folder")
    assert made["classes"] == ["a", "b", "c"] and made["n"] == 3


def test_links_to_folders_are_followed_and_not_in_circles(tmp_path):
    for name in ("in/cats", "elsewhere/big_dogs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.jpg").write_bytes(encoded(picture(1)))
    (tmp_path / "in" / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "cats" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "elsewhere" / "in").symlink_to(tmp_path / "in")
    assert ingest(tmp_path / "in", tmp_path / "out", captions="folder")["n"] == 2
    assert sorted(data for name, data in packed(tmp_path / "out").items() if name.endswith("txt")) == [b"big dogs", b"cats"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("captions.json", b"{}", "is JSON; a CSV, TSV or Parquet file is read"),
        ("a.tar", b"", "is a shard already"),
        ("a.csv", b"image,caption\nhttp://x/y.jpg,a cat\n", "`cleansweep fetch .*a.csv FOLDER`"),
        ("a.tsv", b"a cat\thttp://x/y.jpg\n", "no column 'image' \\(image_key.*`cleansweep fetch .*a.tsv FOLDER`"),
        ("a.csv", b"image,caption\nnhttp://x,a cat\n", "the picture 'nhttp://x' of a.csv: nhttp://"),
        ("a.csv", b"image,caption\n", "holds no pictures"),
        ("a.parquet", b"PAR1", "no Parquet file"),
        ("a.zip", b"PK\x03\x04\xff", "is not text in UTF-8"),
    ],
)
def test_what_is_no_table_of_pictures_says_what_to_do(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        ingest(tmp_path / name, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_captions_extension_is_of_any_case_and_what_is_passed_over_is_listed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".thumbs").mkdir()
    for name in ("a.svg", "b.jfif", "c.JPG", "d.jpg", "._d.jpg", ".thumbs/d.jpg"):
        (tmp_path / "in" / name).write_bytes(encoded(picture(0)))
    for name, text in {"a.txt": "no picture", "b.TXT": "a cat", "c.txt": "a dog", "c.TXT": "a cow", "d.Txt": "a hen"}.items():
        (tmp_path / "in" / name).write_text(text)
    manifest = ingest(tmp_path / "in", tmp_path / "out")
    assert manifest["n"] == 3 and manifest["dropped"] == {"no_image": 1} and manifest["passed_over"] == 4
    assert [data for name, data in packed(tmp_path / "out").items() if name.endswith("txt")] == [b"a cat", b"a dog", b"a hen"]
    assert listed(tmp_path / "out") == [
        ["a.txt", "a.txt", "", "no_image"],
        ["a.svg", "a.svg", "", "unknown_extension"],
        ["c.TXT", "c.TXT", "", "unknown_extension"],
        ["._d.jpg", "._d.jpg", "", "hidden"],
        [".thumbs", ".thumbs", "", "hidden"],
    ]


def test_pictures_beside_the_class_folders_are_counted_and_said(tmp_path, capsys):
    for name in ("cat/0.jpg", "dog/0.jpg", "loose.jpg", "notes.md"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded(picture(0)))
    out = tmp_path / "out"
    assert cli.run(["ingest", str(tmp_path / "in"), str(out), "--captions", "folder", "--classes", "folder"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["without_class"] == 1
    assert (
        f"3 pairs are in {out}, in 1 shards; 1 without a label, beside the class folders; 1 other files are passed over, "
        f"listed in {out / 'dropped.csv'}\n"
    ) in said.err
    assert "without_class" not in ingest(tmp_path / "in", tmp_path / "other", captions="folder")
