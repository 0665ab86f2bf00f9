"""Odd tables of honest people: what is kept, what is dropped and counted, what is refused in a sentence."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datasets.acquire.ingest import ingest
from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.index.addresses import read_bytes
from datasets.index.dropped import write_dropped
from datasets.index.pairs import write_index
from datasets.index.source import Source
from orchestrator.cluster.streaming import index_shards
from orchestrator.stages.index import index_source
from tests.unit.making import encoded, index, members, picture, rows, tar

JPEG, OTHER = encoded(picture(0)), encoded(picture(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(JPEG)
    return tmp_path


TEXTS = {
    "CR": b"image,caption\r0.jpg,a cat\r1.jpg,a dog\r",
    "CRLF": b"image,caption\r\n0.jpg,a cat\r\n1.jpg,a dog\r\n",
    "no end, blank lines": b"\nimage,caption\n\n0.jpg,a cat\n \n1.jpg,a dog",
    "names with spaces and a mark": b'\xef\xbb\xbf image , caption \n0.jpg,a cat\n1.jpg,a dog\n',
    "UTF-16": "image,caption\n0.jpg,a cat\n1.jpg,a dog\n".encode("utf-16"),
    "open_clip's": b"filepath\ttitle\n0.jpg\ta cat\n1.jpg\ta dog\n",
    "quoted": b'"image","caption"\n"0.jpg","a cat"\n1.jpg,"a dog"\n',
}


@pytest.mark.parametrize("name", TEXTS)
def test_tables_of_all_line_ends_and_marks(folder, name):
    (folder / "a.csv").write_bytes(TEXTS[name])
    assert rows(folder / "a.csv") == [("0.jpg", "a cat", ""), ("1.jpg", "a dog", "")]


def test_quotes_are_text_where_tabs_part_the_columns(folder):
    (folder / "a.tsv").write_text('image\tcaption\n0.jpg\t"big" cat\n1.jpg\t"19 inch monitor\n2.jpg\ta dog\n3.jpg\t"\n')
    assert [(key, caption) for key, caption, _ in rows(folder / "a.tsv")] == [
        ("0.jpg", '"big" cat'), ("1.jpg", '"19 inch monitor'), ("2.jpg", "a dog"), ("3.jpg", '"')
    ]  # fmt: skip


REFUSED = {
    "goes on after the quote": (b'image,caption\n0.jpg,"big" cat\n', "line 2: a cell that begins with a quotation mark goes on after it"),
    "never closed": (b'image,caption\n1.jpg,a cat\n0.jpg,"big cat\n2.jpg,a dog\n', "line 3: a cell .* has no second one"),
    "closed rows later": (b'image,caption\n0.jpg,"big cat\n1.jpg,a dog\n2.jpg,19"\n', "opens a cell in line 2 closes in line 4"),
    "closed in the next row": (b'image,caption\n0.jpg,"big cat\n1.jpg,a dog"\n', "opens a cell in line 2 closes in line 3"),
    "a picture of another kind": (b'caption,image\n"big cat,0.jpg\n19"" monitor,1.png\na dog",2.jpg\n', "line 2 closes in line 4"),
    "the path swallowed": (b'image,caption\n"0.jpg,a cat\n1.jpg",a dog\n', "opens a cell in line 2 closes in line 3"),
    "names without an extension": (b'image,caption\nimg1,"a dog\nimg2,a cat\nimg3,a bird"\n', "opens a cell in line 2 closes in line 4"),
    "names without an extension, spaces": (b'image,caption\na,"tall man\nb, cat\nc,a dog"\n', "opens a cell in line 2 closes in line 4"),
    "a file of another form": (b'image,caption\n0.jpg,"a dog\nLICENSE, a cat"\n', "opens a cell in line 2 closes in line 3"),
    "the caption before them": (b'caption,image\n"a dog,img1\na cat, x,img2\na bird",img3\n', "opens a cell in line 2 closes in line 4"),
    "the caption between": (b'image,caption,label\nimg1,"a dog,1\nimg2,a cat",2\n', "opens a cell in line 2 closes in line 3"),
    "a label of two lines": (b'image,caption,label\n0.jpg,a dog,"1\n2"\n', "opens a cell in line 2 closes in line 3"),
    "UTF-16 without its mark": ("image,caption\n0.jpg,a cat\n".encode("utf-16-le"), "is not text: line 1 holds a NUL character"),
    "too many columns": (b"image,caption\n0.jpg,a cat\n1.jpg,a dog, black\n", "line 3 has 3 columns, the first line 2"),
    "too few columns": (b"image,caption\n0.jpg\n", "line 2 has 1 columns, the first line 2"),
    "Latin-1": (b"image,caption\n0.jpg,a cat\n1.jpg,caf\xe9\n", "is not text in UTF-8: line 3, byte 0xe9"),
    "UTF-16 cut": ("image,caption\n0.jpg,a cat\n".encode("utf-16")[:-1], "is not text in UTF-16"),
    "a picture": (JPEG, "is not text"),
    "a name twice": (b"image,caption,caption\n0.jpg,a,b\n", "2 columns named 'caption'"),
    "both missing": (b"a,b,c,d,e,f,g,h,i,j\n", r"no column 'image' .*and no column 'caption' .*; it has 'a', .*'j' \(split at ','\)"),
    "addresses": (b"url,caption\nhttp://x/y.jpg,a cat\n", r"no column 'image'.*`cleansweep fetch .*a\.csv FOLDER`"),
    "CC12M's": (b"http://x/y.jpg\ta cat\n", r"no column 'image'.*and no column 'caption'.*`cleansweep fetch .*a\.csv FOLDER`"),
    "addresses as pictures": (b"image,caption\nhttp://x/y.jpg,a cat\n", r"is a web address; `cleansweep fetch .*a\.csv FOLDER`"),
}


@pytest.mark.parametrize(("path", "caption"), [
    ("0.jpg", "one\ntwo,three"),
    ("0.jpg", "one, two\nthree, four\nfive,six"),
    ("img", "tall, dark\nand a man, short"),
    ("sub/img", "tall,dark\nman,short"),
])
def test_captions_of_several_lines_with_commas_are_captions(folder, path, caption):
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(JPEG)
    (folder / "a.csv").write_text(f'image,caption\n{path},"{caption}"\n1.jpg,x\n')
    assert rows(folder / "a.csv") == [(path, caption, ""), ("1.jpg", "x", "")]
    if path != "img":  # there "dark" stands where a path would, and looks like one
        (folder / "a.csv").write_text(f'caption,image\n"{caption}",{path}\nx,1.jpg\n')
        assert rows(folder / "a.csv") == [(path, caption, ""), ("1.jpg", "x", "")]


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_would_be_misread_are_refused_with_the_line(folder, name):
    data, said = REFUSED[name]
    (folder / "LICENSE").write_bytes(JPEG)
    (folder / "a.csv").write_bytes(data)
    with pytest.raises(InputError, match=rf"a\.csv.*{said}"):
        index(folder / "a.csv")


def test_a_quoted_cell_may_hold_lines_and_commas(folder):
    (folder / "a.csv").write_text('image,caption\n0.jpg,"one, two\nthree, four\r\n5.5, ""six"""\n1.jpg,"a dog\nold, black"\n')
    assert rows(folder / "a.csv") == [("0.jpg", 'one, two\nthree, four\r\n5.5, "six"', ""), ("1.jpg", "a dog\nold, black", "")]


