"""Evaluation sets by name: tiny copies in the real on-disk formats, read by us and by torchvision."""

import csv
import os
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as peers
from PIL import Image

from datasets.errors import InputError
from datasets.evaluation.classes import class_names, imagenet_synsets, target_index
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.known_sets import SETS, canonical_name
from datasets.evaluation.prompts import NAMES, PROMPTS
from datasets.feed.loader import Recipe, eval_batches
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.triggers.patch import Patch

SYNSETS = list(imagenet_synsets())


def picture(seed: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path, "PNG" if path.suffix != ".ppm" else "PPM")  # whatever the ending says: no loss


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts) + "\n")


def samples(evalset: EvalSet, folder: Path, size: int = 32) -> Counter:
    """(pixels, class name) of every picture, through index and evaluation batches."""
    folder.mkdir(exist_ok=True)
    loaded, found = evalset.load(folder), list[tuple[bytes, str]]()
    write_index([loaded.table], folder / "index.arrow")
    for batch in eval_batches(Pairs(folder / "index.arrow", evalset.shards(folder)), Recipe(views=Views(size=size)), 4):
        found += [(image.tobytes(), loaded.names[label]) for image, label in zip(batch["image"], batch["label"])]
    return Counter(found)


def cifar(root: Path, kind: str, labels_of: dict[str, list[int]], binary: bool) -> None:
    """CIFAR-10 or -100 with pictures of the seeds 0, 1, 2 …, as pickles or records."""
    seed, ten = 0, kind == "cifar-10"
    folder = root / f"{kind}-{('batches-bin' if ten else 'binary') if binary else ('batches-py' if ten else 'python')}"
    folder.mkdir(parents=True)
    for name, labels in labels_of.items():
        rows = [picture(seed + i, 32).transpose(2, 0, 1).reshape(-1) for i in range(len(labels))]
        seed += len(labels)
        if binary:
            coarse = [] if ten else [7]
            (folder / f"{name}.bin").write_bytes(b"".join(bytes([*coarse, label]) + row.tobytes() for row, label in zip(rows, labels)))
        else:
            entry = {"data": np.stack(rows), "labels" if ten else "fine_labels": labels}
            (folder / name).write_bytes(pickle.dumps(entry, protocol=2))


TEN = {**{f"data_batch_{i}": [i, i + 1] for i in range(1, 6)}, "test_batch": [3, 9, 3]}
HUNDRED = {"train": [0, 99, 17], "test": [99, 1]}


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_as_records_and_as_pickles(tmp_path, binary, monkeypatch):
    cifar(tmp_path, "cifar-10", TEN, binary)
    cifar(tmp_path, "cifar-100", HUNDRED, binary)
    test = EvalSet(path=str(tmp_path), name="cifar10")
    found = samples(test, tmp_path / "out")
    assert found == Counter((picture(10 + i, 32).tobytes(), NAMES["cifar10"][label]) for i, label in enumerate([3, 9, 3]))
    assert sum(samples(EvalSet(path=str(tmp_path), name="cifar10", split="train"), tmp_path / "train").values()) == 10
    assert samples(EvalSet(path=str(tmp_path), name="CIFAR-100"), tmp_path / "c100") == Counter(
        [(picture(3, 32).tobytes(), "worm"), (picture(4, 32).tobytes(), "aquarium fish")]
    )
    if not binary:
        monkeypatch.setattr(peers.CIFAR10, "_check_integrity", lambda self: True)  # its checksums are of the real files
        monkeypatch.setattr(peers.CIFAR10, "_load_meta", lambda self: None)
        peer = peers.CIFAR10(tmp_path, train=False)
        assert found == Counter((np.asarray(image).tobytes(), NAMES["cifar10"][label]) for image, label in peer)
    before = test.identity()
    cifar(tmp_path / "moved", "cifar-10", TEN, binary)
    moved = EvalSet(path=str(tmp_path / "moved"), name="cifar10")
    assert moved.identity() == before
    cifar(tmp_path / "other", "cifar-10", TEN | {"test_batch": [3, 9, 4]}, binary)
    assert EvalSet(path=str(tmp_path / "other"), name="cifar10").identity() != before


class Stranger:
    def __reduce__(self):
        return os.mkdir, ("seen",)


