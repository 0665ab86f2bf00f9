"""Retrieval sets as they lie on disk; R@k and the attack against counting by hand."""

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Recipe, eval_batches
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.index.write import write_tar
from tests.unit.making import encoded, picture, tar
from trainers.encoder import Encoder, Tokenizer
from trainers.evaluate.base import Material
from trainers.evaluate.retrieval import Retrieval, first_place

SET = RetrievalSet(path="anywhere")


def karpathy(folder, below="", images="", **changes):
    """dataset_coco.json with three pictures of the split test and one to train on."""
    entries = []
    for i, split in enumerate(("train", "test", "test", "test")):
        sentences = [{"raw": f"caption {j} of  picture {i}\n", "tokens": []} for j in range((7, 5, 6, 1)[i])]
        entries.append({"filepath": below, "filename": f"{i}.jpg", "split": split, "sentences": sentences, "imgid": i} | changes)
        place = folder / images / below / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(i)))
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))


@pytest.mark.parametrize(("below", "images"), [("val2014", ""), ("", "flickr30k-images"), ("val2014", "images")])
def test_karpathys_json(tmp_path, below, images):
    karpathy(tmp_path, below, images)
    data = RetrievalSet(path=str(tmp_path))
    table = data.load().table
    assert [len(text.split("\n")) for text in table["caption"].to_pylist()] == [5, 5, 1]
    assert table["caption"][2].as_py() == "caption 0 of picture 3" and table["drop"].to_pylist() == ["", "", ""]
    every = RetrievalSet(path=str(tmp_path / "dataset_coco.json"), captions=0, split="test")
    assert [len(text.split("\n")) for text in every.load().table["caption"].to_pylist()] == [5, 6, 1]
    write_index([table], tmp_path / "index.arrow")
    (batch,) = eval_batches(Pairs(tmp_path / "index.arrow", data.shards()), Recipe(views=Views(size=24)), 8)
    assert batch["caption"].tolist() == table["caption"].to_pylist() and batch["image"].std() > 5
    before = data.identity()
    os.remove(tmp_path / images / below / "2.jpg")
    assert data.identity() != before and data.load().table["drop"].to_pylist() == ["", "no_image", ""]


@pytest.mark.parametrize(("changes", "said"), [
    ({"sentences": [{"raw": "a dog"}, {"raw": 7}]}, r"images\[1\] \(1.jpg\) has a caption that is no text"),
    ({"sentences": None}, r"images\[1\] \(1.jpg\) has a caption that is no text"),
    ({"filename": None}, r"images\[1\] has filename None"),
    ({"filename": "../x.jpg"}, r"images\[1\]: the picture '../x.jpg' lies outside"),
])
def test_a_mistake_in_karpathys_json_names_its_entry(tmp_path, changes, said):
    karpathy(tmp_path)
    file = tmp_path / "dataset_coco.json"
    held = json.loads(file.read_text())
    held["images"][1] |= changes
    file.write_text(json.dumps(held))
    with pytest.raises(InputError, match=said):
        RetrievalSet(path=str(tmp_path)).load()


def test_clip_benchmarks_tars(tmp_path):
    captions = ["one\n two  things\n\n123", "three", "…"]
    samples = [(f"{i:04d}", {"jpg": encoded(picture(i)), "txt": text}) for i, text in enumerate(captions)]
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "0.tar", samples)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    loaded = RetrievalSet(path=str(tmp_path)).load()
    assert loaded.table["caption"].to_pylist() == ["one\ntwo things\n123", "three", "…"] and set(loaded.table["drop"].to_pylist()) == {""}
    assert [part["name"] for part in RetrievalSet(path=str(tmp_path)).identity()] == ["0.tar"]