def test_labels_as_pandas_writes_them(folder):
    (folder / "a.csv").write_text("image,caption,label\n0.jpg,a cat,3.0\n1.jpg,a dog,\n2.jpg,a cow,-1\n3.jpg,a cow, 07 \n")
    assert rows(folder / "a.csv", "label") == [(3,), (-1,), (-1,), (7,)]
    pq.write_table(pa.table({"image": [JPEG] * 3, "caption": ["a"] * 3, "label": [3.0, None, float("nan")]}), folder / "a.parquet")
    assert rows(folder / "a.parquet", "label") == [(3,), (-1,), (-1,)]


@pytest.mark.parametrize("label", ["dog", "2.5", "-3", "1e3", "99999999999", 2.5, -3, [1], True])
def test_labels_that_are_no_class_number_are_refused_with_their_place(folder, label):
    path = parquet(folder / "a.parquet", image=[JPEG] * 2, caption=["a"] * 2, label=[None, label])
    with pytest.raises(InputError, match=r"a\.parquet: (row 2: the label in|the label) column 'label' is .*source\.label_key"):
        index(path)
    assert rows(path, "label", label_key="") == [(-1,), (-1,)]
    if isinstance(label, str):
        (folder / "a.csv").write_text(f"image,caption,label\n0.jpg,a cat,1\n1.jpg,a dog,{label}\n")
        with pytest.raises(InputError, match=r"a\.csv: line 3: the label in column 'label' is"):
            index(folder / "a.csv")