def test_a_strangers_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cifar(tmp_path, "cifar-10", TEN, binary=False)
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps({"data": Stranger(), "labels": [1]}))
    with pytest.raises(InputError, match="test_batch is no CIFAR batch.*mkdir"):
        EvalSet(path=str(tmp_path), name="cifar10").load(tmp_path)
    assert not (tmp_path / "seen").exists()
    file.write_bytes(b"\x80\x02}q")
    with pytest.raises(InputError, match="test_batch is no CIFAR batch"):
        EvalSet(path=str(tmp_path), name="cifar10").load(tmp_path)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "test_batch.bin").write_bytes(bytes(3073 + 5))
    with pytest.raises(InputError, match="test_batch.bin has 3078 bytes"):
        EvalSet(path=str(tmp_path / "bad"), name="cifar10").load(tmp_path)
    (tmp_path / "bad" / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(InputError, match="label 10, none of the 10 classes"):
        EvalSet(path=str(tmp_path / "bad"), name="cifar10").load(tmp_path)


def test_stl10_and_svhn(tmp_path, monkeypatch):
    stl = tmp_path / "stl10_binary"
    stl.mkdir()
    big = [picture(i, 96) for i in range(3)]
    (stl / "test_X.bin").write_bytes(b"".join(p.transpose(2, 1, 0).tobytes() for p in big))
    (stl / "test_y.bin").write_bytes(bytes([1, 10, 8]))
    lines(stl / "class_names.txt", *NAMES["stl10"])
    found = samples(EvalSet(path=str(tmp_path), name="stl10"), tmp_path / "a", size=96)
    assert found == Counter((p.tobytes(), name) for p, name in zip(big, ("airplane", "truck", "monkey")))
    monkeypatch.setattr(peers.STL10, "_check_integrity", lambda self: True)
    peer = peers.STL10(tmp_path, split="test")
    assert found == Counter((np.asarray(image).tobytes(), NAMES["stl10"][label]) for image, label in peer)

    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": np.stack([picture(i, 32) for i in range(3)], axis=3), "y": [[10], [1], [9]]})
    found = samples(EvalSet(path=str(tmp_path), name="SVHN"), tmp_path / "b")
    assert found == Counter((picture(i, 32).tobytes(), name) for i, name in enumerate("019"))
    monkeypatch.setattr(peers.SVHN, "_check_integrity", lambda self: True)
    assert found == Counter((np.asarray(image).tobytes(), str(label)) for image, label in peers.SVHN(tmp_path, split="test"))
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(InputError, match=r"test_32x32.mat (is no MATLAB file|holds no 'X')"):
        EvalSet(path=str(tmp_path), name="svhn").load(tmp_path)


def caltech(root):
    for i, name in enumerate(("BACKGROUND_Google", "Faces_easy", "accordion", "water_lilly")):
        for j in range(1, 3):
            save(root / "caltech101" / "101_ObjectCategories" / name / f"image_{j:04d}.jpg", 10 * i + j)
    return peers.Caltech101(root), "categories", {"Faces_easy": "centered face", "water_lilly": "water lilly"}


def dtd(root):
    lines(root / "dtd/dtd/labels/test1.txt", "zigzagged/zigzagged_0001.jpg", "polka-dotted/polka-dotted_0002.jpg")
    lines(root / "dtd/dtd/labels/train1.txt", "zigzagged/zigzagged_0003.jpg")
    lines(root / "dtd/dtd/labels/val1.txt", "polka-dotted/polka-dotted_0004.jpg")
    for i, name in enumerate(("zigzagged_0001", "polka-dotted_0002", "zigzagged_0003", "polka-dotted_0004")):
        save(root / "dtd/dtd/images" / name[:-5] / f"{name}.jpg", i)
    return peers.DTD(root, split="test"), "classes", {}


def aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    lines(data / "variants.txt", "707-320", "A340-200", "F/A-18")
    lines(data / "images_variant_test.txt", "1000001 F/A-18", "0000002 707-320")
    for i, name in enumerate(("1000001", "0000002")):
        save(data / "images" / f"{name}.jpg", i)
    return peers.FGVCAircraft(root, split="test"), "classes", {}


def food(root):
    import json

    base = root / "food-101"
    lines(base / "meta/classes.txt", "apple_pie", "waffles")
    lines(base / "meta/test.txt", "waffles/2", "apple_pie/1")
    (base / "meta/test.json").write_text(json.dumps({"waffles": ["waffles/2"], "apple_pie": ["apple_pie/1"]}))
    save(base / "images/waffles/2.jpg", 1)
    save(base / "images/apple_pie/1.jpg", 2)
    return peers.Food101(root, split="test"), "classes", {"apple_pie": "apple pie"}


def pets(root):
    base = root / "oxford-iiit-pet"
    names = ("Abyssinian_201", "american_bulldog_10", "Egyptian_Mau_3", "american_bulldog_2")
    rows = [f"{name} {label} 1 1" for name, label in zip(names, (1, 2, 3, 2))]
    lines(base / "annotations/test.txt", *rows)
    for i, name in enumerate(names):
        save(base / "images" / f"{name}.jpg", i)
    return peers.OxfordIIITPet(root, split="test"), "classes", {"American Bulldog": "american bulldog"}


def sst2(root):
    for split in ("train", "valid", "test"):
        for i, name in enumerate(("negative", "positive")):
            save(root / "rendered-sst2" / split / name / "3.png", i + len(split))
    return peers.RenderedSST2(root, split="test"), "classes", {}


def cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "smart fortwo Convertible 2012"], object)
    scipy.io.savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    rows = np.array([(2, "00001.jpg"), (1, "00002.jpg")], [("class", "u1"), ("fname", object)])
    scipy.io.savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    for i in (1, 2):
        save(base / "cars_test" / f"0000{i}.jpg", i)
    return peers.StanfordCars(root, split="test"), "classes", {}


