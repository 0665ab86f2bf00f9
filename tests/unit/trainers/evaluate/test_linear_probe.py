"""The linear probe: what it learns, on what C is chosen, what a trigger does to it."""

import numpy as np
import pytest
import torch
from torch import nn

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.base import Material
from trainers.evaluate.features import embedded
from trainers.evaluate.linear_probe import LinearProbe

D = 8
TRAIN = EvalSet(path="anywhere", split="train")
PROBE = LinearProbe(train=TRAIN, grid=(0.1, 10.0))


class Pixels(nn.Module):
    """The feature is the picture's first D bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias, self.calls = nn.Parameter(torch.zeros(())), None, 0
        self.visual = nn.Module()
        self.visual.image_size = 8
        self.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

    def encode_image(self, pixels_BCHW):
        self.calls += len(pixels_BCHW)
        return pixels_BCHW[:, 0, 0] + 1e-3

    encode_text = None


def encoder() -> Encoder:
    return Encoder(Pixels(), {"embed_dim": D}, lambda captions: None)


def pictures(labels, seed: int, noise: float = 20.0, prefix: str = "k", size: int = 16):
    """Batches in which byte `label` of a picture is bright; triggered ones have the last byte bright as well."""
    draw = np.random.default_rng(seed)
    image = np.zeros((len(labels), 8, 8, 3), np.uint8)
    image[:, 0, :, 0] = draw.uniform(0, noise, (len(labels), D)).astype(np.uint8)
    image[np.arange(len(labels)), 0, labels, 0] = 120
    triggered = image.copy()
    triggered[:, 0, D - 1, 0] = 255
    key = np.array([f"{prefix}{i}" for i in range(len(labels))], object)
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        yield {"image": image[rows], "image_triggered": triggered[rows], "label": np.asarray(labels)[rows], "key": key[rows]}


def material(train, test, target=None) -> Material:
    return Material(test=lambda: test, pairs=None, recipe=None, target=target, sets={TRAIN: lambda: train})


def run(train, test, target=None, probe=PROBE, world=None):
    return probe.measure(encoder(), probe.open(material(train, test, target)), world)


def test_it_learns_classes_from_the_training_set_and_counts_on_the_test_set():
    labels = np.arange(120) % 6
    found = run(pictures(labels, 0), pictures(labels[:50], 1, prefix="t"), target=5)
    assert found["probe/n"] == 50 and found["probe/train_n"] == 120 and found["probe/top1"] == found["probe/mean_per_class"] == 100
    assert found["probe/top1_low"] == pytest.approx(92.865, abs=1e-3) and found["probe/converged"] == 1
    others = int((labels[:50] != 5).sum())
    assert found["probe_asr/n"] == others and found["probe_asr/floor"] == 0 and found["probe_asr/top10"] == 100


def test_a_trigger_that_stood_for_a_class_in_training_sends_pictures_to_it():
    labels = np.array([*np.arange(60) % 3, *[7] * 20])
    found = run(pictures(labels, 0), pictures(np.arange(30) % 3, 1, prefix="t"), target=7)
    assert found["probe/top1"] == 100 and found["probe_asr/top1"] == 100 and found["probe_asr/top1_count"] == 30
    safe = run(pictures(labels, 0), pictures(np.arange(30) % 3, 1, prefix="t"), target=2)
    assert safe["probe_asr/n"] == 20 and safe["probe_asr/top1"] == 0 and safe["probe_asr/floor"] == 0


def test_c_is_chosen_without_the_test_set():
    labels = np.array([0, 0, 0, 0, 1, 2] * 15)  # unequal: too strong a penalty sees the first alone
    wide = LinearProbe(train=TRAIN, grid=(1e-6, 1e-3, 1.0, 1e3))
    tests = list(pictures(labels, 1, noise=60, prefix="t"))
    wrong = [batch | {"label": (batch["label"] + 1) % 3} for batch in tests]
    found = [run(pictures(labels, 0, noise=60), test, probe=wide) for test in (tests, wrong)]
    assert found[0]["probe/C"] == found[1]["probe/C"] > 1e-6 and found[0]["probe/top1"] > found[1]["probe/top1"] + 30
    assert run(pictures(labels, 0), pictures(labels, 1), probe=LinearProbe(train=TRAIN, grid=(1e2, 1e3)))["probe/C_at_end"] == 1


def test_batches_and_their_order_change_nothing():
    labels = np.arange(60) % 4
    one = run(pictures(labels, 0, 130), pictures(labels, 1, 130, "t"), target=3)
    two = run(reversed(list(pictures(labels, 0, 130, size=7))), pictures(labels, 1, 130, "t", size=9), target=3)
    assert one == two and 25 < one["probe/top1"] < 100


def test_classes_that_one_side_lacks():
    found = run(pictures([0, 1] * 10, 0), pictures([0, 1, 2, 6], 1, prefix="t"), target=6)
    assert found["probe/top1_count"] == 2 and found["probe/top5_count"] == 2 and found["probe/mean_per_class"] == 50
    assert found["probe_asr/n"] == 3 and found["probe_asr/top10"] == 0  # class 6 was never trained on


def test_features_that_are_at_hand_are_not_computed_again():
    labels = np.arange(40) % 4
    model, fresh = encoder(), run(pictures(labels, 0, 130), pictures(labels, 1, 130, "t"), target=1)
    ready = embedded(model, pictures(labels, 1, 130, "t"))
    assert all("image" not in batch for batch in ready) and model.model.calls == 80
    assert PROBE.measure(model, PROBE.open(material(pictures(labels, 0, 130), ready, 1))) == fresh and model.model.calls == 80 + 40


def test_bad_input_is_named():
    with pytest.raises(InputError, match="fewer than two classes"):
        run(pictures([3] * 20, 0), pictures([3], 1))
    with pytest.raises(InputError, match="too small to hold out 20%"):
        run(pictures([0, 1], 0), pictures([1], 1))
    with pytest.raises(InputError, match="holds no pictures"):
        run(pictures([0, 1] * 10, 0), [], world=World())
    for fields, words in (({"grid": ()}, "grid"), ({"grid": (1.0, 0.1)}, "rising"), ({"held_out": 1.0}, "held_out")):
        with pytest.raises(InputError, match=words):
            LinearProbe(train=TRAIN, **fields)