def test_labels_of_tars_that_are_no_class_number_are_counted_and_the_pairs_kept(tmp_path):
    labels = [{"cls": b"dog"}, {"json": b'{"label": -3}'}, {"cls": b"2.5", "json": b'{"label": 2}'}, {"cls": b""}, {"cls": b"\xff"}]
    named = [(f"{i}.{kind}", data) for i, parts in enumerate(labels) for kind, data in {"jpg": JPEG, "txt": b"a cat", **parts}.items()]
    path = tar(tmp_path / "a.tar", named)
    assert rows(path, "drop", "label") == [("", -1), ("", -1), ("", 2), ("", -1), ("", -1)]
    summary = index_shards(Source(urls=str(path)), tmp_path / "out")
    assert summary["kept"] == 5 and summary["label_not_number"] == 3 and "json_broken" not in summary


def test_json_members_that_are_no_object_are_counted_and_the_pairs_kept(tmp_path, said):
    texts = [b'{"label": 3, ', b"[3]", b"", b"\xff", b'{"label": 3}']
    named = [(f"{i}.{kind}", data) for i, text in enumerate(texts) for kind, data in (("jpg", JPEG), ("txt", b"a cat"), ("json", text))]
    whole = [("8.jpg", JPEG), ("8.txt", b"a cat"), ("8.cls", b"4"), ("8.json", b"{")]  # nothing is asked of its json member
    path = tar(tmp_path / "a.tar", [*named, ("7.jpg", JPEG), ("7.json", b'{"caption": "a c'), *whole])
    assert rows(path, "drop", "label") == [("", -1)] * 4 + [("", 3), ("no_caption", -1), ("", 4)]
    (tmp_path / "out").mkdir()
    index_source(Source(urls=str(path)), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["kept"] == 6 and summary["json_broken"] == 5
    assert "index: 5 samples have a json member that is no JSON object, so no caption or label is read from it" in said


def test_json_members_are_not_asked_for_labels_that_are_not_wanted(tmp_path):
    texts = [b'{"label": 3, ', b'{"label": 3, "": 5}']
    named = [(f"{i}.{kind}", data) for i, text in enumerate(texts) for kind, data in (("jpg", JPEG), ("txt", b"a cat"), ("json", text))]
    path = tar(tmp_path / "a.tar", [*named, ("7.jpg", JPEG), ("7.json", b'{"caption": "a c')])
    table = Source(urls=str(path), label_key="").index_shard(0, str(path))
    assert table["label"].to_pylist() == [-1, -1, -1] and table["drop"].to_pylist() == ["", "", "no_caption"]
    assert json.loads(table.schema.metadata[b"notes"])["json_broken"] == 1  # the one whose caption it was to give


def test_links_in_tars_are_passed_over_and_counted(tmp_path):
    path = tar(tmp_path / "a.tar", members(0, 1))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("1.jpg", tarfile.SYMTYPE), ("2.jpg", tarfile.LNKTYPE), ("folder", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "000000000.jpg"
            archive.addfile(info)
    table = Source(urls=str(path)).index_shard(0, str(path))
    assert table["key"].to_pylist() == ["000000000"] and json.loads(table.schema.metadata[b"notes"])["passed_over"] == 2


def test_a_member_of_an_unknown_extension_is_named(tmp_path):
    path = tar(tmp_path / "a.tar", [*members(0, 1), ("x.txt", b"a cat"), ("x.heic", b"x")])
    assert rows(path, "member", "drop")[1] == ("x.heic", "unknown_extension")


def test_paths_that_no_file_can_have_are_no_image(folder):
    (folder / "a.csv").write_bytes(b"image,caption\n0.jpg,a cat\n" + b"x" * 300 + b",a cat\n0.jpg\0y,a cat\n0.jpg/z,a cat\n")
    assert [drop for *_, drop in rows(folder / "a.csv")] == ["", "no_image", "no_image", "no_image"]


# ---- Parquet -------------------------------------------------------------------------------------------


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "names", [("jpg", "caption"), ("image_bytes", "text"), ("bytes", "TEXT"), ("image", "title"), ("filepath", "title")]
)
def test_common_names_are_found_and_noted(folder, names):
    values = ["0.jpg", "1.jpg"] if names[0] == "filepath" else [JPEG, OTHER]
    path = parquet(folder / "a.parquet", **{"width": [1, 2], names[0]: values, names[1]: ["a cat", "a dog"]})
    assert [caption for _, caption, _ in rows(path)] == ["a cat", "a dog"]
    table = Source(urls=str(path)).index_shard(0, str(path))
    assert json.loads(table.schema.metadata[b"notes"])["columns"] == {"image": names[0], "caption": names[1]}
    first = table.to_pylist()[0]
    assert read_bytes(str(path), first["offset"], first["length"], first["member"]) == JPEG


PICTURES = {
    "category of paths": pa.array(["0.jpg", "1.jpg"]).dictionary_encode(),
    "large binary": pa.array([JPEG, JPEG], pa.large_binary()),
    "category of bytes": pa.array([JPEG, JPEG]).dictionary_encode(),
    "struct of bytes": pa.array([{"bytes": JPEG}] * 2),
    "struct of paths": pa.array([{"bytes": None, "path": "0.jpg"}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_all_types(folder, name):
    path = parquet(folder / "a.parquet", image=PICTURES[name], caption=["a cat", "a dog"])
    for row in index(path).to_pylist():
        assert row["drop"] == "" and read_bytes(str(path), row["offset"], row["length"], row["member"]) == JPEG


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [1], "caption": ["a"]}, "column 'image' is int64"),
        ({"image": [{"src": "0.jpg"}], "caption": ["a"]}, r"column 'image' is struct<src: string>"),
        ({"image": [[JPEG]], "caption": ["a"]}, "column 'image' is list"),
        ({"image": [JPEG], "caption": [1]}, "caption column 'caption' is int64"),
        ({"image": [JPEG], "caption": [1.5]}, "caption column 'caption' is double"),
        ({"image": [JPEG], "caption": [{"raw": "a"}]}, "caption column 'caption' is struct<raw: string>"),
        ({"image": [JPEG], "caption": [["a", "b"]]}, "holds several captions a picture .*`first`, `random` .*`each`"),
        ({"image": ["x.jpg", "y.jpg"], "caption": ["a", "b"]}, r"none of its 2 pictures exists; the first was looked for at .*x\.jpg"),
        ({"URL": ["http://x"], "TEXT": ["a"]}, "no column 'image'.*it has 'URL', 'TEXT'.*cleansweep fetch"),
    ],
)
def test_parquet_that_is_no_table_of_pairs_is_refused_by_column(folder, columns, said):
    with pytest.raises(InputError, match=rf"a\.parquet.*{said}"):
        index(parquet(folder / "a.parquet", **columns))


