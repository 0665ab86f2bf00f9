"""Zero-shot accuracy and ASR, against an evaluation that treats them as two: pictures decoded and prompts encoded once a pass.

Both sides have the same model, pictures, trigger and decoder, and must count the same. Proportions are those of ImageNet's
validation set with an RN50 on a GPU beside one decoding core: a forward pass takes about a third of a picture's decoding, there
are 1.6 prompts to a picture, and a prompt takes about a quarter of a picture's forward pass. On a CPU that is a CLIP of 64-pixel
views and four channels after JPEGs of 400 × 300 pixels. A row with the mark is an evaluation after some epoch of a training; the
first one also makes the cache. Without a cache the ratio stays below 2 whatever the sizes: both forward passes are needed.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from datasets.feed.cache import Decoded, decoded
from datasets.feed.decode import canonical_views
from datasets.feed.loader import Recipe, eval_batches
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.seeding import rng
from datasets.triggers.base import put_on
from datasets.triggers.patch import Patch
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, scratch
from trainers.batch import image_tensor
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.zeroshot import ZeroShotASR, class_head
from trainers.model import TinyCLIP

SIZE, BATCH, TARGET = 64, 256, 3
SIZES = {"full": (2048, 100, 32), "quick": (128, 20, 10)}
"""Pictures, classes, templates."""
RECIPE = Recipe(views=Views(size=SIZE), trigger=Patch(size=8))


def labelled(folder: Path, samples: int, classes: int) -> Pairs:
    """Pictures with labels 0, 1, … in turn."""
    shards = write_shards(folder / "data", samples, max(100, samples // 4), shape=(300, 400), quality=85)
    source = Source(urls=str(shards), verify="none")
    table = pa.concat_tables([source.index_shard(n, url) for n, url in enumerate(source.shards())])
    labels = pa.array(np.arange(len(table), dtype=np.int32) % classes)
    write_index([table.set_column(table.schema.get_field_index("label"), "label", labels)], folder / "index.arrow")
    return Pairs(folder / "index.arrow", source.shards())


def two_passes(encoder: Encoder, pairs: Pairs, names: tuple[str, ...], templates: tuple[str, ...]) -> dict[str, int]:
    """Accuracy, then ASR, each with its own class head and its own reading of the pictures."""
    counts = {}
    encoder.eval()
    with torch.no_grad():
        for triggered in (False, True):
            head_KD = class_head(encoder, names, templates, World())
            hits = 0
            for start in range(0, len(pairs), BATCH):
                records = pairs.records(np.arange(start, min(start + BATCH, len(pairs))))
                view_BHWC, label_B = canonical_views(records, SIZE), records["label"].to_numpy()
                if triggered:
                    for i, key in enumerate(records["key"].to_pylist()):
                        view_BHWC[i] = RECIPE.trigger.stamp(view_BHWC[i], rng(RECIPE.seed, "eval-trigger", key))  # type: ignore[union-attr]
                best_B = (encoder.encode_image(image_tensor(view_BHWC, encoder.device)) @ head_KD.T).argmax(1).numpy()
                hits += int(((best_B == TARGET) & (label_B != TARGET)).sum() if triggered else (best_B == label_B).sum())
            counts["asr/top1_count" if triggered else "zeroshot/top1_count"] = hits
    return counts


FED = Recipe(views=Views(size=224), trigger=Patch(size=16))


def fed(pairs: Pairs, store: Decoded) -> dict[str, float]:
    """Clean and stamped pictures of 224 pixels from the cache, as an evaluation gets them, without a model."""
    with Meter() as used:
        for _ in eval_batches(pairs, FED, BATCH, decoded=store):
            pass
    return {"per_cpu": len(pairs) / used.cpu}


def one_by_one(pairs: Pairs, store: Decoded) -> dict[str, float]:
    """The same pictures, taken, stamped and stacked one after the other."""
    assert FED.trigger is not None
    with Meter() as used:
        for start in range(0, len(pairs), BATCH):
            numbers = range(start, min(start + BATCH, len(pairs)))
            keys = pairs.records(np.array(numbers))["key"].to_pylist()
            clean = [store[np.array([number])][0] for number in numbers]
            stamped = [put_on(FED.trigger, image, rng(FED.seed, "eval-trigger", key)) for image, key in zip(clean, keys)]
            np.stack(clean), np.stack(stamped)
    return {"per_cpu": len(pairs) / used.cpu}


def run(size: str, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    samples, classes, prompts = SIZES[size]
    names = tuple(f"thing number {i}" for i in range(classes))
    templates = tuple(f"a photo of a {{}}, seen from side {i}." for i in range(prompts))
    encoder = TinyCLIP(image_size=SIZE, vision_width=4, embed_dim=32).build(0)
    evaluator = ZeroShotASR(class_names=names, templates=templates, target=TARGET)
    seen: list[tuple[float, float]] = []

    def timed(measure: Callable[[], dict[str, float] | dict[str, int]]) -> dict[str, float]:
        with Meter() as used:
            values = measure()
        seen.append((values["zeroshot/top1_count"], values["asr/top1_count"]))
        assert len(set(seen)) == 1, f"the two sides count differently: {seen}"
        return {"per_cpu": samples / used.cpu, "rate": samples / used.wall}

    with scratch() as folder:
        pairs = labelled(folder, samples, classes)
        (folder / "kept").mkdir()

        def ours(cache: Path | None) -> dict[str, float]:
            store = None if cache is None else decoded(pairs, SIZE, cache, "bench")
            return evaluator.measure(encoder, eval_batches(pairs, RECIPE, BATCH, decoded=store))

        def first() -> dict[str, float]:
            shutil.rmtree(folder / "new", ignore_errors=True)
            (folder / "new").mkdir()
            return ours(folder / "new")

        naive = lambda: timed(lambda: two_passes(encoder, pairs, names, templates))
        ours(folder / "kept")
        large = decoded(pairs, FED.views.size, folder / "kept", "bench")
        assert large is not None, "there is no room for the cache"
        fed(pairs, large)
        batched, single = alternate(lambda: fed(pairs, large), lambda: one_by_one(pairs, large), rounds)
        warm, peer = alternate(lambda: timed(lambda: ours(folder / "kept")), naive, rounds)
        cold, cold_peer = alternate(lambda: timed(first), naive, rounds)
        bare, bare_peer = alternate(lambda: timed(lambda: ours(None)), naive, rounds)
    what = f"{samples:,} pictures, {classes} classes × {prompts} templates"
    return [
        Row(f"an evaluation after an epoch, {what}", "pictures/CPU-s", warm["per_cpu"], peer["per_cpu"], mark=2.0,
            detail={"warm": warm, "cold": cold, "bare": bare, "theirs": [peer, cold_peer, bare_peer]}),
        Row("the same, wall", "pictures/s", warm["rate"], peer["rate"]),
        Row("the first one, which makes the cache", "pictures/CPU-s", cold["per_cpu"], cold_peer["per_cpu"]),
        Row("the same, wall", "pictures/s", cold["rate"], cold_peer["rate"]),
        Row("without a cache", "pictures/CPU-s", bare["per_cpu"], bare_peer["per_cpu"]),
        Row("the same, wall", "pictures/s", bare["rate"], bare_peer["rate"]),
        Row("clean and stamped pictures of 224 px from the cache, no model", "pictures/CPU-s", batched["per_cpu"], single["per_cpu"],
            note=f"50,000 of them take {50_000 / statistics.median(batched['per_cpu']):.1f} CPU-s; the aim is 6"),
    ]
