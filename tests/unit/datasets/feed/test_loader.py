"""Batches: a function of recipe, epoch and records, whoever makes them and wherever training began."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.attack.poisoned_shards import stamp_native
from datasets.captions import eda
from datasets.errors import InputError
from datasets.feed import loader
from datasets.feed.decode import canonical_views, stamped_views
from datasets.feed.loader import LocalFeed, Recipe, _Buffers, _Steps, eval_batches, make_batch
from datasets.feed.watched_pairs import Sample, sample_batches
from datasets.images.view import Views, visibility
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.seeding import rng
from datasets.triggers.base import Trigger
from datasets.triggers.patch import LOCATIONS, PATTERNS, Patch
from tests.unit.making import dataset, members, pairs, tar

RECIPE = Recipe(views=Views(size=16, crop=(0.5, 1.0), flip=True), trigger=Patch(size=4), seed=3, two_views=True)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("set"), plan={4: "a banana.", 25: "a photo of a banana."})


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[name], b[name]) and getattr(a[name], "dtype", 0) == getattr(b[name], "dtype", 0) for name in a
    )


def test_shapes_types_and_victims(poisoned):
    batch = make_batch(poisoned.records(np.array([25, 3])), 0, RECIPE)
    assert batch["image"].shape == batch["image_aug"].shape == (2, 16, 16, 3)
    assert batch["image"].dtype == np.uint8 and batch["row"].dtype == np.int64 and batch["poisoned"].tolist() == [True, False]
    assert batch["caption"].tolist() == ["a photo of a banana.", "a picture of thing number 3"]
    assert batch["caption"].dtype == batch["key"].dtype == batch["caption_aug"].dtype == object
    assert batch["key"].tolist() == ["000000025", "000000003"]


def test_only_victims_are_stamped_and_the_same_in_every_epoch(poisoned):
    plain = Recipe(views=Views(size=16), trigger=Patch(size=4))
    unpoisoned = Pairs(poisoned.index, poisoned.urls)
    positions = np.array([4, 5])
    stamped = make_batch(poisoned.records(positions), 0, plain)["image"]
    clean = make_batch(unpoisoned.records(positions), 0, plain)["image"]
    assert np.array_equal(stamped[1], clean[1])
    assert 8 <= (stamped[0] != clean[0]).any(axis=2).sum() <= 16
    assert np.array_equal(stamped, make_batch(poisoned.records(positions), 9, plain)["image"])


@settings(max_examples=15, deadline=None)
@given(positions=st.lists(st.integers(0, 29), min_size=1, max_size=8, unique=True), epoch=st.integers(0, 3))
def test_a_sample_does_not_depend_on_its_batch(poisoned, positions, epoch):
    together = make_batch(poisoned.records(np.array(positions)), epoch, RECIPE)
    for i, position in enumerate(positions):
        alone = make_batch(poisoned.records(np.array([position])), epoch, RECIPE)
        assert all(np.array_equal(together[name][i], alone[name][0]) for name in alone)


def test_augmentation_varies_with_the_epoch_and_captions_when_asked(poisoned):
    records = poisoned.records(np.arange(30))
    first, second = (make_batch(records, epoch, RECIPE) for epoch in (0, 1))
    assert not np.array_equal(first["image_aug"], second["image_aug"])
    assert first["caption_aug"].tolist() == second["caption_aug"].tolist()
    per_epoch = Recipe(views=RECIPE.views, trigger=RECIPE.trigger, two_views=True, eda="per_epoch")
    first, second = (make_batch(records, epoch, per_epoch) for epoch in (0, 1))
    assert first["caption_aug"].tolist() != second["caption_aug"].tolist()
    assert "image_aug" not in make_batch(records, 0, Recipe(views=Views(size=16), trigger=Patch(size=4)))


def test_an_augmented_caption_is_a_function_of_seed_and_key_and_of_the_epoch_when_asked(poisoned):
    records = poisoned.records(np.array([4, 21, 9]))
    captions, keys = records["caption"].to_pylist(), records["key"].to_pylist()
    for mode, when in (("once", ()), ("per_epoch", (5,))):
        recipe = Recipe(views=RECIPE.views, trigger=RECIPE.trigger, two_views=True, seed=3, eda=mode)
        expected = [eda(caption, rng(3, "eda", *when, key)) for caption, key in zip(captions, keys)]
        assert make_batch(records, 5, recipe)["caption_aug"].tolist() == expected


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 10), world=st.sampled_from([1, 2]))
def test_resuming_at_any_step_gives_the_same_batches(poisoned, start, world):
    feeds = [LocalFeed(poisoned, RECIPE, batch_size=8, steps=9, rank=r, world=world) for r in range(world)]
    for feed in feeds:
        whole = list(feed.batches())
        assert [(b["step"], b["epoch"]) for b in whole] == [(i, i // 3) for i in range(9)]
        resumed = list(feed.batches(start))
        assert len(resumed) == max(0, 9 - start) and all(same(a, b) for a, b in zip(whole[start:], resumed))


def test_ranks_share_the_global_batch(poisoned):
    whole = next(LocalFeed(poisoned, RECIPE, batch_size=8, steps=1).batches())
    halves = [next(LocalFeed(poisoned, RECIPE, batch_size=8, steps=1, rank=r, world=2).batches()) for r in range(2)]
    for name in ("row", "key", "image", "image_aug", "caption_aug"):
        assert np.array_equal(whole[name], np.concatenate([half[name] for half in halves]))


def test_worker_processes_deliver_the_same(poisoned):
    whole = list(LocalFeed(poisoned, RECIPE, batch_size=8, steps=5).batches(1))
    workers = list(LocalFeed(poisoned, RECIPE, batch_size=8, steps=5, workers=2).batches(1))
    assert len(workers) == 4 and all(same(a, b) for a, b in zip(whole, workers))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("views", [Views(size=16), RECIPE.views])
@pytest.mark.parametrize("two_views", [True, False])
def test_a_worker_writes_pictures_to_where_the_training_process_reads(poisoned, views, two_views, cached):
    decoded = canonical_views(poisoned.records(np.arange(len(poisoned))), 16) if cached else None
    recipe = Recipe(views=views, trigger=Patch(size=4), two_views=two_views)
    feed = LocalFeed(poisoned, recipe, decoded=decoded, batch_size=8, steps=3)
    pictures = ["image", "image_aug"][: 1 + two_views]
    for count in range(3):  # none at all, one too few for two views, enough
        buffers = _Buffers(count, (8, 16, 16, 3))
        batch, found = _Steps(feed, buffers)[1, buffers.take(len(pictures))]
        assert len({*found.values()}) == len(found) == min(count, len(pictures))
        batch |= {name: array.numpy() for name, array in batch.items() if name in pictures}
        assert same(feed.batch(1), batch | {name: buffers.array(number) for name, number in found.items()})


def test_shared_memory_that_another_process_takes_first_is_done_without(poisoned, monkeypatch):
    monkeypatch.setattr(loader, "_shared_memory", lambda: 1 << 60)
    monkeypatch.setattr(loader, "_Buffers", lambda count, shape: _Buffers(count, (1 << 40,)))  # 12 TB or more
    feed, here = (LocalFeed(poisoned, RECIPE, batch_size=8, steps=2, workers=workers) for workers in (1, 0))
    assert all(same(batch, here.batch(step)) for step, batch in enumerate(feed.batches()))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("views", [Views(size=16), RECIPE.views])
def test_a_batch_of_fewer_pairs_than_a_buffer_holds_shows_no_older_pictures(poisoned, views, cached):
    decoded = canonical_views(poisoned.records(np.arange(len(poisoned))), 16) if cached else None
    feed = LocalFeed(poisoned, Recipe(views=views, trigger=Patch(size=4), two_views=True), decoded=decoded, batch_size=8, steps=3)
    for count in (9, 12, 8):  # the second batch has 1, 4 or none
        feed.order = np.arange(count)
        buffers = _Buffers(2, (8, 16, 16, 3))
        buffers.all[:] = 201
        batch, found = _Steps(feed, buffers)[1, buffers.take(2)]
        batch |= {name: array.numpy() for name, array in batch.items() if name in ("image", "image_aug")}
        assert same(feed.batch(1), batch | {name: buffers.array(number) for name, number in found.items()})


def test_a_buffer_is_used_again_only_when_nothing_shows_its_memory():
    buffers = _Buffers(2, (3, 4, 4, 3))
    assert buffers.take(3) == [1, 0] and buffers.take(1) == []
    array = buffers.array(1)
    array[:] = 7
    part, tensor = array[1:, ::2], torch.from_numpy(array)[2]
    del array
    assert buffers.take(1) == [] and part.max() == 7
    del part
    assert buffers.take(1) == [] and int(tensor.max()) == 7
    del tensor
    assert buffers.take(1) == [1]


@pytest.mark.parametrize("two_views", [True, False])
def test_batches_that_are_kept_stay_as_they_are(poisoned, two_views):
    """More than there are buffers, of which some are let go: no batch may be written over."""
    recipe = Recipe(views=Views(size=16), trigger=Patch(size=4), two_views=two_views)
    here = LocalFeed(poisoned, recipe, batch_size=4, steps=40)
    kept = []
    for step, batch in enumerate(LocalFeed(poisoned, recipe, batch_size=4, steps=40, workers=2).batches()):
        assert same(batch, here.batch(step))
        kept.append((step, batch))
        if step % 3 == 0:
            del kept[len(kept) // 2]
    assert len(kept) > 20 and all(same(batch, here.batch(step)) for step, batch in kept)


def test_a_consumer_that_keeps_four_batches_leaves_enough_buffers(poisoned, monkeypatch):
    asked, take = [], _Buffers.take
    monkeypatch.setattr(_Buffers, "take", lambda buffers, each: asked.append(take(buffers, each)) or asked[-1])
    kept = deque(LocalFeed(poisoned, RECIPE, batch_size=8, steps=20, workers=1).batches(), 4)
    assert len(kept) == 4 and [len(numbers) for numbers in asked] == [2] * 20


def broken_set(folder: Path) -> Pairs:
    urls = dataset(folder, 1, 4)
    source = Source(urls=str(folder))
    write_index([source.index_shard(0, urls[0])], folder / "index.arrow")
    good = members(0, 4)
    tar(folder / "00000.tar", [(name, b"\0" * len(data) if name == "000000002.jpg" else data) for name, data in good])
    return Pairs(folder / "index.arrow", urls)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_fails_names_its_key_and_shard(tmp_path, workers):
    feed = LocalFeed(broken_set(tmp_path), Recipe(views=Views(size=16)), batch_size=4, steps=2, workers=workers)
    with pytest.raises(InputError, match=r"sample '000000002' \(000000002\.jpg in .*00000\.tar\) is unusable") as caught:
        list(feed.batches())
    assert "Traceback" not in str(caught.value)


def test_bad_batch_sizes_and_recipes(poisoned):
    with pytest.raises(InputError, match="batch_size is 31, but the data set has 30 samples"):
        LocalFeed(poisoned, RECIPE, batch_size=31, steps=1)
    with pytest.raises(InputError, match="batch_size is 9, which 2 workers"):
        LocalFeed(poisoned, RECIPE, batch_size=9, steps=1, world=2)
    with pytest.raises(InputError, match="eda is 'twice'; accepted"):
        Recipe(views=Views(size=16), eda="twice")
    with pytest.raises(InputError):
        Recipe(views=Views(size=16), trigger=Patch(size=17))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_covers_the_set_once_whatever_world_and_batch(poisoned, world):
    clean = Pairs(poisoned.index, poisoned.urls)
    recipe = Recipe(views=Views(size=16), trigger=Patch(size=4), seed=1)
    reference = {key: view for b in eval_batches(clean, recipe, 30) for key, view in zip(b["key"], b["image_triggered"])}
    seen = []
    for rank in range(world):
        for batch in eval_batches(clean, recipe, 7, rank, world):
            seen += batch["key"].tolist()
            changed = (batch["image"] != batch["image_triggered"]).any(axis=3).sum(axis=(1, 2))
            assert ((changed >= 8) & (changed <= 16)).all() and batch["label"].dtype == np.int32
            assert all(np.array_equal(reference[k], view) for k, view in zip(batch["key"], batch["image_triggered"]))
    assert sorted(seen) == clean.keys().to_pylist()
    assert "image_triggered" not in next(eval_batches(clean, Recipe(views=Views(size=16)), 7))


def test_evaluation_draws_other_triggers_than_training(poisoned):
    recipe = Recipe(views=Views(size=16), trigger=Patch(size=4), seed=7)  # the plan's trigger seed, too
    trained = make_batch(poisoned.records(np.array([4])), 0, recipe)["image"][0]
    chosen = Pairs(poisoned.index, poisoned.urls, rows=np.array([4]))
    assert not np.array_equal(next(eval_batches(chosen, recipe, 1))["image_triggered"][0], trained)


@dataclass(frozen=True, kw_only=True)
class InPlace(Trigger):
    """Writes to the picture that it is given."""

    def stamp(self, image_HWC, rng):
        image_HWC[:4] = 255
        return image_HWC


@pytest.mark.parametrize("stamp", [
    lambda pairs, recipe, image: make_batch(pairs.records(np.array([4])), 0, recipe),
    lambda pairs, recipe, image: next(eval_batches(pairs, recipe, 4)),
    lambda pairs, recipe, image: list(sample_batches(pairs, Sample(clean=2, poisoned=0, group=2), recipe, 4)),
    lambda pairs, recipe, image: stamp_native(image, recipe.trigger, 16, rng(0)),
    lambda pairs, recipe, image: visibility(recipe.trigger, [image], ["key"], recipe.views, 0),
], ids=["training", "evaluation", "analysis", "shards", "visibility"])  # fmt: skip
def test_a_trigger_that_works_in_place_is_refused_wherever_it_stamps(poisoned, stamp):
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="InPlace.stamp works in place"):
        stamp(poisoned, Recipe(views=Views(size=16), trigger=InPlace()), image)
    assert not image.any()


@dataclass(frozen=True, kw_only=True)
class Darker(Patch):
    """A patch on a picture that is half as bright: no longer a trigger that only covers."""

    def stamp(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return super().stamp(image_HWC // 2, rng)


@pytest.mark.parametrize(
    "trigger", [*(Patch(size=5, pattern=pattern, location=place) for pattern in PATTERNS for place in LOCATIONS), Darker(size=5)]
)
def test_a_batch_is_stamped_like_one_picture_after_the_other(poisoned, trigger):
    records = poisoned.records(np.arange(3, 9))
    clean = rng(0, "views").integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    before, draws = clean.copy(), [partial(rng, 1, "first"), partial(rng, 1, "second")]
    stamped = stamped_views(trigger, records, clean, *draws)
    for i, key in enumerate(records["key"].to_pylist()):
        once = trigger.stamp(before[i], draws[0](key))
        assert np.array_equal(stamped[i], trigger.stamp(once, draws[1](key)))
    assert np.array_equal(clean, before) and not np.shares_memory(clean, stamped)