def test_captions_that_are_bytes_or_no_text(folder):
    captions = pa.array([b"a cat", "naïve".encode(), b"caf\xe9", None])
    path = parquet(folder / "a.parquet", image=[JPEG] * 4, caption=captions)
    assert [row[1:] for row in rows(path)] == [("a cat", ""), ("naïve", ""), ("", "caption_not_text"), ("", "no_caption")]
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")])
    path = parquet(folder / "b.parquet", image=[JPEG], caption=text)
    assert [row[1:] for row in rows(path)] == [("", "caption_not_text")]
    assert rows(parquet(folder / "c.parquet", image=[JPEG], caption=["\ufeffa cat"]), "caption") == [("a cat",)]


def test_lists_of_captions(folder):
    captions = [["a cat", "two cats"], ["", "a dog"], [], None]
    path = parquet(folder / "a.parquet", image=[JPEG] * 4, caption=captions, key=list("wxyz"))
    last = [("y", "", "no_caption"), ("z", "", "no_caption")]
    assert rows(path, captions="first") == [("w", "a cat", ""), ("x", "a dog", ""), *last]
    each = [("w", "a cat", ""), ("w#2", "two cats", ""), ("x", "", "empty_caption"), ("x#2", "a dog", ""), *last]
    assert rows(path, captions="each") == each
    many = parquet(folder / "b.parquet", image=[JPEG] * 40, caption=[["a cat", "two cats"]] * 40, key=[f"k{i}" for i in range(40)])
    drawn = [caption for _, caption, _ in rows(many, captions="random")]
    assert {*drawn} == {"a cat", "two cats"} and drawn == [caption for _, caption, _ in rows(many, captions="random")]


