"""The three layouts of evaluation sets, and class names."""

import numpy as np
import open_clip
import pytest
from PIL import Image

from datasets.errors import InputError
from datasets.evaluation.classes import CIFAR10, class_names, fill, target_index, templates
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.prompts import NAMES
from datasets.images.view import decode
from datasets.index.addresses import read_bytes
from datasets.index.source import INDEX_SCHEMA
from datasets.synthetic import TEMPLATES, tiny


def save(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), level, np.uint8)).save(path)


def first_pixels(table, urls):
    pixels = {}
    for row in table.to_pylist():
        if not row["drop"]:
            data = read_bytes(urls[row["shard"]], row["offset"], row["length"], row["member"])
            pixels[row["key"]] = int(decode(data)[0, 0, 0])
    return pixels


def test_folder_of_class_folders(tmp_path):
    save(tmp_path / "dog" / "a.png", 10)
    save(tmp_path / "cat" / "sub" / "a.png", 20)
    save(tmp_path / "cat" / "b.png", 30)
    (tmp_path / "cat" / "broken.png").write_bytes(b"no picture")
    table, urls, names, prompts, *_ = EvalSet(path=str(tmp_path), templates=("a {}",)).load()
    assert table.schema == INDEX_SCHEMA and names == ("cat", "dog") and prompts == ("a {}",)
    assert dict(zip(table["key"].to_pylist(), table["label"].to_pylist())) == {
        "cat/b.png": 0, "cat/broken.png": 0, "cat/sub/a.png": 0, "dog/a.png": 1}  # fmt: skip
    assert table["drop"].to_pylist() == ["", "undecodable", "", ""]
    assert first_pixels(table, urls) == {"cat/b.png": 30, "cat/sub/a.png": 20, "dog/a.png": 10}
    cifar = EvalSet(path=str(tmp_path), classes="cifar10", templates="cifar10").load()
    assert set(cifar.table["label"].to_pylist()) == {CIFAR10.index("cat"), CIFAR10.index("dog")} and len(cifar.templates) == 18
    before = EvalSet(path=str(tmp_path)).identity()
    save(tmp_path / "dog" / "c.png")
    assert EvalSet(path=str(tmp_path)).identity() != before


def test_class_folders_by_index_and_by_order(tmp_path):
    for name in ("n01", "n02", "n03"):
        save(tmp_path / "wnid" / name / "a.png")
    names = ("tench", "missile", "missile")
    notes: list[str] = []
    assert EvalSet(path=str(tmp_path / "wnid"), classes=names).load(say=notes.append)[0]["label"].to_pylist() == [0, 1, 2]
    assert "taken in their order: n01 → tench, n02 → missile, n03 → missile." in notes[0]
    save(tmp_path / "number" / "2" / "a.png")
    assert EvalSet(path=str(tmp_path / "number"), classes=names).load()[0]["label"].to_pylist() == [2]
    save(tmp_path / "number" / "trench" / "a.png")
    with pytest.raises(InputError, match="'trench'"):
        EvalSet(path=str(tmp_path / "number"), classes=names).load()


def folder_set(root, *folders):
    for i, name in enumerate(folders):
        save(root / name / "a.png", 10 * i)
    return lambda *classes: EvalSet(path=str(root), classes=classes, templates=("a {}",)).load().table["label"].to_pylist()


def test_class_folders_are_never_taken_in_order_where_they_have_names(tmp_path):
    labels = folder_set(tmp_path / "case", "Cat", "Dog")  # in the order of their names: Cat, Dog
    assert labels("dog", "cat") == [1, 0] and labels("Cat", "cat", "dog", "Dog") == [0, 3]
    for classes in (("zebra", "ape"), ("dog", "a cat")):
        with pytest.raises(InputError, match="the folder 'Cat' is no class; accepted are names of classes alone, or indices alone, 0 … 1"):
            labels(*classes)
    labels = folder_set(tmp_path / "spelling", "Polar_Bear", "t-shirt")
    assert labels("T shirt", "polar bear") == [1, 0]
    with pytest.raises(InputError, match="the folder 'Polar_Bear' is no class"):
        labels("polar bear", "polar-bear", "t-shirt")


def test_numbers_are_all_names_or_all_indices(tmp_path):
    labels = folder_set(tmp_path / "from0", "0", "1", "2", "3")
    assert labels("1", "2", "3", "4") == [0, 1, 2, 3] and labels("3", "2", "1", "0") == [3, 2, 1, 0]
    labels = folder_set(tmp_path / "from1", "1", "2", "3", "4")
    assert labels("1", "2", "3", "4") == [0, 1, 2, 3]
    with pytest.raises(InputError, match="the folder '4' is no class"):
        labels("cat", "dog", "cow", "bird")
    labels = folder_set(tmp_path / "mixed", "0", "dog")
    with pytest.raises(InputError, match="the folder '0' is no class"):
        labels("cat", "dog")
    file = tmp_path / "from0" / "labels.csv"
    for rows, expected in (([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 3, 2, 1], [3, 2, 1, 0]), (["1.0", "4.0"], [0, 3])):
        file.write_text("image,label\n" + "".join(f"{i}/a.png,{label}\n" for i, label in enumerate(rows)))
        loaded = EvalSet(path=str(file), classes=("1", "2", "3", "4"), templates=("a {}",)).load()
        assert loaded.table["label"].to_pylist() == expected
    file.write_text("image,label\n0/a.png,0\n1/a.png,4\n")
    with pytest.raises(InputError, match="line 2: the label '0' is no class"):
        EvalSet(path=str(file), classes=("1", "2", "3", "4")).load()


