"""BDetCLIP: its score and its rates against the formulas, whose thresholds come from untriggered pictures alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.seeding import hash64, rng
from tests.parity.toys import ToyFeed, resnet
from trainers.evaluate.base import Material
from trainers.evaluate.bdetclip import BDetCLIP, auroc

NAMES, TEMPLATES = ("red", "green", "blue"), ("a {} thing", "{}")
OWN = (("green", ("grey green", "flat")), ("red", ("round red thing",)), ("blue", ("large blue", "small", "thing")))
DETECTOR = BDetCLIP(descriptions=OWN, unrelated="flat grey", fprs=(10.0, 40.0))


def batches(count: int = 40, size: int = 7):
    total = ToyFeed(batch_size=count).batch(0)
    for start in range(0, count, size):
        at = slice(start, start + size)
        yield {"image": total["image"][at], "image_triggered": total["image_aug"][at], "key": total["key"][at],
               "label": np.arange(count)[at] % 3}  # fmt: skip


def measured(detector=DETECTOR, target=1, size=7, names=NAMES):
    material = Material(test=lambda: batches(size=size), pairs=None, recipe=None, target=target, class_names=names, templates=TEMPLATES)
    model = resnet().double().train()
    found = detector.measure(model, detector.open(material))
    assert model.training
    return found


def reference(target):
    """Keys, scores without and with the trigger, by the sums over classes and texts in NumPy."""
    model = resnet().double().eval()

    def text(*said):
        with torch.no_grad():
            mean = model.encode_text(model.tokenize(list(said))).numpy().mean(0)
        return mean / np.linalg.norm(mean)

    own = [text(*dict(OWN)[name]) for name in NAMES]
    changed = [text(*(template.replace("{}", name) + " flat grey" for template in TEMPLATES)) for name in NAMES]
    rows = []
    for batch in batches():
        with torch.no_grad():
            sides = [model.encode_image(torch.from_numpy(batch[name])).numpy() for name in ("image", "image_triggered")]
        for i, key in enumerate(batch["key"]):
            if batch["label"][i] != target:
                rows.append((key, *(sum(float(x[i] @ a) - float(x[i] @ b) for a, b in zip(own, changed)) for x in sides)))
    return rows


@pytest.mark.parametrize("target", [1, None])
def test_scores_and_rates_are_those_of_the_formulas(target):
    rows = sorted(reference(target), key=lambda row: hash64(0, "threshold", row[0]))
    half = len(rows) // 2
    first, rest = sorted(clean for _, clean, _ in rows[:half]), rows[half:]
    found, n = measured(target=target), len(rows) - half
    pairs = [(b < a) + 0.5 * (b == a) for _, a, _ in rest for _, _, b in rest]
    assert found["bdetclip/n"] == n and found["bdetclip/auroc"] == pytest.approx(np.mean(pairs), rel=1e-12)
    for percent in (10, 40):
        limit = first[math.floor((half + 1) * percent / 100) - 1]
        assert found[f"bdetclip/tpr_at_fpr{percent}"] == pytest.approx(100 * sum(b <= limit for _, _, b in rest) / n)
        assert found[f"bdetclip/fpr_at_fpr{percent}"] == pytest.approx(100 * sum(a <= limit for _, a, _ in rest) / n)
        low, high = (found[f"bdetclip/tpr_at_fpr{percent}_{end}"] for end in ("low", "high"))
        assert low - 1e-9 <= found[f"bdetclip/tpr_at_fpr{percent}"] < high


def test_order_and_size_of_batches_change_nothing():
    one = measured()
    assert one == pytest.approx(measured(size=40), rel=1e-9) and one == pytest.approx(measured(size=3), rel=1e-9)


def test_the_area_and_its_error():
    assert auroc(np.array([3.0, 4, 5]), np.array([0.0, 1, 2])) == (1.0, 0.0)
    assert auroc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == (0.5, 0.0)
    draw = rng("areas")
    areas, errors = [], []
    for _ in range(400):  # pictures whose two scores go together, as those of one picture do
        clean = draw.standard_normal(60)
        area, error = auroc(clean, 0.7 * clean + 0.7 * draw.standard_normal(60) - 0.8)
        areas.append(area)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.1)


def test_a_false_alarm_is_as_rare_as_asked_for_whatever_the_scores():
    rates = []
    for seed in range(200):
        draw = rng("alarms", seed)
        rows = sorted((f"{seed}-{i}", float(draw.standard_normal()), 0.0) for i in range(80))
        rates.append(replace(DETECTOR, fprs=(5.0,)).judged(rows)["bdetclip/fpr_at_fpr5"])
    assert 4 < np.mean(rates) <= 5.5


def test_a_threshold_that_the_pictures_are_too_few_for_is_left_out():
    assert not [name for name in measured(BDetCLIP(descriptions=OWN)) if "fpr1" in name]


def test_classes_of_imagenet_have_their_descriptions():
    import open_clip

    texts = BDetCLIP().texts(open_clip.IMAGENET_CLASSNAMES)
    assert len(texts) == 1000 and texts[954] == ("banana: elongated crescent-shaped yellow fruit with soft sweet flesh",)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="none for the class 'grey'"):
        measured(names=("red", "green", "grey"))
    plain = [{**batch, "class_names": NAMES, "templates": TEMPLATES, "target": 1} for batch in batches()]
    with pytest.raises(InputError, match="no trigger for pictures"):
        DETECTOR.measure(resnet(), [{name: value for name, value in batch.items() if name != "image_triggered"} for batch in plain])
    with pytest.raises(InputError, match="at least 3 test pictures of other classes than the target; there are 0"):
        DETECTOR.measure(resnet(), [])
    for fields, words in (({"unrelated": " "}, "unrelated is empty"), ({"descriptions": (("red", ()),)}, "no text for 'red'"),
                          ({"descriptions": "nltk"}, "wordnet"), ({"fprs": (0.0,)}, "fprs")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            BDetCLIP(**fields)
