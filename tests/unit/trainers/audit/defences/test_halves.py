"""A defence that needs clean pictures stands before a picture without having seen it, also when its robustness is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.errors import InputError
from datasets.seeding import rng
from trainers.audit.attacks.base import Attack, Attacked, Radius
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier
from trainers.audit.defences.bit_depth import BitDepth
from trainers.audit.defences.halves import halves
from trainers.audit.defences.quilting import Quilting
from trainers.audit.robustness import Robustness

COUNT, SIDE = 12, 8


@dataclass(frozen=True, kw_only=True)
class Darker(Attack):
    """Makes every pixel darker by ε."""

    eps: Radius = 8 / 255

    def perturb(self, classifier: Classifier, picture_BCHW: Tensor, label_B: Tensor, keys_B: Sequence[str]) -> Attacked:
        classifier(picture_BCHW, keys_B)
        asked = torch.ones(len(keys_B), dtype=torch.int64)
        return Attacked((picture_BCHW - self.eps).clamp(0, 1), asked, torch.full((len(keys_B),), float("nan")))


def subject(batch_size: int = 5) -> Subject:
    label_N = np.arange(COUNT) % 2
    image = rng("halves").integers(0, 100, (COUNT, SIDE, SIDE, 3), dtype=np.uint8) + 100 * label_N[:, None, None, None].astype(np.uint8)
    bare = Classifier(lambda x, _: torch.stack([0.4 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.4], 1), 2)
    pictures = Pictures(tuple(f"k{i:02d}" for i in range(COUNT)), image, label_N)
    return Subject(None, bare, pictures, ("dark", "bright"), batch_size=batch_size)  # type: ignore[arg-type]


def test_halves_share_no_picture_and_do_not_depend_on_the_others():
    pictures = subject().pictures
    ((whole, same),) = halves(BitDepth(), pictures)
    assert whole.tolist() == list(range(COUNT)) and same == BitDepth()
    (first, by_second), (second, by_first) = halves(Quilting(size=10**4), pictures)
    assert sorted([*first, *second]) == list(range(COUNT)) and len(first) and len(second)
    np.testing.assert_array_equal(by_second.bank_MV, Quilting(size=10**4).with_bank(pictures.image_NHWC[second]).bank_MV)
    np.testing.assert_array_equal(by_first.bank_MV, Quilting(size=10**4).with_bank(pictures.image_NHWC[first]).bank_MV)
    part = halves(Quilting(), pictures.part(slice(0, 8)))[0][0]
    assert part.tolist() == [i for i in first if i < 8]
    assert halves(Quilting(seed=1), pictures)[0][0].tolist() != first.tolist()
    with pytest.raises(InputError, match="Quilting needs clean pictures"):
        halves(Quilting(), pictures.part(slice(0, 1)))


@pytest.mark.parametrize("mode", ["oblivious", "adaptive"])
def test_the_robustness_behind_quilting_is_measured_whatever_the_batch(mode):
    audit = Robustness(attack=Darker(), defence=Quilting(neighbours=2), mode=mode)
    found, other = audit.run(subject()), audit.run(subject(batch_size=1))
    assert sorted(found.rows["key"]) == sorted(subject().pictures.keys) and found.metrics["robust/clean"] == 100
    assert found.rows["key"] == other.rows["key"] and found.rows["prediction"] == other.rows["prediction"]
    assert found.metrics["robust/n"] == COUNT