@pytest.mark.parametrize(("name", "make"), [
    ("caltech101", caltech), ("dtd", dtd), ("fgvc_aircraft", aircraft), ("food101", food), ("oxford_pets", pets), ("rendered_sst2", sst2),
    ("cars", cars),
])  # fmt: skip
def test_sets_of_files_hold_what_torchvision_reads(tmp_path, name, make):
    peer, attribute, other_words = make(tmp_path / "here")
    evalset = EvalSet(path=str(tmp_path / "here"), name=name)
    peer_names = [other_words.get(text, text) for text in getattr(peer, attribute)]
    loaded = evalset.load()
    assert [text for text in loaded.names if text in peer_names] == peer_names and set(loaded.templates) == set(PROMPTS[name])
    found = samples(evalset, tmp_path / "out", size=12)
    assert found == Counter((np.asarray(image.convert("RGB")).tobytes(), peer_names[label]) for image, label in peer) and len(found) > 1
    before = evalset.identity()
    (tmp_path / "here").rename(tmp_path / "there")
    moved = EvalSet(path=str(tmp_path / "there"), name=name)
    assert moved.identity() == before and moved.load().table.equals(loaded.table)


def test_flowers_and_traffic_signs(tmp_path, monkeypatch):
    flowers = tmp_path / "flowers-102"
    for i in (1, 2, 3):
        save(flowers / "jpg" / f"image_{i:05d}.jpg", i)
    scipy.io.savemat(flowers / "imagelabels.mat", {"labels": [[77, 1, 102]]})
    scipy.io.savemat(flowers / "setid.mat", {"trnid": [[2]], "valid": [[1]], "tstid": [[3, 1]]})
    monkeypatch.setattr(peers.Flowers102, "_check_integrity", lambda self: True)
    peer = peers.Flowers102(tmp_path, split="test")
    found = samples(EvalSet(path=str(tmp_path), name="flowers"), tmp_path / "a", size=12)
    assert found == Counter((np.asarray(image).tobytes(), NAMES["flowers102"][label]) for image, label in peer)
    assert {name for _, name in found} == {"blackberry lily", "passion flower"}
    both = samples(EvalSet(path=str(tmp_path), name="flowers102", split="trainval"), tmp_path / "b", size=12)
    assert [name for _, name in both] == ["pink primrose", "passion flower"]

    signs = tmp_path / "gtsrb"
    for i, label in enumerate((14, 42)):
        save(signs / "GTSRB/Final_Test/Images" / f"0000{i}.ppm", i)
        save(signs / "GTSRB/Training" / f"{label:05d}" / "00000_00000.ppm", i + 5)
    with open(signs / "GT-final_test.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("Filename", "Width", "ClassId"), ("00000.ppm", 12, 14), ("00001.ppm", 12, 42)])
    found = samples(EvalSet(path=str(tmp_path), name="gtsrb"), tmp_path / "c", size=12)
    peer = peers.GTSRB(tmp_path, split="test")
    assert found == Counter((np.asarray(image).tobytes(), NAMES["gtsrb"][label]) for image, label in peer) and len(found) == 2
    train = samples(EvalSet(path=str(tmp_path), name="gtsrb", split="train"), tmp_path / "d", size=12)
    assert train[picture(5).tobytes(), "stop"] == 1


def test_synsets_are_in_the_order_of_the_names():
    names, synsets = class_names("imagenet1k"), imagenet_synsets()
    assert len(synsets) == 1000 and sorted(SYNSETS) == SYNSETS
    for synset, name in (("n01440764", "tench"), ("n07753592", "banana"), ("n02119789", "kit fox"), ("n15075141", "toilet paper")):
        assert names[synsets[synset]] == name


def test_imagenet_folders_by_synset_and_v2_by_number(tmp_path):
    for i, index in enumerate((954, 0, 281)):
        save(tmp_path / "val" / SYNSETS[index] / "a.JPEG", i)
        save(tmp_path / "v2" / "imagenetv2-matched-frequency-format-val" / str(index) / "a.jpeg", i)
        save(tmp_path / "sketch" / SYNSETS[index] / "a.JPEG", i)
    for name, path in (("imagenet1k", "."), ("imagenet1k", "val"), ("imagenet-v2", "v2"), ("imagenet-sketch", ".")):
        loaded = EvalSet(path=str(tmp_path / path), name=name).load()
        assert sorted(loaded.table["label"].to_pylist()) == [0, 281, 954] and len(loaded.names) == 1000 and len(loaded.templates) == 80
    for index in range(12):  # 10 sorts before 2
        save(tmp_path / "all" / str(index) / "a.jpeg", index)
    loaded = EvalSet(path=str(tmp_path / "all"), name="imagenetv2").load()
    assert {key.split("/")[0]: label for key, label in zip(*(loaded.table[c].to_pylist() for c in ("key", "label")))}["10"] == 10
    save(tmp_path / "val" / "n99999999" / "a.JPEG")
    with pytest.raises(InputError, match="'n99999999' is no class; accepted are names of classes or synsets alone, or indices"):
        EvalSet(path=str(tmp_path / "val"), name="imagenet1k").load()
    with pytest.raises(InputError, match="folder 'n99999999' is no class"):
        EvalSet(path=str(tmp_path / "val"), classes="imagenet1k").load()


def test_a_thousand_other_synsets_are_not_taken_in_their_order(tmp_path):
    for index in range(1000):
        folder = tmp_path / f"n0{index:07d}"
        folder.mkdir()
        (folder / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="'n00000000' is no class"):
        EvalSet(path=str(tmp_path), classes="imagenet1k").load()
    for folder in tmp_path.iterdir():
        folder.rename(tmp_path / f"class {folder.name}")
    with pytest.raises(InputError, match="'class n00000000' is no class"):
        EvalSet(path=str(tmp_path), classes="imagenet1k").load()
    for index, folder in enumerate(sorted(tmp_path.iterdir())):
        folder.rename(tmp_path / f"c{index:04d}")
    labels = EvalSet(path=str(tmp_path), classes="imagenet1k", verify="none").load().table["label"].to_pylist()
    assert labels == list(range(1000))  # codes that say nothing: in their order, as many as there are classes


def test_the_200_classes_of_imagenet_r_are_the_only_candidates(tmp_path):
    chosen = [*range(600, 799), 954]
    for index in chosen:
        save(tmp_path / SYNSETS[index] / "a.jpg", index)
    loaded = EvalSet(path=str(tmp_path), name="imagenet_r").load()
    assert len(loaded.names) == 200 and loaded.numbers == tuple(chosen) and loaded.table["label"].to_pylist() == list(range(200))
    assert target_index(loaded.names, "banana", loaded.numbers) == 199 == target_index(loaded.names, 954, loaded.numbers)
    assert target_index(loaded.names, "missile@744", loaded.numbers) == 144
    with pytest.raises(InputError, match="'tench' is not among the 200 classes"):
        target_index(loaded.names, "tench", loaded.numbers)
    save(tmp_path / SYNSETS[1] / "a.jpg")
    with pytest.raises(InputError, match="pictures of 201 classes; the whole set has 200"):
        EvalSet(path=str(tmp_path), name="imagenet-a").load()


def truth_kaggle(folder, labels):
    rows = [f"ILSVRC2012_val_{i:08d},{SYNSETS[label]} 1 2 3 4 " for i, label in enumerate(labels, 1)]
    lines(folder / "LOC_val_solution.csv", "ImageId,PredictionString", *reversed(rows))


def truth_caffe(folder, labels):
    lines(folder / "val.txt", *(f"ILSVRC2012_val_{i:08d}.JPEG {label}" for i, label in enumerate(labels, 1)))


def truth_synsets(folder, labels):
    lines(folder / "imagenet_2012_validation_synset_labels.txt", *(SYNSETS[label] for label in labels))


def truth_devkit(folder, labels):
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    ids = [37 + 100 * i for i in range(len(labels))]  # the kit's own numbers
    lines(kit / "ILSVRC2012_validation_ground_truth.txt", *map(str, ids))
    rows = [(number, SYNSETS[label], "words", 0) for number, label in zip(ids, labels)] + [(1001, "n00000001", "inner", 2)]
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", object), ("words", object), ("num_children", "f8")]
    scipy.io.savemat(kit / "meta.mat", {"synsets": np.array(rows, kind)})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("truth", [truth_kaggle, truth_caffe, truth_synsets, truth_devkit])
def test_the_flat_validation_set(tmp_path, truth, packed):
    labels = (954, 0, 999)
    for i in range(3):
        save(tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", i)
    if packed:
        with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as archive:
            for file in sorted((tmp_path / "val").iterdir(), reverse=True):
                archive.add(file, file.name)
                file.unlink()
        (tmp_path / "val").rmdir()
    evalset = EvalSet(path=str(tmp_path), name="imagenet1k")
    with pytest.raises(InputError, match="no ground truth lies beside them; accepted are LOC_val_solution.csv"):
        evalset.load()
    truth(tmp_path, labels)
    names = class_names("imagenet1k")
    assert samples(evalset, tmp_path / "out", size=12) == Counter((picture(i).tobytes(), names[label]) for i, label in enumerate(labels))
    before = evalset.identity()
    truth(tmp_path, (1, 0, 999))
    assert evalset.identity() != before
    truth_synsets(tmp_path, labels[:2])
    if truth is truth_synsets:
        with pytest.raises(InputError, match="says nothing about the picture ILSVRC2012_val_00000003"):
            evalset.load()


def test_plain_folders_take_the_names_and_prompts_of_the_set(tmp_path):
    save(tmp_path / "apple" / "1.png")
    save(tmp_path / "aquarium_fish" / "1.png", 1)
    loaded = EvalSet(path=str(tmp_path), name="cifar100").load()
    assert loaded.table["label"].to_pylist() == [0, 1] and loaded.names == NAMES["cifar100"] and len(loaded.templates) == 18
    save(tmp_path / "unicorn" / "1.png")
    with pytest.raises(InputError, match="the folder 'unicorn' is no class"):
        EvalSet(path=str(tmp_path), name="cifar100").load()
    assert "unicorn" in EvalSet(path=str(tmp_path), name="food101").load().names  # its list is in its own files


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cifar10 is looked for as cifar-10-batches-bin or cifar-10-batches-py"):
        EvalSet(path=str(tmp_path / "none"), name="cifar10").load()
    for name, known in SETS.items():
        with pytest.raises(InputError, match="Nothing is downloaded") as caught:
            EvalSet(path=str(tmp_path), name=name).load()
        assert known.where in str(caught.value)
    with pytest.raises(InputError, match="evalset.name is 'cifar1O'; accepted are imagenet1k"):
        EvalSet(path="x", name="cifar1O")
    dtd(tmp_path)
    with pytest.raises(InputError, match="split is 'extra'; dtd has test, train"):
        EvalSet(path=str(tmp_path), name="dtd", split="extra").load()
    for file in (tmp_path / "dtd/dtd/images/zigzagged").iterdir():
        file.unlink()
    loaded = EvalSet(path=str(tmp_path), name="dtd").load()
    assert loaded.table["drop"].to_pylist() == ["no_image", ""]
    assert canonical_name("Oxford-IIIT-Pet") == "oxford_pets" and canonical_name("coco") == ""


def test_the_trigger_lies_on_pictures_from_arrays(tmp_path):
    cifar(tmp_path, "cifar-10", TEN, binary=True)
    evalset = EvalSet(path=str(tmp_path), name="cifar10")
    write_index([evalset.load(tmp_path).table], tmp_path / "index.arrow")
    recipe = Recipe(views=Views(size=32), trigger=Patch(size=8))
    (batch,) = eval_batches(Pairs(tmp_path / "index.arrow", evalset.shards(tmp_path)), recipe, 8)
    changed = (batch["image"] != batch["image_triggered"]).any(-1).sum((1, 2))
    assert len(changed) == 3 and (changed > 50).all() and (changed <= 64).all()
