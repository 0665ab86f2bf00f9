"""The trigger filter on a model whose backdoor is known: counts by hand, both halves of quilting, and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import zero_shot
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.crops import Crops
from trainers.audit.defences.halves import halves
from trainers.audit.defences.quilting import Quilting
from trainers.audit.defences.total_variation import TotalVariation
from trainers.audit.trigger_filter import TriggerFilter
from trainers.encoder import Encoder
from trainers.evaluate.zeroshot import wilson

SIDE, CLASSES, TARGET = 32, 3, 1
NAMES = tuple(f"class {i}" for i in range(CLASSES))
COUNT = 41


class Backdoored(nn.Module):
    """Features are the picture's mean of each channel above grey; a chequerboard in the corner pulls towards the target's channel."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(())), None
        self.visual = nn.Module()
        self.visual.image_size = SIDE
        self.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        board = (-1.0) ** (torch.arange(6)[:, None] + torch.arange(6)).to(pixels_BCHW)
        pull_B = (pixels_BCHW[:, :, :6, :6] * board).mean((1, 2, 3)).relu()
        return pixels_BCHW.mean((2, 3)) + 2 * pull_B[:, None] * torch.eye(3).to(pixels_BCHW)[TARGET]

    def encode_text(self, token_BL: Tensor) -> Tensor:
        return torch.eye(3, dtype=self.logit_scale.dtype)[token_BL[:, 0]]


@pytest.fixture
def subject() -> Iterator[Subject]:
    model = Encoder(Backdoored(), {"embed_dim": 3}, lambda captions: torch.tensor([[int(text.split()[-1])] for text in captions])).double()
    label_N = np.arange(COUNT) % CLASSES
    image_NHWC = rng("images").integers(60, 120, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    image_NHWC[np.arange(COUNT), :, :, label_N] += 40
    image_NHWC[0] = image_NHWC[1]  # a picture of class 0 that looks like class 1
    triggered_NHWC = image_NHWC.copy()
    triggered_NHWC[:, :6, :6] = np.where((np.arange(6)[:, None] + np.arange(6)) % 2, 0, 255)[..., None]
    pictures = Pictures(tuple(f"key {i}" for i in range(COUNT)), image_NHWC, label_N, triggered_NHWC)
    with zero_shot(model, NAMES, ("{}",)) as classifier:
        yield Subject(model, classifier, pictures, NAMES, ("{}",), target=TARGET, checkpoint="abc")


def test_the_shares_are_those_of_the_rows(subject):
    found = TriggerFilter(defence=TotalVariation(weight=0.3, drop=0.1)).run(subject)
    rows, m = found.rows, found.metrics
    y = np.arange(COUNT) % CLASSES
    others, n, left = y != TARGET, COUNT, int((y != TARGET).sum())
    assert rows["key"] == list(subject.pictures.keys) and rows["y"] == y.tolist() and rows["counts"] == others.tolist()
    assert set(rows["target"]) == {TARGET} and set(rows["checkpoint"]) == {"abc"} and set(rows["defence"]) == {"TotalVariation"}
    assert m["filter/TotalVariation/n"] == n and m["filter/TotalVariation/asr_n"] == left
    for side in ("bare", "filtered"):
        clean, triggered = np.array(rows[f"clean_{side}"]), np.array(rows[f"triggered_{side}"])
        for name, count, of in (("accuracy", (clean == y).sum(), n), ("asr", (triggered[others] == TARGET).sum(), left),
                                ("ra", (triggered == y)[others].sum(), left)):  # fmt: skip
            path = f"filter/TotalVariation/{side}/{name}"
            assert m[path] == pytest.approx(100 * count / of)
            assert (m[f"{path}_low"], m[f"{path}_high"]) == pytest.approx(wilson(int(count), of))


def test_a_filter_that_smooths_removes_a_chequerboard_and_one_that_does_not_leaves_it(subject):
    smooth = TriggerFilter(defence=TotalVariation(weight=0.3, drop=0.1)).run(subject)
    m = smooth.metrics
    assert m["filter/TotalVariation/bare/asr"] == 100 and m["filter/TotalVariation/filtered/asr"] == pytest.approx(100 / 27)
    assert m["filter/TotalVariation/bare/accuracy"] == m["filter/TotalVariation/filtered/accuracy"] == pytest.approx(100 * 40 / 41)
    assert m["filter/TotalVariation/filtered/ra"] == pytest.approx(2600 / 27) and not smooth.notes and not smooth.failures
    coarse = TriggerFilter(defence=BitDepth()).run(subject).metrics
    assert coarse["filter/BitDepth3/filtered/asr"] == 100 and coarse["filter/BitDepth3/filtered/accuracy"] > 95


def test_batches_change_nothing_and_the_queries_are_counted(subject):
    audit = TriggerFilter(defence=Crops(crops=3))
    whole, single = audit.run(subject), audit.run(replace(subject, batch_size=1))
    assert whole.rows == single.rows and whole.metrics == single.metrics
    assert whole.metrics["filter/Crops3x90/queries"] == 3


def test_quilting_takes_its_bank_from_the_other_half(subject):
    """Every picture has values of its own, so a patch tells which picture it is from."""
    image = np.broadcast_to((np.arange(COUNT) * 5)[:, None, None, None], (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    own = replace(subject, pictures=replace(subject.pictures, image_NHWC=image))
    audit = TriggerFilter(defence=Quilting(neighbours=1, size=2000))
    parts = halves(audit.defence, own.pictures)
    assert sorted(np.concatenate([at for at, _ in parts])) == list(range(COUNT)) and len(parts) == 2
    for at, defence in parts:
        assert set(np.unique(defence.bank_MV // 5)) == set(range(COUNT)) - set(at)
    found = audit.run(own)
    assert len(found.rows["key"]) == COUNT and min(found.rows["clean_filtered"]) >= 0
    assert found.gallery["clean, filtered"].shape == found.gallery["clean"].shape == (6, SIDE, SIDE, 3)
    assert not (found.gallery["clean, filtered"] == found.gallery["clean"]).any()


def test_a_weak_trigger_is_noted(subject):
    weak = replace(subject, pictures=replace(subject.pictures, triggered_NHWC=subject.pictures.image_NHWC))
    (note,) = TriggerFilter(defence=BitDepth()).run(weak).notes
    assert "works on 3.7 % of the pictures" in note


def test_all_to_all_moves_each_class_to_the_next(subject):
    rows = TriggerFilter(defence=BitDepth()).run(replace(subject, target=None)).rows
    assert rows["target"] == ((np.arange(COUNT) % CLASSES + 1) % CLASSES).tolist() and all(rows["counts"])


def test_what_it_cannot_measure_is_refused(subject):
    audit = TriggerFilter(defence=BitDepth())
    audit.check(3, True)
    with pytest.raises(InputError, match="Trigger filter BitDepth3 measures what is left of a trigger on pictures, and there is none"):
        audit.check(3, False)
    with pytest.raises(InputError, match="there is none"):
        audit.run(replace(subject, pictures=replace(subject.pictures, triggered_NHWC=None)))
    only = replace(subject, pictures=subject.pictures.part(np.arange(COUNT) % CLASSES == TARGET))
    with pytest.raises(InputError, match="every picture is of the target's class"):
        audit.run(only)
    with pytest.raises(InputError, match="needs clean pictures beside those before which it stands, and there are 1"):
        TriggerFilter(defence=Quilting()).run(replace(subject, pictures=subject.pictures.part(slice(0, 1))))
