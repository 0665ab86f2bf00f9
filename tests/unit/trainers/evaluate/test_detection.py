"""Which pairs a detection looks at, and which of them count as victims."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.errors import InputError
from datasets.feed.loader import Recipe
from datasets.images.view import Views
from datasets.triggers.patch import Patch
from tests.unit.making import pairs
from trainers.detect.kdistance import KDistance
from trainers.detect.lorex import LoREx
from trainers.evaluate.base import Material
from trainers.evaluate.detection import Detection, scored_batches, victims

RECIPE = Recipe(views=Views(size=32, crop=(0.5, 1.0), flip=True), trigger=Patch(size=6))


@pytest.fixture
def poisoned(tmp_path):
    return pairs(tmp_path, shards=2, per_shard=10, plan=dict.fromkeys((2, 5, 11), "a banana"))


def test_a_dual_keys_partial_negative_is_no_victim(poisoned):
    assert np.flatnonzero(victims(poisoned)).tolist() == [2, 5, 11]
    plan = pq.read_table(poisoned.plan)
    target = pa.array(["banana", "", "banana"])
    pq.write_table(plan.set_column(plan.schema.get_field_index("target"), "target", target), poisoned.plan)
    assert np.flatnonzero(victims(poisoned)).tolist() == [2, 11]


def test_the_reference_comes_first_and_every_pair_once_as_trained_on_without_augmentation(poisoned):
    for ranks in (1, 2):
        batches = [batch for rank in range(ranks) for batch in scored_batches(poisoned, [KDistance(k=2, m=5)], RECIPE, 4, rank, ranks)]
        first, rest = ([batch for batch in batches if batch["first"] == kind] for kind in (True, False))
        assert sum(len(batch["position"]) for batch in first) == 5
        assert sorted(np.concatenate([batch["position"] for batch in rest]).tolist()) == list(range(20))
        told = {key: victim for batch in rest for key, victim in zip(batch["key"], batch["victim"])}
        assert sum(told.values()) == 3
        captions = {key: caption for batch in rest for key, caption in zip(batch["key"], batch["caption"])}
        assert all((captions[key] == "a banana") == victim for key, victim in told.items())
    again = {key: image.tobytes() for batch in first for key, image in zip(batch["key"], batch["image"])}
    assert all(again.get(key, image.tobytes()) == image.tobytes() for batch in rest for key, image in zip(batch["key"], batch["image"]))


def test_a_part_of_the_pairs_is_nested_and_keeps_the_plan(poisoned):
    seen = []
    for count in (6, 12):
        detection = Detection(scores=(KDistance(k=2, m=5),), pairs=count)
        opened = list(detection.open(Material(test=list, pairs=poisoned, recipe=RECIPE, batch_size=20)))
        seen.append({key: victim for batch in opened if not batch["first"] for key, victim in zip(batch["key"], batch["victim"])})
    assert len(seen[0]) == 6 and len(seen[1]) == 12 and seen[0].items() <= seen[1].items()


def test_a_trusted_key_that_is_no_pair_is_named(poisoned):
    with pytest.raises(InputError, match="LoREx.trusted names 'nobody'"):
        list(scored_batches(poisoned, [LoREx(m=5, trusted=("000000001", "nobody"))], RECIPE, 4))
    with pytest.raises(InputError, match="LoREx.trusted is 18, but only 17 pairs are no victims"):
        list(scored_batches(poisoned, [LoREx(m=5, trusted=18)], RECIPE, 4))
