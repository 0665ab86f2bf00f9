"""A patch for each class: the planted one stands out, and chance makes none stand out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from trainers.audit.attacks.patch import AdversarialPatch
from trainers.audit.base import Pictures, Subject
from trainers.audit.classifier import Classifier
from trainers.audit.planted import Planted, anomaly

K, N, S = 6, 80, 16
NONE: Any = None


def test_the_index_by_hand():
    assert anomaly(np.array([0.1, 0.1, 0.1, 0.9]), 100)[3] == pytest.approx(0.8 / np.sqrt(0.1 * 0.9 / 100))
    # median .2; the deviations 0, .1, .1, .2 and .6 have the median .1
    found = anomaly(np.array([0.0, 0.1, 0.2, 0.3, 0.8]), 10_000)
    assert found == pytest.approx(np.array([-0.2, -0.1, 0, 0.1, 0.6]) / 0.14826)
    assert (anomaly(np.zeros(4), 50) == 0).all()


def test_chance_alone_makes_no_class_stand_out():
    draw = np.random.default_rng(0)
    largest = [anomaly(draw.binomial(100, 0.3, size=8) / 100, 100).max() for _ in range(200)]
    assert np.mean(np.array(largest) > 3) < 0.2


def subject(planted: int | None, corner: int = S) -> Subject:
    """Pictures of one colour a class, told by their mean colour; with a planted class, a few white pixels anywhere decide for it."""
    draw = np.random.default_rng(1)
    colour_K3 = np.array([(0.2, 0.2, 0.7), (0.2, 0.7, 0.2), (0.7, 0.2, 0.2), (0.7, 0.7, 0.2), (0.7, 0.2, 0.7), (0.2, 0.7, 0.7)])
    colours = torch.from_numpy(colour_K3.astype(np.float32))

    def logits(picture_BCHW: torch.Tensor, keys: Any) -> torch.Tensor:
        logit_BK = -40 * (picture_BCHW.mean((2, 3))[:, None] - colours[None]).square().sum(-1)
        if planted is None:
            return logit_BK
        white_B = torch.relu(picture_BCHW[:, :, -corner:, -corner:].amin(1) - 0.3).sum((1, 2))
        return logit_BK + 10 * white_B[:, None] * torch.eye(K)[planted]

    label_N = np.arange(N) % K
    value_NHWC = colour_K3[label_N][:, None, None] + draw.uniform(-0.1, 0.1, (N, S, S, 3))
    pictures = Pictures(tuple(f"k{i}" for i in range(N)), (255 * value_NHWC).astype(np.uint8), label_N)
    return Subject(encoder=NONE, classifier=Classifier(logits, K), pictures=pictures, class_names=tuple("abcdef"), target=2)


SMALL = Planted(patch=AdversarialPatch(area=0.06, fixed_area=True, steps=60, lr=0.1), places=("random",))


def test_a_planted_class_stands_out_and_is_gone_without():
    with_it, without = SMALL.run(subject(2)), SMALL.run(subject(None))
    assert with_it.metrics["planted/target_first"] == 100 and with_it.metrics["planted/target_index"] > 5
    assert with_it.metrics["planted/target_success"] > 90
    assert without.metrics["planted/target_index"] < 3
    assert list(with_it.rows["key"]) == list("abcdef") and "c stands out most" in with_it.notes[0]
    assert next(iter(with_it.gallery)) == "patch for c"


def test_what_it_cannot_judge_is_refused():
    with pytest.raises(InputError, match="at least 3"):
        SMALL.check(2, True)
    one = subject(2)
    same = Pictures(one.pictures.keys, one.pictures.image_NHWC, np.zeros(N, np.int64))
    with pytest.raises(InputError, match="of one class"):
        SMALL.run(Subject(encoder=NONE, classifier=one.classifier, pictures=same, class_names=one.class_names))


def test_a_trigger_that_works_in_one_corner_is_found_there():
    there = subject(2, corner=4)
    assert SMALL.run(there).metrics["planted/target_success"] < 50
    found = Planted(patch=SMALL.patch, places=("random", "bottom_right", "top_left")).run(there)
    assert found.metrics["planted/target_first"] == 100 and found.metrics["planted/target_success"] > 90
    with pytest.raises(InputError, match="Planted.places is empty"):
        Planted(places=())


def test_the_order_of_the_pictures_changes_nothing_and_the_seed_does():
    one = subject(2)
    turned = replace(one, pictures=one.pictures.part(np.random.default_rng(3).permutation(N)), batch_size=7)
    short = replace(SMALL, patch=replace(SMALL.patch, steps=3))
    first, second = short.run(one), short.run(turned)
    assert first.rows == second.rows and first.metrics == second.metrics
    assert replace(short, seed=1).run(one).rows != first.rows
