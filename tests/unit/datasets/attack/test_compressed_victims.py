"""Victims that pass through JPEG after stamping: the same pixels from the stream and from written shards."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.attack.poison import PLAN_SCHEMA, Poison
from datasets.attack.poisoned_shards import poison_shard
from datasets.errors import InputError
from datasets.feed.loader import LocalFeed, Recipe, eval_batches, make_batch
from datasets.images.view import Views, canonical
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.seeding import rng
from datasets.triggers.patch import Patch
from orchestrator.experiment.fingerprint import encode
from tests.unit.making import encoded, pairs, picture, tar

SIZE, VICTIMS, TRIGGER = 24, {1: "a banana.", 4: "a photo of a banana."}, Patch(size=6)
VIEWS = Views(size=SIZE)


def poison(**fields):
    return Poison(trigger=TRIGGER, target="banana", count=2, **fields)


def first(data: Pairs, **fields):
    return make_batch(data.records(np.arange(len(data))), 0, Recipe(views=VIEWS, trigger=TRIGGER, **fields))["image"]


@pytest.mark.parametrize("quality", [1, 75, 100])
def test_the_stream_and_the_written_shards_give_the_same_bytes(tmp_path, quality):
    data = pairs(tmp_path / "in", shards=1, per_shard=6, plan=VICTIMS)
    plan = pq.read_table(data.plan)
    poison_shard(data.urls[0], plan, TRIGGER, SIZE, tmp_path / "out" / "00000.tar", jpeg_quality=quality)
    source = Source(urls=str(tmp_path / "out"))
    table = source.index_shard(0, source.shards()[0])
    write_index([table], tmp_path / "index.arrow")
    written = Pairs(tmp_path / "index.arrow", source.shards())
    streamed = first(data, jpeg_quality=quality)
    assert np.array_equal(first(written), streamed)
    assert [table["caption"][row].as_py() for row in VICTIMS] == list(VICTIMS.values())
    clean, plain = first(Pairs(data.index, data.urls)), first(data)
    for row in range(6):
        if row not in VICTIMS:
            assert np.array_equal(streamed[row], clean[row])
            continue
        out = io.BytesIO()
        Image.fromarray(plain[row]).save(out, "JPEG", quality=quality)  # what the study's code does
        shown = np.asarray(Image.open(out).convert("RGB")).astype(int)
        assert np.abs(streamed[row] - shown).max() <= 2 and (streamed[row] != plain[row]).mean() > 0.1
    feed = LocalFeed(data, Recipe(views=VIEWS, trigger=TRIGGER, jpeg_quality=quality), batch_size=6, steps=1)
    (batch,) = feed.batches()
    assert np.array_equal(batch["image"][np.argsort(batch["row"])], streamed)


def test_a_victim_that_was_no_jpeg_gets_a_name_that_says_it_is(tmp_path):
    path = tar(tmp_path / "a.tar", [("k.png", encoded(picture(3), "PNG")), ("k.txt", b"a dog"), ("l.png", encoded(picture(4), "PNG"))])
    plan = pa.table([["k"], [0], ["banana"], [7], ["a dog"], ["a banana"]], schema=PLAN_SCHEMA)
    poison_shard(str(path), plan, TRIGGER, SIZE, tmp_path / "o.tar", jpeg_quality=75)
    rows = Source(urls=str(tmp_path / "o.tar")).index_shard(0, str(tmp_path / "o.tar")).to_pylist()
    assert [(row["key"], row["member"], row["caption"]) for row in rows] == [("k", "k.jpg", "a banana"), ("l", "l.png", "")]
    data = (tmp_path / "o.tar").read_bytes()[rows[0]["offset"] :][: rows[0]["length"]]
    assert Image.open(io.BytesIO(data)).format == "JPEG" and Image.open(io.BytesIO(data)).size == (SIZE, SIZE)


def test_the_trigger_at_evaluation_is_not_compressed(tmp_path):
    data = pairs(tmp_path, shards=1, per_shard=3)
    (batch,) = eval_batches(data, Recipe(views=VIEWS, trigger=TRIGGER, jpeg_quality=1), 8)
    for image, triggered, key in zip(batch["image"], batch["image_triggered"], batch["key"]):
        assert np.array_equal(triggered, TRIGGER.stamp(canonical(image, SIZE), rng(0, "eval-trigger", key)))


def test_without_compression_the_attack_is_the_one_it_was():
    assert "jpeg_quality" not in encode(poison()) and encode(poison(jpeg_quality=75))["jpeg_quality"] == 75
    for quality in (0, 101):
        with pytest.raises(InputError, match="Poison.jpeg_quality is"):
            poison(jpeg_quality=quality)
