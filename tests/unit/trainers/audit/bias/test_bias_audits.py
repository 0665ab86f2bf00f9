"""What all audits of bias have in common, on a small model of open_clip's kind."""

import dataclasses

import numpy as np
import pytest

from datasets.feed.loader import Recipe
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from tests.unit.making import pairs
from trainers.audit.base import Pictures, Subject
from trainers.audit.bias.attribute_pairs import AttributePairs
from trainers.audit.bias.balance import Balance
from trainers.audit.bias.corruptions import Corruptions
from trainers.audit.bias.cue_conflict import CueConflict
from trainers.audit.bias.label_hierarchy import LabelHierarchy
from trainers.audit.bias.name_that_dataset import NameThatDataset
from trainers.audit.bias.poison_tail import PoisonTail
from trainers.audit.classifier import zero_shot
from trainers.model import TinyCLIP

WORLD = tiny()
TREE = tuple((name, "round" if name in ("banana", "circle") else "straight") for name in WORLD.class_names)
AUDITS = (
    AttributePairs(world=WORLD, count=12),
    Balance(groups=(("red", "blue"),)),
    Corruptions(names=("fog", "pixelate"), severities=(3,), count=9),
    CueConflict(count=9),
    LabelHierarchy(tree=TREE),
    NameThatDataset(over="pixels", count=40),
    NameThatDataset(over="captions", count=40),
    PoisonTail(permutations=19, top=(5,)),
)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bias")
    made = next(WORLD.pictures("test", 60))
    given = Pictures(tuple(f"s{i}" for i in range(60)), made.images, made.labels)
    recipe = Recipe(views=Views(size=32), trigger=Patch(size=8))
    data = pairs(folder, 1, 80, {3: "a banana", 9: "a banana"})
    return TinyCLIP(image_size=32).build(0).eval().requires_grad_(False), given, data, recipe


@pytest.mark.parametrize("audit", AUDITS, ids=lambda audit: audit.label + getattr(audit, "over", ""))
def test_an_audit_leaves_the_model_as_it_is_and_keeps_to_the_contract(audit, material):
    model, given, data, recipe = material
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    with zero_shot(model, WORLD.class_names, WORLD.templates) as classifier:
        for size in (7, 64):
            subject = Subject(model, classifier, given, WORLD.class_names, batch_size=size, pairs=data, recipe=recipe)
            audit.check(len(WORLD.class_names), False)
            results.append(audit.run(subject))
    one, other = results
    assert one.metrics == pytest.approx(other.metrics) and not one.failures
    assert all(name.startswith("bias/") and isinstance(value, (int, float)) for name, value in one.metrics.items())
    assert len({len(values) for values in one.rows.values()}) <= 1 and ("key" in one.rows or not one.rows)
    for image_NHWC in one.gallery.values():
        assert image_NHWC.dtype == np.uint8 and image_NHWC.shape[1:] == (32, 32, 3)
    assert len({len(image_NHWC) for image_NHWC in one.gallery.values()}) <= 1
    assert audit.group == "bias" and dataclasses.replace(audit) == audit and hash(audit) == hash(dataclasses.replace(audit))
    assert not model.training and all((value == before[name]).all() for name, value in model.state_dict().items())