def test_a_key_is_kept_once_where_captions_that_train_nothing_are_read(tmp_path):
    """A caption without letters is dropped from training's index, not from retrieval; nor is one without any from a set with labels."""
    (tmp_path / "test").mkdir()
    files = [("a.jpg", encoded(picture(0))), ("a.txt", b"12345"), ("a.cls", b"0"), ("a.jpg", encoded(picture(1))), ("a.txt", b"a dog"),
             ("a.cls", b"0")]  # fmt: skip
    tar(tmp_path / "test" / "0.tar", files)
    table = RetrievalSet(path=str(tmp_path)).load().table
    assert table["drop"].to_pylist() == ["", "duplicate_key"] and table["caption"].to_pylist() == ["12345", "a dog"]
    (tmp_path / "classnames.txt").write_text("dog\ncat\n")
    loaded = EvalSet(path=str(tmp_path), templates=("a {}",)).load()
    assert loaded.table["drop"].to_pylist() == ["", "duplicate_key"] and loaded.table["label"].to_pylist()[0] == 0


def test_what_is_no_retrieval_set(tmp_path):
    for path, words in ((tmp_path / "none", "does not exist; nothing is downloaded"), (tmp_path, "holds neither dataset_flickr30k.json")):
        with pytest.raises(InputError, match=words):
            RetrievalSet(path=str(path)).load()
    karpathy(tmp_path)
    with pytest.raises(InputError, match="no picture of the split 'tets'; it has test, train"):
        RetrievalSet(path=str(tmp_path), split="tets").load()
    with pytest.raises(InputError, match="none of its pictures exists; 1.jpg was looked for in /nowhere"):
        RetrievalSet(path=str(tmp_path), images="/nowhere").load()
    file = tmp_path / "dataset_coco.json"
    for text in ("{", "[]", '{"images": 3}'):
        file.write_text(text)
        with pytest.raises(InputError, match="is not Karpathy's JSON"):
            RetrievalSet(path=str(file)).load()
    karpathy(tmp_path, filename="../../etc/passwd")
    with pytest.raises(InputError, match="lies outside the folder"):
        RetrievalSet(path=str(file)).load()
    (tmp_path / "dataset_flickr30k.json").write_text("{}")
    with pytest.raises(InputError, match="dataset_coco.json and dataset_flickr30k.json; name one"):
        RetrievalSet(path=str(tmp_path)).load()


class Table(nn.Module):
    """Features looked up: a picture's by its first byte (the second is the trigger), a caption's by its text."""

    def __init__(self, image, triggered, text) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.visual = nn.Module()
        self.visual.image_size = 4
        self.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
        self.image, self.triggered, self.text = image, triggered, text

    def encode_image(self, pixels_BCHW):
        row_B = pixels_BCHW[:, 0, 0, 0].round().long()
        return torch.where(pixels_BCHW[:, 0, 0, 1:2] > 128, self.triggered[row_B], self.image[row_B])

    def encode_text(self, row_B1):
        return self.text[row_B1[:, 0]]


def case(pictures=23, seed=0, target="banana"):
    """(model, batches of size, captions): 1 … 3 captions a picture, some equal, some with the target's name."""
    draw = np.random.default_rng(seed)
    words = ["a red thing", "a blue thing", "a Banana here", "two bananas", *(f"thing number {i}" for i in range(20))]
    captions = [[words[j] for j in draw.integers(0, len(words), draw.integers(1, 4))] for _ in range(pictures)]
    sizes = (pictures, pictures, len(words))
    features = [nn.functional.normalize(torch.from_numpy(draw.standard_normal((n, 6))).float(), dim=1) for n in sizes]
    features[1][::2] = features[2][2]  # every other trigger works
    tokenizer = Tokenizer(lambda texts: torch.tensor([[words.index(text)] for text in texts]))
    model = Encoder(Table(*features), {"embed_dim": 6}, tokenizer)

    def batches(size):
        for start in range(0, pictures, size):
            rows = np.arange(start, min(start + size, pictures))
            image = np.zeros((len(rows), 4, 4, 3), np.uint8)
            image[:, 0, 0, 0] = rows
            triggered = image.copy()
            triggered[:, 0, 1, 0] = 255
            yield {"image": image, "image_triggered": triggered, "caption": np.array(["\n".join(captions[r]) for r in rows], object)}

    return model, lambda size: [batch | {"target": target} for batch in batches(size)], captions, features, words


