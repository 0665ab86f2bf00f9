"""Evaluation sets with odd files: class folders as torchvision reads them, every encoding, wrong tables, names that are no text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as peers
from PIL import Image

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Recipe, eval_batches
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.storage import name_of, name_text

PROMPTS = ("a {}",)


def save(path: Path | bytes, level: int = 100) -> None:
    path = Path(os.fsdecode(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        Image.fromarray(np.full((20, 24, 3), level, np.uint8)).save(file, "PNG")


def load(path: Path, **fields):
    notes: list[str] = []
    return EvalSet(path=str(path), **({"templates": PROMPTS} | fields)).load(say=notes.append), notes


def levels(evalset: EvalSet, folder: Path) -> dict[str, int]:
    """Key → first byte of the picture, through index and evaluation batches."""
    write_index([evalset.load().table], folder / "index.arrow")
    batches = eval_batches(Pairs(folder / "index.arrow", evalset.shards()), Recipe(views=Views(size=20)), 3)
    return {key: int(image[0, 0, 0]) for batch in batches for key, image in zip(batch["key"], batch["image"])}


# ---- class folders ------------------------------------------------------------------------------------------------------


def test_class_folders_hold_what_torchvisions_image_folder_reads(tmp_path):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for ending in ("jpg", "JPEG", "png", "ppm", "bmp", "pgm", "tif", "TIFF", "webp"):
        save(root / "dog" / f"a.{ending}")
    save(root / "cat" / "deep" / "er" / "b.png")
    save(elsewhere / "c.png")
    (root / "bird").symlink_to(elsewhere)
    (root / "cat" / "linked").symlink_to(elsewhere)
    (root / "cat" / "linked.png").symlink_to(elsewhere / "c.png")
    (root / "cat" / "notes.txt").write_text("x")
    (root / "README").write_text("x")
    loaded, notes = load(root)
    peer = peers.ImageFolder(root)
    assert list(loaded.names) == peer.classes == ["bird", "cat", "dog"]
    expected = sorted((os.path.relpath(path, root), label) for path, label in peer.samples)
    assert list(zip(loaded.table["key"].to_pylist(), loaded.table["label"].to_pylist())) == expected
    assert set(loaded.table["drop"].to_pylist()) == {""}
    assert [note for note in notes if "2 files are no pictures of a class" in note and "README, cat/notes.txt" in note]


def test_hidden_files_and_folders_are_passed_over_and_loops_end(tmp_path):
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "dog" / "a.png")
    for hidden in ("cat/._a.png", "cat/.ipynb_checkpoints/a.png", ".cache/a.png", ".thumbs.png"):
        save(tmp_path / hidden)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "root").symlink_to(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    loaded, notes = load(tmp_path)
    assert loaded.names == ("cat", "dog") and loaded.table["key"].to_pylist() == ["cat/a.png", "cat/gone.png", "dog/a.png"]
    assert loaded.table["drop"].to_pylist() == ["", "no_image", ""] and "cat/pipe.png" in " ".join(notes)


@pytest.mark.parametrize("why", ["empty", "no pictures", "hidden", "broken", "linked to nothing"])
def test_a_class_without_a_usable_picture_is_refused_by_name(tmp_path, why):
    save(tmp_path / "cat" / "a.png")
    (tmp_path / "dog").mkdir()
    if why == "no pictures":
        (tmp_path / "dog" / "a.txt").write_text("x")
    elif why == "hidden":
        save(tmp_path / "dog" / "._a.png")
    elif why == "broken":
        (tmp_path / "dog" / "a.png").write_bytes(b"x")
    elif why == "linked to nothing":
        (tmp_path / "dog" / "a.png").symlink_to("nothing")
    with pytest.raises(InputError, match="'dog' has no usable picture"):
        load(tmp_path)


def test_folders_that_are_one_class_but_for_spaces_are_refused(tmp_path):
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "cat " / "a.png")
    with pytest.raises(InputError, match="two class folders have the name 'cat'"):
        load(tmp_path)


def test_classes_without_a_picture_are_said(tmp_path):
    save(tmp_path / "cat" / "a.png")
    loaded, notes = load(tmp_path, classes=(" cat ", "dog", "emu"))
    assert loaded.names == ("cat", "dog", "emu") and any("2 of its 3 classes have no picture: dog, emu" in note for note in notes)


# ---- names that are no text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "käse", r"a\b", r"\x82", r"\x5c", r"a\\x41", "caf\udc82", "\udcff\\x82\udc80", r"\x8" + "\udc82"])
def test_a_files_name_as_text_leads_back_to_it(name):
    text = name_text(name)
    assert text.encode() and name_of(text) == name
    assert (text == name) == (name in ("a", "käse", r"a\b"))


def test_pictures_and_folders_whose_names_are_no_utf8(tmp_path):
    root = tmp_path / "set"
    save(root / "cat" / "0.png", 10)
    save(os.fsencode(root) + b"/cat/caf\x82.png", 20)
    save(root / "cat" / r"caf\x82.png", 30)
    save(os.fsencode(root) + b"/caf\xe9/0.png", 40)
    evalset = EvalSet(path=str(root), templates=PROMPTS)
    assert evalset.load().names == (r"caf\xe9", "cat") and evalset.identity() == evalset.identity()
    assert levels(evalset, tmp_path) == {"cat/0.png": 10, r"cat/caf\x82.png": 20, r"cat/caf\x5cx82.png": 30, r"caf\xe9/0.png": 40}
    named = EvalSet(path=str(root), classes=("coffee", "cat"), templates=PROMPTS)
    with pytest.raises(InputError, match=r"the folder 'caf\\\\xe9' is no class"):
        named.load()
    for path in (os.fsdecode(os.fsencode(root) + b"/caf\xe9"), "a\0b"):
        for kind in (EvalSet, RetrievalSet):
            with pytest.raises(InputError, match="(?i)set.path(:.*NUL| is)"):
                kind(path=path)


# ---- text ---------------------------------------------------------------------------------------------------------------

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be")


def written(path: Path, text: str, encoding: str) -> None:
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + text.encode(encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_names_and_prompts_in_every_encoding(tmp_path, encoding, end):
    for label in "01":
        save(tmp_path / label / "a.png")
    written(tmp_path / "classnames.txt", end.join(["käse ", "\tbrot\x85mehl", ""]), encoding)
    written(tmp_path / "zeroshot_classification_templates.txt", end.join(["ein {c}", "", " das {} "]), encoding)
    with pytest.raises(InputError, match="zeroshot_classification_templates.txt: line 2 is empty"):
        load(tmp_path, templates="auto")
    written(tmp_path / "zeroshot_classification_templates.txt", end.join(["ein {c}", " das {} ", "", ""]), encoding)
    loaded, _ = load(tmp_path, templates="auto")
    assert loaded.names == ("käse", "brot\x85mehl") and loaded.templates == ("ein {}", "das {}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"cat\n\xffdog\n", "classnames.txt is not text in UTF-8: line 2, byte 0xff"),
        (b"\xff\xfea", "classnames.txt is not text in UTF-16-LE"),
        (b"cat\n\ndog\n", "classnames.txt: line 2 is empty"),
        (b"", "a list of names"),
    ],
)
def test_class_names_that_cannot_be_read_are_refused_with_their_place(tmp_path, data, said):
    save(tmp_path / "0" / "a.png")
    (tmp_path / "classnames.txt").write_bytes(data)
    with pytest.raises(InputError, match=said):
        load(tmp_path)


def test_retrievals_json_in_every_encoding(tmp_path):
    save(tmp_path / "1.png")
    images = [{"filename": "1.png", "split": "test", "sentences": [{"raw": "ein Käse"}, {"raw": " "}]}]
    for encoding in ENCODINGS:
        written(tmp_path / "dataset_mine.json", json.dumps({"images": images}, ensure_ascii=False), encoding)
        notes: list[str] = []
        assert RetrievalSet(path=str(tmp_path)).load(say=notes.append).table["caption"].to_pylist() == ["ein Käse"]
        assert len(notes) == 1 and "1 empty captions" in notes[0]
    for text in ("[" * 100_000, '{"images": [' + '{"split":' * 900, '{"images": [1]}', '{"images": [{"split": {}}]}', "", "\ud83d"):
        (tmp_path / "dataset_mine.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(InputError, match="dataset_mine.json is not Karpathy's JSON"):
            RetrievalSet(path=str(tmp_path)).load()


def test_a_picture_that_retrievals_json_lists_again_is_counted(tmp_path):
    save(tmp_path / "1.png")
    image = {"filename": "1.png", "split": "test", "sentences": [{"raw": "a cat"}]}
    (tmp_path / "dataset_mine.json").write_text(json.dumps({"images": [image, image, image | {"filename": "a" * 300}]}))
    assert RetrievalSet(path=str(tmp_path)).load().table["drop"].to_pylist() == ["", "duplicate_key", "no_image"]
    (tmp_path / "dataset_mine.json").write_text(json.dumps({"images": [image | {"filename": "1\0.png"}]}))
    with pytest.raises(InputError, match=r"images\[0\]: .* NUL"):
        RetrievalSet(path=str(tmp_path)).load()


# ---- labels.csv ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["0.png,cat", "1.png,"], "line 3: the label is empty"),
        (["0.png,cat", "1.png,  "], "line 3: the label is empty"),
        (["0.png,0", "1.png,2"], "line 3: the label '2' is no class"),
        (["0.png,0", "1.png,-1"], "line 3: the label '-1' is no class"),
        (["0.png,0", "1.png,1.5"], "line 3: the label '1.5' is no class"),
        (["0.png,0", f"1.png,{10**30}"], "line 3: the label '10"),
        (["0.png,nan"], "line 2: the label 'nan' is no class"),
        (["0.png,cat", "0.png,dog"], "0.png is of two classes, 'cat' and 'dog'"),
        (["0.png,cat", "./0.png,Dog"], "0.png is of two classes"),
        (["0.png,cat", "1.png,1"], "line 3: the label '1' is no class, .*names of classes alone, or indices alone, 0 … 1"),
    ],
)
def test_labels_that_are_no_class_are_refused_with_their_line(tmp_path, rows, said):
    for i in range(2):
        save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path, classes=("cat", "dog"))
    assert "labels.csv" in str(caught.value)


def test_labels_in_columns_of_tabs_are_refused_with_their_line_and_swallowed_rows_too(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("image\tlabel\n0.png\tcat\n1.png\tcow\n")
    with pytest.raises(InputError, match=r"labels\.csv, line 3: the label 'cow' is no class"):
        load(tmp_path, classes=("cat", "dog"))
    (tmp_path / "labels.csv").write_text('image,label\n0.png,"cat\n1,dog\n2,bird"\n')
    with pytest.raises(InputError, match="opens a cell in line 2 closes in line 4"):
        load(tmp_path)


def test_numbers_as_programs_write_them(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("image,label\n0.png,0.0\n1.png,1.\n2.png, 1 \n3.png,+1\n3.png,1.0\n")
    loaded, _ = load(tmp_path, classes=("cat", "dog"))
    assert loaded.table["label"].to_pylist() == [0, 1, 1, 1, 1]
    assert loaded.table["drop"].to_pylist() == ["", "", "", "", "duplicate_key"]
    (tmp_path / "labels.csv").write_text("image,label\n0.png,0.0\n1.png,1\n")
    assert load(tmp_path, classes=("1", "0"))[0].table["label"].to_pylist() == [1, 0]  # names that are numbers
    (tmp_path / "labels.csv").write_text("image,label\n0.png,1.0\n")
    with pytest.raises(InputError, match="classnames.txt"):
        load(tmp_path)
