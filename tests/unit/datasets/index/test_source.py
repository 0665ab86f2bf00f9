"""What is read from tars, Parquet and CSV, and what is said of broken ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.index.addresses import read_bytes
from datasets.index.keys import mark_duplicates
from datasets.index.source import INDEX_SCHEMA, Source
from datasets.index.tar import header, padding, resized, walk
from datasets.storage import Reader, braces, filesystem
from tests.unit.making import dataset, encoded, members, picture, tar

JPEG = encoded(picture(0))


def index(path: Path | str, **fields) -> pa.Table:
    source = Source(urls=str(path), **fields)
    tables = [source.index_shard(n, url) for n, url in enumerate(source.shards())]
    return pa.concat_tables(tables)


def pictures(path: Path | str, table: pa.Table, **fields) -> list[bytes]:
    urls = Source(urls=str(path), **fields).shards()
    return [read_bytes(urls[r["shard"]], r["offset"], r["length"], r["member"]) for r in table.to_pylist()]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_members_are_found_where_the_standard_library_finds_them(tmp_path, format):
    long = "a folder of pictures/" * (4 if format == tarfile.USTAR_FORMAT else 9) + "naïve picture"
    path = tar(tmp_path / "a.tar", [(f"{long}.jpg", JPEG), (f"{long}.txt", b"hello there"), ("b.webp", b"x" * 513)], format)
    with Reader(str(path)) as reader, tarfile.open(path) as peer:
        ours = [(m.name, m.offset, m.size) for m in walk(reader)]
        assert ours == [(m.name, m.offset_data, m.size) for m in peer.getmembers()]


def test_index_of_an_img2dataset_shard(tmp_path):
    path = tar(tmp_path / "00000.tar", members(0, 4, cls=b"7"))
    table = index(path)
    assert table.schema == INDEX_SCHEMA
    assert table["key"].to_pylist() == [f"{i:09d}" for i in range(4)]
    assert table["caption"][2].as_py() == "a picture of thing number 2"
    assert set(table["drop"].to_pylist()) == {""} and set(table["label"].to_pylist()) == {7}
    assert pictures(path, table) == [data for name, data in members(0, 4) if name.endswith(".jpg")]


def test_caption_and_label_come_from_json_where_there_is_no_txt(tmp_path):
    fields = {"caption": " from json ", "label": 3}
    path = tar(tmp_path / "a.tar", [("x/1.PNG", encoded(picture(1), "PNG")), ("x/1.json", json.dumps(fields).encode())])
    row = index(path).to_pylist()[0]
    assert (row["key"], row["caption"], row["label"], row["member"], row["drop"]) == ("x/1", "from json", 3, "x/1.PNG", "")


def test_single_samples_are_dropped_with_a_reason(tmp_path):
    samples = {
        "good": {"jpg": JPEG, "txt": b"a fine caption"},
        "empty": {"jpg": JPEG, "txt": b"  \n"},
        "digits": {"jpg": JPEG, "txt": b"12345!!"},
        "short": {"jpg": JPEG, "txt": b"ab"},
        "nocap": {"jpg": JPEG, "cls": b"4"},
        "badjson": {"jpg": JPEG, "json": b"{"},
        "nopic": {"txt": b"a fine caption"},
        "broken": {"jpg": JPEG[: len(JPEG) // 3], "txt": b"a fine caption"},
        "notpic": {"png": b"<html>", "txt": b"a fine caption"},
    }
    names = [(f"{key}.{ext}", data) for key, parts in samples.items() for ext, data in parts.items()]
    names += [("good.jpg", JPEG), ("good.txt", b"once more")]
    path = tar(tmp_path / "a.tar", [*names, ("README", b"text"), ("._good.jpg", b"junk"), ("shard.index", b"1")])
    table = index(path, min_caption_length=4)
    assert dict(zip(table["key"].to_pylist()[:9], table["drop"].to_pylist())) == {
        "good": "",
        "empty": "empty_caption",
        "digits": "no_letters",
        "short": "short_caption",
        "nocap": "no_caption",
        "badjson": "no_caption",
        "nopic": "no_image",
        "broken": "undecodable",
        "notpic": "undecodable",
    }
    assert table["drop"].to_pylist()[9:] == ["duplicate_key"]
    nocap = table.to_pylist()[4]
    assert nocap["label"] == 4 and nocap["length"] == len(JPEG)  # an evaluation set needs no captions
    assert index(path, verify="none")["drop"].to_pylist().count("undecodable") == 0
    assert index(path, verify="header")["drop"].to_pylist()[8] == "undecodable"


HALF = JPEG[: len(JPEG) // 3]
UNUSABLE = {
    "undecodable": [("a.jpg", HALF), ("a.txt", b"a fine caption")],
    "no_caption": [("a.jpg", JPEG)],
    "no_letters": [("a.jpg", JPEG), ("a.txt", b"12345")],
}


@pytest.mark.parametrize("why", UNUSABLE)
def test_a_sample_that_is_dropped_takes_its_key_from_no_usable_one(tmp_path, why):
    good = [("a.jpg", JPEG), ("a.txt", b"the usable one")]
    table = index(tar(tmp_path / "a.tar", [*UNUSABLE[why], *good, ("b.jpg", JPEG), ("b.txt", b"between"), *good, *UNUSABLE[why]]))
    assert table["key"].to_pylist() == ["a", "a", "b", "a", "a"]
    assert table["drop"].to_pylist() == [why, "", "", "duplicate_key", "duplicate_key"]
    kept = table.filter(pa.compute.equal(table["drop"], ""))
    assert kept["caption"].to_pylist() == ["the usable one", "between"] and pictures(tmp_path / "a.tar", kept) == [JPEG, JPEG]
    picture, caption = {"undecodable": (HALF, "x y"), "no_caption": (JPEG, None), "no_letters": (JPEG, "12345")}[why]
    columns = {"image": [picture, *[JPEG] * 3], "caption": [caption, "the usable one", "between", "again"], "key": ["a", "a", "b", "a"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert index(tmp_path / "a.parquet")["drop"].to_pylist() == [why, "", "", "duplicate_key"]
    assert mark_duplicates(table).equals(table)


def test_names_in_a_tar_lead_nowhere(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.jpg"
            archive.addfile(info)
        for name, data in (("l.txt", b"a caption"), ("../secret.jpg", b"not the file"), ("../secret.txt", b"a caption")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    table = index(path, verify="none")
    assert table["drop"].to_pylist() == ["no_image", ""]
    assert pictures(path, table.slice(1)) == [b"not the file"]


def cut(n: int):
    return lambda data: data[:n]


BROKEN = {
    "empty file": (cut(0), "is empty"),
    "cut in the data": (cut(700), "cut short.*byte 0 needs"),
    "cut in a header": (cut(512 * 3 + 100), "cut short|damaged"),
    "cut before the end mark": (lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512), "end mark"),
    "no tar": (lambda data: b"<html>not found</html>" * 100, "no tar archive: byte 0"),
    "compressed": (gzip.compress, "compressed"),
    "a bit flipped": (lambda data: bytes([data[0] ^ 1]) + data[1:], "byte 0"),
    "two archives joined": (lambda data: data + data, "goes on after its end mark at byte"),
    "no samples": (lambda data: bytes(10240), "holds no samples"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shards_name_the_file_and_the_byte(tmp_path, name):
    damage, expected = BROKEN[name]
    path = tar(tmp_path / "00007.tar", members(0, 2))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=expected) as caught:
        index(path)
    assert str(path) in str(caught.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_tar_cut_anywhere_or_damaged_is_an_input_error_or_whole(tmp_path, data):
    whole = tar(tmp_path / "a.tar", members(0, 2)).read_bytes()
    path = tmp_path / "b.tar"
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    try:
        table = index(path)
    except InputError as error:
        assert "b.tar" in str(error)
    else:
        assert len(table) >= 1


@pytest.mark.parametrize("record", [b"16 size=-512000\n", b"0 size=1\n", b"junk\n", b"9 size=x\n"])
def test_bad_pax_records_end_the_walk(tmp_path, record):
    extended = header("x", len(record))
    path = tmp_path / "a.tar"
    path.write_bytes(typed(extended, b"x") + record + padding(len(record)) + header("a.jpg", 3) + bytes(512 * 4))
    with pytest.raises(InputError, match=r"a\.tar is damaged: the pax header at byte 0"):
        index(path)


def typed(block: bytes, kind: bytes) -> bytes:
    """The header with another type flag."""
    return resized(block[:156] + kind + block[157:], int(block[124:135], 8))


def test_files_of_a_sample_must_stand_together(tmp_path):
    path = tar(tmp_path / "a.tar", sorted(members(0, 2), key=lambda m: m[0].split(".")[1]))
    with pytest.raises(InputError, match=r"a\.tar.*not side by side.*byte \d+ and byte \d+"):
        index(path)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120), st.integers(0, 1 << 40))
@settings(max_examples=50)
def test_headers_written_are_read_back(name, size):
    block = header(name + ".jpg", size)
    with tarfile.open(fileobj=io.BytesIO(block + bytes(1024))) as archive:
        info = archive.next()
        assert info is not None and (info.name, info.size) == (name + ".jpg", size)
    assert tarfile.TarInfo.frombuf(resized(block[-512:], 77), "utf-8", "strict").size == 77
    assert (size + len(padding(size))) % 512 == 0


def test_brace_ranges():
    assert braces("x-{0008..0011}.tar") == [f"x-{i:04d}.tar" for i in range(8, 12)]
    assert braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    with pytest.raises(InputError, match="accepted are"):
        braces("x-{0..}.tar")


def test_shards_of_ranges_globs_folders_and_uris(tmp_path, monkeypatch):
    urls = dataset(tmp_path / "set", 3, 2)
    assert urls == [str(tmp_path / "set" / f"0000{i}.tar") for i in range(3)]
    for pattern in ("set/{00000..00002}.tar", "set/*.tar", "set"):
        monkeypatch.chdir(tmp_path)
        assert Source(urls=pattern).shards() == urls
        assert Source(urls=f"file://{tmp_path}/{pattern}").shards() == urls
    assert Source(urls=(urls[2], urls[0])).shards() == [urls[2], urls[0]]
    for pattern, match in {
        "set/{00001..00003}.tar": r"00003\.tar does not exist \(one of the 3",
        "set/*.parquet": "nothing matches",
        "nowhere": "does not exist",
        "": "empty string",
    }.items():
        with pytest.raises(InputError, match=match):
            Source(urls=pattern).shards()
    with pytest.raises(InputError, match="twice"):
        Source(urls=(urls[0], "set")).shards()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none holds no shards"):
        Source(urls="none").shards()
    with pytest.raises(InputError, match=r"Source\.format is 'zip'; accepted"):
        Source(urls="x", format="zip")
    (tmp_path / "odd.bin").write_bytes(b"1")
    with pytest.raises(InputError, match=r"odd\.bin.*source\.format"):
        Source(urls="x").index_shard(0, str(tmp_path / "odd.bin"))


def test_shards_in_a_bucket(tmp_path):
    dataset(tmp_path, 2, 3)
    memory = fsspec.filesystem("memory")
    for name in ("00000.tar", "00001.tar"):
        memory.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
    for pattern in ("memory://bucket/{00000..00001}.tar", "memory://bucket/*.tar", "memory://bucket"):
        there = index(pattern)
        assert there.equals(index(tmp_path))
    assert pictures("memory://bucket", there) == pictures(tmp_path, there)
    assert Source(urls="memory://bucket").identity() == Source(urls=str(tmp_path)).identity()
    with pytest.raises(InputError, match=r"memory://bucket/00002\.tar does not exist"):
        Source(urls="memory://bucket/{00000..00002}.tar").shards()
    with pytest.raises(InputError, match="nosuch://"):
        Source(urls="nosuch://x/a.tar").shards()


def test_tables_in_a_bucket(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/in/a.jpg", JPEG)
    memory.pipe("/tables/pairs.csv", b"image,caption\nin/a.jpg,a caption\nmemory://tables/in/a.jpg,another one\nb.jpg,gone\n")
    pq.write_table(pa.table({"image": [JPEG], "caption": ["a caption"]}), tmp_path / "a.parquet")
    memory.pipe("/tables/a.parquet", (tmp_path / "a.parquet").read_bytes())
    table = index("memory://tables/pairs.csv")
    assert table["drop"].to_pylist() == ["", "", "no_image"]
    assert pictures("memory://tables/pairs.csv", table.slice(0, 2)) == [JPEG] * 2
    assert pictures("memory://tables/a.parquet", index("memory://tables/a.parquet")) == [JPEG]


def test_schemes_that_only_pyarrow_knows(tmp_path):
    path = tar(tmp_path / "a.tar", members(0, 2))
    system, _ = filesystem("mock:///a.tar")
    with system.open("mock:///a.tar", "wb") as file:
        file.write(path.read_bytes())
    for pattern in ("mock:///a.tar", "mock:///*.tar"):
        table = index(pattern)
        assert table.equals(index(path)) and pictures(pattern, table) == pictures(path, table)


def test_identity_knows_content_and_not_place(tmp_path):
    dataset(tmp_path / "a", 1, 3)
    dataset(tmp_path / "b", 1, 3)
    first, second = (Source(urls=str(tmp_path / name)).identity() for name in "ab")
    assert first == second and "/" not in json.dumps(first)
    tar(tmp_path / "b" / "00000.tar", members(1, 3))
    assert Source(urls=str(tmp_path / "b")).identity() != first


def test_parquet_of_bytes_structs_and_paths(tmp_path):
    (tmp_path / "p").mkdir()
    files = [encoded(picture(i)) for i in range(5)]
    for i, data in enumerate(files):
        (tmp_path / "p" / f"{i}.jpg").write_bytes(data)
    captions = [f"caption number {i}" for i in range(4)] + [None]
    columns = {
        "bytes": pa.array(files, pa.binary()),
        "struct": pa.array([{"bytes": data, "path": "x"} for data in files]),
        "paths": pa.array([f"p/{i}.jpg" for i in range(5)]),
    }
    for name, column in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"picture": column, "text": captions, "label": range(5)}), path, row_group_size=2)
        table = index(path, image_key="picture", caption_key="text")
        assert table["drop"].to_pylist() == ["", "", "", "", "no_caption"]
        assert table["label"].to_pylist() == [0, 1, 2, 3, 4]
        assert table["length"].to_pylist() == [len(data) for data in files]
        assert pictures(path, table) == files
    assert table["key"][3].as_py() == "paths-00000003"
    keyed = pa.table({"image": columns["bytes"].slice(0, 3), "caption": ["one a", "two b", "three c"], "key": ["a", "b", "a"]})
    pq.write_table(keyed, tmp_path / "keyed.parquet")
    table = index(tmp_path / "keyed.parquet", key_prefix=True)
    assert table["key"].to_pylist() == ["keyed/a", "keyed/b", "keyed/a"]
    assert table["drop"].to_pylist() == ["", "", "duplicate_key"]


def test_bad_parquet_names_the_file_and_the_column(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [1, 2], "caption": ["a", "b"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: column 'image' is int64"):
        index(path)
    with pytest.raises(InputError, match=r"a\.parquet has no column 'jpg' \(source\.image_key\); it has 'image', 'caption'"):
        index(path, image_key="jpg")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"a\.parquet is no Parquet file"):
        index(path)


def test_csv_of_paths(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("set/a.jpg", "outside.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    (tmp_path / "set" / "broken.jpg").write_bytes(b"no")
    lines = ['a.jpg,"one, two\nthree"', "./a.jpg,another caption", "a.jpg,another caption", "../outside.jpg,a caption"]
    lines += ["../nowhere.jpg,a caption", f"{tmp_path}/outside.jpg,naïve", "broken.jpg,a caption", ",a caption", "a.jpg,"]
    path = tmp_path / "set" / "pairs.csv"
    path.write_text("\ufeffimage,caption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    table = index(path)
    assert table["drop"].to_pylist() == ["", "", "duplicate_key", "", "no_image", "", "undecodable", "no_image", "empty_caption"]
    assert table["key"].to_pylist()[:2] == ["a.jpg", "a.jpg#2"]
    assert table["caption"][0].as_py() == "one, two\nthree"
    kept = table.filter(pa.compute.equal(table["drop"], ""))
    assert pictures(path, kept) == [JPEG] * 4
    other = tmp_path / "set" / "pairs.tsv"
    other.write_text("label\tfile\n3\ta.jpg\nx\ta.jpg\n")
    rows = index(other, image_key="file").to_pylist()
    assert [row["label"] for row in rows] == [3, -1] and rows[0]["drop"] == "no_caption"
    (tmp_path / "set" / "pipe.txt").write_text("file|words\na.jpg|some words, here\n")
    table = index(tmp_path / "set" / "pipe.txt", format="csv", delimiter="|", image_key="file", caption_key="words")
    assert table["caption"].to_pylist() == ["some words, here"]


BAD_CSV = {
    "a cat,http://x/y.jpg\n": "no column 'image'.*'a cat'.*files without one are not accepted",
    "": "is empty",
    "image,caption\n": "holds no samples",
    "image,caption\na.jpg,b,c\n": "cannot be read as CSV",
    "image,caption\nhttp://x/y.jpg,a cat\n": "web address",
    "image,caption\nx.jpg,a cat\ny.jpg,a dog\n": r"none of its 2 pictures exists; the first was looked for at .*x\.jpg",
}


@pytest.mark.parametrize("text", BAD_CSV)
def test_bad_csv_names_the_file(tmp_path, text):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"(?s)pairs\.csv.*{BAD_CSV[text]}"):
        index(path)


def test_keys_that_two_shards_share(tmp_path):
    for name in ("one", "two"):
        tar(tmp_path / f"{name}.tar", members(0, 2))
    source = Source(urls=str(tmp_path))
    with pytest.raises(InputError, match=r"'000000000' is in .*one\.tar and in .*two\.tar; set source\.key_prefix"):
        mark_duplicates(index(tmp_path), source.shards())
    table = index(tmp_path, key_prefix=True)
    assert table["key"].to_pylist()[::2] == ["one/000000000", "two/000000000"]
    assert mark_duplicates(table) is table
    twice = pa.concat_tables([index(tmp_path / "one.tar")] * 2)
    assert mark_duplicates(twice)["drop"].to_pylist() == ["", "", "duplicate_key", "duplicate_key"]


def test_reading_what_has_changed_since(tmp_path):
    path = tar(tmp_path / "a.tar", members(0, 1))
    with pytest.raises(InputError, match=r"a\.tar ends before byte .*changed since"):
        read_bytes(str(path), 512, 10**7, "x.jpg")
    with pytest.raises(InputError, match=r"gone\.jpg cannot be read"):
        read_bytes(str(tmp_path / "pairs.csv"), 0, 3, "gone.jpg")
    with pytest.raises(InputError, match=r"b\.tar does not exist"):
        read_bytes(str(tmp_path / "b.tar"), 512, 10, "x.jpg")
