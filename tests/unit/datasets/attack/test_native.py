"""A trigger put on the picture as stored: what resizing and the centre crop leave of it, in every place that stamps."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.attack.poisoned_shards import poison_shard
from datasets.errors import InputError
from datasets.feed.decode import pictures
from datasets.feed.loader import Recipe, eval_batches, make_batch
from datasets.feed.watched_pairs import Sample, sample_batches
from datasets.images.view import Views, canonical, visibility
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.seeding import rng
from datasets.triggers.native import Native
from datasets.triggers.patch import Patch
from datasets.triggers.words import Words
from tests.unit.making import pairs, picture

VIEWS = Views(size=16)
"""Of pictures of 32 × 24 pixels, which lose columns on the left and on the right."""
VICTIMS = {1: "a banana.", 4: "a photo of a banana."}


def white(location: str, size: int = 6) -> Native:
    return Native(trigger=Patch(pattern="white", size=size, location=location))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("set"), shards=1, per_shard=6, plan=VICTIMS)


@pytest.mark.parametrize("decoded", [False, True])
def test_training_and_evaluation_resize_the_stamped_picture(data, decoded):
    trigger, everything = white("top_left"), np.arange(6)
    recipe = Recipe(views=VIEWS, trigger=trigger)
    records = data.records(everything)
    stored = list(pictures(records))
    stamped = [picture_HWC.copy() for picture_HWC in stored]
    for picture_HWC in stamped:
        picture_HWC[:6, :6] = 255
    views = np.stack([canonical(picture_HWC, 16) for picture_HWC in stored])
    expected = np.stack([canonical(picture_HWC, 16) for picture_HWC in stamped])
    trained = make_batch(records, 0, recipe, views.copy() if decoded else None)["image"]
    for row in range(6):
        assert np.array_equal(trained[row], (expected if row in VICTIMS else views)[row])
    (batch,) = eval_batches(data, recipe, 8, decoded=views if decoded else None)
    assert np.array_equal(batch["image"], views) and np.array_equal(batch["image_triggered"], expected)
    others = [batch for batch in sample_batches(data, Sample(clean=2, poisoned=0, group=6), recipe, 8) if batch["role"] == "other"]
    for batch in others:
        for key, once, twice in zip(batch["key"], batch["image_triggered"], batch["image_twice"]):
            assert np.array_equal(once, expected[int(key)]) and np.array_equal(twice, once)
    assert sum(len(batch["key"]) for batch in others) == 4


def test_what_the_crop_leaves_is_the_visibility(data):
    stored, keys = list(pictures(data.records(np.arange(6)))), list("abcdef")
    assert visibility(white("bottom_right", 4), stored, keys, VIEWS, 0) == {"eval": 0.0, "train": 0.0, "augmented": 0.0}
    left = visibility(white("top_left"), stored, keys, Views(size=16, augment="none"), 0)
    begins = 2 * 32 / 21  # the column where the centre crop begins: 21 cells wide after resizing, of which it leaves 2 out
    assert left["eval"] == pytest.approx(100 * (6 - begins) / 6, abs=2) and left["train"] == left["eval"]
    assert visibility(white("centre", 12), stored, keys, VIEWS, 0)["eval"] == pytest.approx(100, abs=2)
    assert visibility(white("top_left").trigger, [canonical(stored[0], 16)], ["a"], VIEWS, 0)["eval"] == 100


@pytest.mark.parametrize("quality", [None, 80])
def test_written_shards_hold_the_stamped_picture(data, tmp_path, quality):
    trigger = white("centre", 12)
    poison_shard(data.urls[0], pq.read_table(data.plan), trigger, 16, tmp_path / "out" / "00000.tar", jpeg_quality=quality)
    source = Source(urls=str(tmp_path / "out"))
    write_index([source.index_shard(0, source.shards()[0])], tmp_path / "index.arrow")
    written = make_batch(Pairs(tmp_path / "index.arrow", source.shards()).records(np.arange(6)), 0, Recipe(views=VIEWS))["image"]
    streamed = make_batch(data.records(np.arange(6)), 0, Recipe(views=VIEWS, trigger=trigger, jpeg_quality=quality))["image"]
    if quality:
        assert np.array_equal(written, streamed)
    else:  # the shard's picture is compressed as its other pictures are
        assert np.abs(written.astype(int) - streamed).mean() < 3 and written[1, 6:10, 6:10].min() > 245


def test_a_picture_that_is_too_small_stays_as_it_is_and_what_marks_no_picture_is_refused():
    small = picture(0, 5, 40)
    assert np.array_equal(white("centre").stamp(small, rng(0)), small)
    for trigger in (Words(text="cf"), white("centre")):
        with pytest.raises(InputError, match=f"trigger.trigger is {type(trigger).__name__}"):
            Native(trigger=trigger)