def test_what_img2dataset_writes_as_files_names_ingest(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000000.jpg").write_bytes(JPEG)
    with pytest.raises(InputError, match=rf"{tmp_path} holds no shards .*`cleansweep ingest {tmp_path} FOLDER`"):
        index(tmp_path)
    parquet(tmp_path / "00000.parquet", url=["http://x"], caption=["a"], key=["000000000"], status=["success"])
    with pytest.raises(InputError, match=rf"img2dataset writes.*`cleansweep ingest {tmp_path} FOLDER`"):
        index(tmp_path)


# ---- what is left out ----------------------------------------------------------------------------------


def test_dropped_samples_are_listed_with_their_lines(folder):
    text = 'image,caption\n0.jpg,"one\ntwo"\nno.jpg,a cat\n1.jpg,12\n"comma, quote"".jpg",a dog\n0.jpg,a cat\n'
    (folder / "a.csv").write_text(text)
    parquet(folder / "b.parquet", image=[JPEG] * 3, caption=[["a cat", ""], ["a dog"], None])
    tar(folder / "c.tar", [("1.jpg", JPEG), ("1.txt", b"a cat"), ("2.txt", b"a dog"), ("README", b"1")])
    (folder / "sub").mkdir()
    tar(folder / "sub" / "c.tar", [("7.jpg", b"no"), ("7.txt", b"a cat")])
    names = ("a.csv", "b.parquet", "c.tar", "sub/c.tar")
    source = Source(urls=tuple(str(folder / name) for name in names), captions="each")
    tables = [source.index_shard(n, url) for n, url in enumerate(source.shards())]
    write_index(tables, folder / "index.arrow")
    write_dropped(source, folder / "index.arrow", folder / "dropped.csv")
    last = folder.name
    assert list(csv.reader(io.StringIO((folder / "dropped.csv").read_text()))) == [
        ["key", "file", "line", "reason"],
        ["no.jpg", f"{last}/a.csv", "4", "no_image"],
        ["1.jpg", f"{last}/a.csv", "5", "no_letters"],
        ['comma, quote".jpg', f"{last}/a.csv", "6", "no_image"],
        [f"{last}/b-00000000#2", f"{last}/b.parquet", "1", "empty_caption"],
        [f"{last}/b-00000002", f"{last}/b.parquet", "3", "no_caption"],
        ["2", f"{last}/c.tar", "", "no_image"],
        ["7", "sub/c.tar", "", "undecodable"],
    ]
    assert pc.sum(pc.not_equal(pa.concat_tables(tables)["drop"], "")).as_py() == 7


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    with tarfile.open(str(tmp_path / "caf\udce9.tar"), "w"):
        pass
    with pytest.raises(InputError, match=r"caf\\xe9\.tar' has a name that is not UTF-8"):
        Source(urls=str(tmp_path)).shards()


def test_a_name_that_begins_as_a_parquet_cells_is_a_name(folder):
    path = tar(folder / "a.tar", [("parquet:a.jpg", OTHER), ("parquet:a.txt", b"a cat")])
    (folder / "parquet:b.jpg").write_bytes(OTHER)
    (folder / "a.csv").write_text("image,caption\nparquet:b.jpg,a cat\n")
    (folder / "set" / "parquet:c").mkdir(parents=True)
    (folder / "set" / "parquet:c" / "0.jpg").write_bytes(OTHER)
    whole = EvalSet(path=str(folder / "set"), templates=("a {}",)).load()
    assert whole.names == ("parquet:c",) and whole.table["key"].to_pylist() == ["parquet:c/0.jpg"]
    for url, table in ((path, index(path)), (folder / "a.csv", index(folder / "a.csv")), (whole.urls[0], whole.table)):
        place = table.select(["offset", "length", "member"]).to_pylist()[0]
        assert table["drop"].to_pylist() == [""] and read_bytes(str(url), **place) == OTHER
    assert rows(path) == [("parquet:a", "a cat", "")] and rows(folder / "a.csv") == [("parquet:b.jpg", "a cat", "")]


# ---- faults of the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_picture_that_cannot_be_read_is_no_undecodable_one(folder, monkeypatch, verify, number):
    path = tar(folder / "a.tar", members(0, 3))
    offset, at = rows(path, "offset", "length")[1]
    pread = os.pread

    def failing(descriptor: int, length: int, start: int) -> bytes:
        if (start, length) == (offset, at):
            raise OSError(number, os.strerror(number))
        return pread(descriptor, length, start)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        with pytest.raises(InputError, match=rf"a\.tar cannot be read at byte {offset}: {os.strerror(number)}"):
            index(path, verify=verify)

    def closed(place: str) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("datasets.index.source.read_file", closed)
    (folder / "a.csv").write_text("image,caption\n0.jpg,a cat\n")
    with pytest.raises(InputError, match=rf"a\.csv: the picture '0\.jpg' cannot be read: {os.strerror(number)}\."):
        index(folder / "a.csv", verify=verify)
    monkeypatch.setattr("datasets.acquire.ingest.read_file", closed)
    with pytest.raises(InputError, match=rf"the picture '0\.jpg' of a\.csv cannot be read: {os.strerror(number)}\."):
        ingest(folder / "a.csv", folder / "out")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_picture_that_this_machine_cannot_decode_is_no_undecodable_one(folder, monkeypatch, error):
    def fail(*_: object) -> None:
        raise error

    (folder / "a.png").write_bytes(encoded(picture(0), "PNG"))
    (folder / "a.csv").write_text("image,caption\na.png,a cat\n")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    said = "there is not enough memory" if isinstance(error, MemoryError) else "Too many open files"
    with pytest.raises(InputError, match=rf"a\.csv: the picture 'a\.png' cannot be read: {said}\."):
        index(folder / "a.csv")
    with pytest.raises(InputError, match=rf"the picture 'a\.png' of a\.csv cannot be read: {said}\."):
        ingest(folder / "a.csv", folder / "out")
    (folder / "labels.csv").write_text("image,label\na.png,0\n")
    shutil.copytree(folder, folder / "sets" / "cat")
    with pytest.raises(InputError, match=rf"the picture cat/a\.png cannot be read: {said}\."):
        EvalSet(path=str(folder / "sets"), templates=("a {}",)).load()