def test_labels_csv(tmp_path):
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", 40 + i)
    file = tmp_path / "labels.csv"
    file.write_text("image,label\nimages/0.png,1\nimages/1.png,1\nimages/2.png,0\nimages/9.png,0\n")
    table, urls, names, prompts, *_ = EvalSet(path=str(tmp_path), classes=("cat", "dog")).load()
    assert table["label"].to_pylist() == [1, 1, 0, 0] and table["drop"].to_pylist() == ["", "", "", "no_image"]
    assert sorted(first_pixels(table, urls).values()) == [40, 41, 42] and len(prompts) == 80
    with pytest.raises(InputError, match="classnames.txt"):
        EvalSet(path=str(file)).load()
    file.write_text("image,label\nimages/0.png,cow\n")
    with pytest.raises(InputError, match="'cow'"):
        EvalSet(path=str(tmp_path), classes=("cat", "dog")).load()
    assert EvalSet(path=str(tmp_path)).load()[2] == ("cow",)


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_clip_benchmark_layout(tmp_path, format):
    world = tiny(train=10, test=30, format=format)
    world.write(tmp_path)
    evalset = EvalSet(path=str(tmp_path / "test"))
    table, urls, names, prompts, *_ = evalset.load()
    assert names == world.class_names and prompts == TEMPLATES
    assert table["label"].to_pylist() == [i % 4 for i in range(30)]
    assert set(table["drop"].to_pylist()) == {""} and set(table["caption"].to_pylist()) == {""}
    assert len(first_pixels(table, urls)) == 30
    names = ["0.tar", "classnames.txt", "zeroshot_classification_templates.txt", "names and templates"]
    assert [part["name"] for part in evalset.identity()] == names
    (tmp_path / "test" / "classnames.txt").write_text("banana\ncircle\n")
    with pytest.raises(InputError, match="s0000002"):
        evalset.load()


def test_what_is_no_set(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        EvalSet(path=str(tmp_path / "nothing")).load()
    with pytest.raises(InputError, match="none of"):
        EvalSet(path=str(tmp_path)).load()
    with pytest.raises(InputError, match="EvalSet.layout is .*; accepted: auto, folder, labels_csv, clip_benchmark"):
        EvalSet(path=".", layout="coco")
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="no picture"):
        EvalSet(path=str(tmp_path)).load()
    (tmp_path / "cat" / "a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="no usable picture"):
        EvalSet(path=str(tmp_path)).load()


@pytest.mark.parametrize(("named", "of"), [("imagenet1k", "IMAGENET_CLASSNAMES"), ("cifar10", "cifar10")])
def test_the_identity_holds_what_names_of_lists_stand_for(tmp_path, monkeypatch, named, of):
    for i in range(2):
        save(tmp_path / str(i) / "a.png")
    evalset = EvalSet(path=str(tmp_path), classes=named, templates="simple")
    before = evalset.identity()
    with monkeypatch.context() as patched:
        if named == "cifar10":
            patched.setitem(NAMES, of, ("aeroplane", *NAMES[of][1:]))
        else:
            patched.setattr(open_clip, of, ["a fish", *getattr(open_clip, of)[1:]])
        assert evalset.identity()[:-1] == before[:-1] and evalset.identity() != before
    monkeypatch.setattr(open_clip, "SIMPLE_IMAGENET_TEMPLATES", open_clip.SIMPLE_IMAGENET_TEMPLATES[:6])
    assert evalset.identity()[-1] != before[-1]


def test_classes_of_imagenet_and_cifar():
    names = class_names("imagenet1k")
    assert len(names) == 1000 and target_index(names, "banana") == 954
    assert len(templates("openai")) == 80 and len(templates("simple")) == 7 and len(class_names("cifar10")) == 10
    assert "banana" in fill(templates("openai")[0], "banana")
    with pytest.raises(InputError, match="657, 744"):
        target_index(names, "missile")
    assert target_index(names, "missile@744") == 744 and target_index(names, 3) == 3
    with pytest.raises(InputError, match="banana"):
        target_index(names, "bananna")
    for bad in ("imagenet21k", (), ("a", "")):
        with pytest.raises(InputError, match="classes"):
            class_names(bad)
    for bad in ("clip", (), ("no braces",)):
        with pytest.raises(InputError, match="templates"):
            templates(bad)
