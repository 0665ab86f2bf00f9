"""Views of 224 pixels out of shards: ours against open_clip's own webdataset loader.

Both read the same tars with one worker process of one thread, decode, resize the shorter side (bicubic, antialiased), cut the
centre out and batch; the consumer throws batches away. open_clip's loader gets its *evaluation* transform, so that it does no
more than that, plus its own conversion to normalised floats (ours leaves that to the device); a second row takes even that
away. No side tokenises.
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, ray_session, scratch

SIZE, BATCH, WARM = 224, 64, 4
SIZES = {"full": 6_400, "quick": 512}


def drain(batches: Iterator[Any], count: int) -> dict[str, float]:
    """Take `count` batches. Samples a second, and a CPU-second of all processes, from the fourth on, when workers are up and
    queues full; `with_start` from the first request on."""
    began = time.monotonic()
    for _ in range(WARM):
        next(batches)
    with Meter() as used:
        for _ in range(count - WARM):
            next(batches)
    samples = (count - WARM) * BATCH
    return {"rate": samples / used.wall, "per_cpu": samples / used.cpu, "with_start": count * BATCH / (time.monotonic() - began)}


def ours(pairs: Pairs, count: int, workers: int) -> dict[str, float]:
    feed = LocalFeed(pairs, Recipe(views=Views(size=SIZE)), batch_size=BATCH, steps=count, workers=workers)
    with contextlib.closing(feed.batches()) as batches:
        return drain(batches, count)


def streamed(pairs: Pairs, count: int) -> dict[str, float]:
    from orchestrator.cluster.streaming import RayFeed

    with contextlib.closing(RayFeed(pairs, Recipe(views=Views(size=SIZE)), batch_size=BATCH, steps=count).batches()) as batches:
        return drain(batches, count)


def theirs(shards: Path, samples: int, count: int, floats: bool = True) -> dict[str, float]:
    """open_clip_train.data.get_wds_dataset as its training script calls it: shard and sample shuffling, one worker."""
    from importlib.metadata import version

    import open_clip

    if (found := tuple(int(part) for part in version("webdataset").split(".")[:3])) > (0, 2, 86):
        raise ImportError(f"open_clip's loader needs webdataset <= 0.2.86, not {'.'.join(map(str, found))}")
    from open_clip_train.data import get_wds_dataset
    from torchvision import transforms

    transform = open_clip.image_transform(SIZE, is_train=False)
    if not floats:
        transform = transforms.Compose([*transform.transforms[:-2], transforms.PILToTensor()])
    last = len(list(shards.glob("*.tar"))) - 1
    args = Namespace(
        train_data=f"{shards}/{{00000..{last:05d}}}.tar", train_num_samples=samples, train_data_upsampling_factors=None,
        dataset_resampled=False, seed=0, batch_size=BATCH, workers=1, world_size=1, rank=0,
    )
    loader = get_wds_dataset(args, transform, is_train=True, tokenizer=lambda text: [text]).dataloader
    return drain(iter(loader), count)


def run(size: str, rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    samples = SIZES[size]
    count = samples // BATCH
    with scratch() as folder:
        shards = write_shards(folder / "data", samples, max(200, samples // 8))
        source = Source(urls=str(shards), verify="none")
        write_index([source.index_shard(n, url) for n, url in enumerate(source.shards())], folder / "index.arrow")
        pairs = Pairs(folder / "index.arrow", source.shards())
        ours(pairs, count, 0)  # the files into memory
        one, peer = alternate(lambda: ours(pairs, count, 1), lambda: theirs(shards, samples, count), rounds)
        none, bare = alternate(lambda: ours(pairs, count, 0), lambda: theirs(shards, samples, count, floats=False), rounds)
        with ray_session():
            streamed(pairs, max(8, count // 8))  # its worker starts
            ray_feed = [streamed(pairs, count) for _ in range(rounds)]
    ray_rate, ray_cpu = ([run[name] for run in ray_feed] for name in ("rate", "per_cpu"))
    return [
        Row(f"feed of {SIZE}-px views, one worker, {samples:,} pictures", "samples/s", one["rate"], peer["rate"],
            note="open_clip's loader with its evaluation transform; start of the workers left out",
            detail={"ours": one, "theirs": peer}),
        Row("the same, of all processes", "samples/CPU-s", one["per_cpu"], peer["per_cpu"], mark=4.5),
        Row("the same, start of the workers included", "samples/s", one["with_start"], peer["with_start"]),
        Row("one worker, open_clip's without floats", "samples/s", one["rate"], bare["rate"]),
        Row("no worker (a thread beside the training)", "samples/s", none["rate"], peer["rate"]),
        Row("feed = ray, one decoding task", "samples/s", ray_rate, peer["rate"]),
        Row("feed = ray, of all processes and Ray's services", "samples/CPU-s", ray_cpu, peer["per_cpu"]),
    ]