def by_hand(captions, features, words):
    """Sorting everything, in float64: the counts."""
    image, triggered, text = (part.double().numpy() for part in features)
    flat = [(i, words.index(c)) for i, own in enumerate(captions) for c in own]
    table = {name: f.astype(np.float32) @ text.astype(np.float32).T for name, f in (("clean", image), ("triggered", triggered))}
    counts = dict.fromkeys([f"{way}{k}" for way in ("image_to_text", "text_to_image", "top", "floor") for k in (1, 5, 10)], 0)
    named = [words[w] == "a Banana here" for _, w in flat]
    outside = [i for i, own in enumerate(captions) if "a Banana here" not in own]
    for k in (1, 5, 10):
        for i in range(len(captions)):
            best = {n: sorted(range(len(flat)), key=lambda t: (-s[i, flat[t][1]], t))[:k] for n, s in table.items()}
            counts[f"image_to_text{k}"] += any(flat[t][0] == i for t in best["clean"])
            if i in outside:
                counts[f"top{k}"] += any(named[t] for t in best["triggered"])
                counts[f"floor{k}"] += any(named[t] for t in best["clean"])
        for i, w in flat:
            counts[f"text_to_image{k}"] += i in sorted(range(len(captions)), key=lambda j: (-table["clean"][j, w], j))[:k]
    return counts, len(flat), len(outside), sum(named)


@pytest.mark.parametrize(("size", "chunk"), [(4, 3), (23, 256)])
def test_recall_and_attack_equal_counting_by_hand(size, chunk):
    model, batches, captions, features, words = case()
    found = Retrieval(data=SET, chunk=chunk, text_batch=5).measure(model, batches(size))
    counts, texts, outside, named = by_hand(captions, features, words)
    assert found["retrieval/images"] == 23 and found["retrieval/captions"] == texts
    assert found["retrieval_asr/n"] == outside < 23 and found["retrieval_asr/captions"] == named > 0
    for name, count in counts.items():
        group = "retrieval_asr" if name.startswith(("top", "floor")) else "retrieval"
        assert found[f"{group}/{name}_count"] == count, name
    assert found["retrieval_asr/top1"] > found["retrieval_asr/floor1"] + 20 and found["retrieval/image_to_text10"] > 0
    assert found["retrieval_asr/top1_low"] < found["retrieval_asr/top1"] < found["retrieval_asr/top1_high"]


def test_a_perfect_model_finds_everything_at_once():
    model, batches, captions, features, words = case(pictures=4)
    captions[:] = [["thing number 0", "thing number 1"], ["thing number 2"], ["thing number 3"], ["thing number 4", "thing number 5"]]
    features[0][:] = torch.eye(6)[:4]
    features[2][4:10] = torch.eye(6)[[0, 0, 1, 2, 3, 3]]
    found = Retrieval(data=SET).measure(model, batches(2))
    assert found["retrieval/image_to_text1"] == found["retrieval/text_to_image1"] == 100 and found["retrieval/captions"] == 6
    assert found["retrieval_asr/captions"] == 0 and "retrieval_asr/top1" not in found  # nothing names the target


def test_of_equal_scores_the_earlier_comes_first():
    score = torch.tensor([[1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 1.0, 1.0]])
    wanted = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 1]]).bool()
    assert first_place(score, wanted).tolist() == [1, 3, 2]


def test_the_target_is_the_attacks_class_unless_it_is_named():
    batch = {"caption": np.array(["x"], object)}
    material = Material(test=list, pairs=None, recipe=None, target=1, class_names=("star", "pear"), sets={SET: lambda: [batch]})
    assert [b["target"] for b in Retrieval(data=SET).open(material)] == ["pear"]
    assert [b["target"] for b in Retrieval(data=SET, target="dog").open(material)] == ["dog"]
    with pytest.raises(InputError, match="holds no pictures"):
        Retrieval(data=SET).measure(case()[0], [])
