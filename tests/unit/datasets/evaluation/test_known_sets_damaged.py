"""Files of named sets that are cut, wrong or contradict themselves: one sentence that names the file; what is only short is said."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.known_sets import PUBLISHED, SETS


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, "PNG")


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def batch(data: object, labels: object) -> bytes:
    return pickle.dumps({"data": data, "labels": labels}, protocol=2)


HUGE = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x07" + b"\xff" * 6 + b"\x0f\x85U\x01b\x87R."
"""A pickle that asks for an array of 2**52 bytes."""
ROW = np.zeros((1, 3072), np.uint8)
IMAGES = np.zeros((32, 32, 3, 1), np.uint8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (batch(ROW, [1, 2]), "test_batch is no CIFAR batch"),
        (batch(ROW.astype(int), [1]), "its pictures are int64"),
        (batch(ROW, [1.5]), "its labels float64"),
        (batch(ROW, [-1]), "label -1"),
        (batch(ROW, [1])[:-4000], "test_batch is no CIFAR batch"),
        (HUGE, "test_batch is no CIFAR batch"),
    ],
)
def test_cifars_pickles(tmp_path, data, said):
    put(tmp_path / "cifar-10-batches-py" / "test_batch", data)
    with pytest.raises(InputError, match=said):
        EvalSet(path=str(tmp_path), name="cifar10").load(tmp_path)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"X": IMAGES, "y": [[11]]}, "y holds 11 … 11; its labels are 1 … 10"),
        ({"X": IMAGES, "y": [[0]]}, "y holds 0"),
        ({"X": IMAGES, "y": [[1.5]]}, "no whole number"),
        ({"X": IMAGES, "y": "one"}, "no list of numbers"),
        ({"X": IMAGES[..., 0], "y": [[1]]}, r"X is uint8 \(32, 32, 3\)"),
        ({"X": IMAGES.astype(float), "y": [[1]]}, "X is float64"),
        ({"X": IMAGES, "y": [[1], [2]]}, "1 pictures, but 2 labels"),
    ],
)
def test_svhn(tmp_path, variables, said):
    scipy.io.savemat(tmp_path / "test_32x32.mat", variables)
    with pytest.raises(InputError, match=said) as caught:
        EvalSet(path=str(tmp_path), name="svhn").load(tmp_path)
    assert "test_32x32.mat" in str(caught.value)


def test_stl10(tmp_path):
    put(tmp_path / "stl10_binary" / "test_X.bin", b"")
    with pytest.raises(InputError, match="test_X.bin has 0 bytes"):
        EvalSet(path=str(tmp_path), name="stl10").load(tmp_path)
    put(tmp_path / "stl10_binary" / "test_X.bin", bytes(3 * 96 * 96))
    wrong = {None: "test_y.bin does not exist", b"": "1 pictures, but 0 labels", b"\0": "label -1", b"\x0b": "label 10"}
    for labels, said in wrong.items():
        if labels is not None:
            put(tmp_path / "stl10_binary" / "test_y.bin", labels)
        with pytest.raises(InputError, match=said):
            EvalSet(path=str(tmp_path), name="stl10").load(tmp_path)


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("dtd", {"dtd/labels/test1.txt": "banded/1.jpg\nbanded\n"}, "'banded' is no class and picture"),
        ("dtd", {"dtd/labels/test1.txt": b"banded/\xff.jpg\n"}, "test1.txt is not text in UTF-8: line 1"),
        ("dtd", {"dtd/labels/test1.txt": "banded/1.jpg\n"}, "none of the 1 pictures exists"),
        ("fgvc_aircraft", {"data/variants.txt": "707\n707\n", "data/images_variant_test.txt": "1 707"}, "'707' is listed more than once"),
        ("fgvc_aircraft", {"data/variants.txt": "707\n", "data/images_variant_test.txt": "1 747"}, "'1 747' names no class"),
        ("food101", {"food-101/meta/classes.txt": "pie\npie\n", "food-101/meta/test.txt": "pie/1"}, "'pie' is listed more than once"),
        ("food101", {"food-101/meta/classes.txt": "pie\n"}, "test.txt does not exist"),
        ("food101", {"food-101/meta/classes.txt": "pie\n", "food-101/meta/test.txt": ""}, "holds no picture of the split"),
        ("gtsrb", {"gtsrb/GTSRB/x": "", "gtsrb/GT-final_test.csv": "Filename;ClassId\n0.ppm;1\n1.ppm;\n"}, "line 3: it has no Filename"),
        ("gtsrb", {"gtsrb/GTSRB/x": "", "gtsrb/GT-final_test.csv": "Filename;ClassId\n0.ppm\n"}, "line 2: it has no Filename"),
        ("gtsrb", {"gtsrb/GTSRB/x": "", "gtsrb/GT-final_test.csv": "Filename;ClassId\n0.ppm;43\n"}, "label 43, none of the 43 classes"),
        ("oxford_pets", {"oxford-iiit-pet/annotations/test.txt": "Cat_1 1 1 1\nDog_1 1 1 1\n"}, "pictures of 'Cat' and of 'Dog'"),
        ("oxford_pets", {"oxford-iiit-pet/annotations/test.txt": "Cat_1 1 1 1\nDog_1 3 1 1\n"}, "without a gap"),
        ("oxford_pets", {"oxford-iiit-pet/annotations/test.txt": "Cat_1\n"}, "a line is a picture's name"),
    ],
)
def test_lists(tmp_path, name, files, said):
    for file, data in files.items():
        put(tmp_path / file, data)
    with pytest.raises(InputError, match=said):
        EvalSet(path=str(tmp_path), name=name).load(tmp_path)


def test_flowers(tmp_path):
    wrong = (([[0]], [[1]], "names pictures 0 … 0"), ([[2]], [[1]], "names pictures 2 … 2"), ([[1]], [[np.nan]], "no whole number"))
    for ids, labels, said in wrong:
        scipy.io.savemat(tmp_path / "setid.mat", {"tstid": ids})
        scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": labels})
        with pytest.raises(InputError, match=said):
            EvalSet(path=str(tmp_path), name="flowers102").load(tmp_path)


def test_a_folder_that_is_no_sign(tmp_path):
    picture(tmp_path / "gtsrb/GTSRB/Training/00001/0.ppm")
    picture(tmp_path / "gtsrb/GTSRB/Training/.thumbs/0.ppm")
    assert len(EvalSet(path=str(tmp_path), name="gtsrb", split="train").load().table) == 1
    picture(tmp_path / "gtsrb/GTSRB/Training/copy/0.ppm")
    with pytest.raises(InputError, match="the folder 'copy' is no sign"):
        EvalSet(path=str(tmp_path), name="gtsrb", split="train").load()


def test_what_is_listed_again_is_counted_and_a_short_split_is_said(tmp_path):
    for name in ("pie/1", "soup/1"):
        picture(tmp_path / f"food-101/images/{name}.jpg")
    put(tmp_path / "food-101/meta/classes.txt", "pie\nsoup\nstew\ncake\n")
    put(tmp_path / "food-101/meta/test.txt", "pie/1\npie/1\nsoup/1\ncake/1\n")
    notes: list[str] = []
    loaded = EvalSet(path=str(tmp_path), name="food101").load(say=notes.append)
    assert loaded.table["drop"].to_pylist() == ["", "duplicate_key", "", "no_image"]
    assert any("the class 'cake' has no usable picture (no_image 1)" in note for note in notes)
    assert any("1 of its 4 classes have no picture: stew" in note for note in notes)
    assert any("food101 has 25250 pictures in its test split as published; here it has 4" in note for note in notes)
    put(tmp_path / "food-101/meta/test.txt", "pie/1\n")
    assert set(PUBLISHED) == set(SETS) and all(set(PUBLISHED[name]) == set(known.splits) for name, known in SETS.items())


def test_imagenets_truth_that_contradicts_itself_or_has_a_gap(tmp_path):
    for i in (1, 2):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    for name, text, said in (
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 1\nILSVRC2012_val_00000001.JPEG 2\n", "two classes, '1' and '2'"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 1\n", "says nothing about the picture ILSVRC2012_val_00000002"),
        ("imagenet_2012_validation_synset_labels.txt", "n01440764\n\nn01443537\n", "line 2 is empty"),
    ):
        put(tmp_path / name, text)
        with pytest.raises(InputError, match=said):
            EvalSet(path=str(tmp_path), name="imagenet1k", templates=("a {}",)).load()
        (tmp_path / name).unlink()
