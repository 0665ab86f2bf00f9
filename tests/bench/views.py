"""Views of 224 pixels: the whole feed against bare decoding and resizing by the same libraries, and two views against one.

The bare side has the pictures' bytes in memory and does nothing but decode them, resize the shorter side and cut out the centre. It has no
index, no keys or captions, no batches, no checks of a picture's size. Both sides run in this process, with one thread; pictures are
JPEGs of 256 to 400 pixels. Two views are those of the in-modal loss: AutoAugment of the picture and EDA of the caption beside them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.addresses import read_bytes
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, scratch

SIZE, BATCH = 224, 64
SIZES = {"full": 2_560, "quick": 256}


def indexed(folder: Path, samples: int) -> Pairs:
    """Pairs of shards written on the spot."""
    source = Source(urls=str(write_shards(folder / "data", samples, max(100, samples // 4))), verify="none")
    write_index([source.index_shard(n, url) for n, url in enumerate(source.shards())], folder / "index.arrow")
    return Pairs(folder / "index.arrow", source.shards())


def fed(pairs: Pairs, two_views: bool = False) -> dict[str, float]:
    """Samples a CPU-second of one epoch."""
    steps = len(pairs) // BATCH
    feed = LocalFeed(pairs, Recipe(views=Views(size=SIZE), two_views=two_views), batch_size=BATCH, steps=steps)
    with Meter() as used, contextlib.closing(feed.batches()) as batches:  # type: ignore[type-var]
        for _ in batches:
            pass
    return {"per_cpu": steps * BATCH / used.cpu}


def bare(pictures: list[bytes]) -> dict[str, float]:
    """Pictures a CPU-second of the libraries' own functions, called in the fastest way known to us."""
    import simplejpeg
    import torch

    with Meter() as used:
        for data in pictures:
            image_HWC = simplejpeg.decode_jpeg(data)
            height, width = image_HWC.shape[:2]
            image_1CHW = torch.from_numpy(image_HWC).as_strided((1, 3, height, width), (image_HWC.size, 1, 3 * width, 3))
            short = min(height, width)
            to = (SIZE * height // short, SIZE * width // short)
            out_1CHW = torch.nn.functional.interpolate(image_1CHW, size=to, mode="bicubic", antialias=True)
            top, left = (round((length - SIZE) / 2) for length in to)
            np.ascontiguousarray(out_1CHW[0].permute(1, 2, 0).numpy()[top : top + SIZE, left : left + SIZE])
    return {"per_cpu": len(pictures) / used.cpu}


def run(size: str, rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    with scratch() as folder:
        pairs = indexed(folder, SIZES[size])
        records = pairs.records(np.arange(len(pairs)))
        places = zip(*(records[name].to_pylist() for name in ("url", "offset", "length", "member")))
        pictures = [read_bytes(*place) for place in places]
        fed(pairs)
        one, alone = alternate(lambda: fed(pairs), lambda: bare(pictures), rounds)
        two, first = alternate(lambda: fed(pairs, two_views=True), lambda: fed(pairs), rounds)
    cost_two, cost_one = ([1e6 / rate for rate in side["per_cpu"]] for side in (two, first))
    return [
        Row(f"one view of {SIZE} px, {len(pictures):,} pictures, against decoding and resizing alone", "samples/CPU-s",
            one["per_cpu"], alone["per_cpu"], mark=0.9),
        Row("two views against one", "CPU-us/sample", cost_two, cost_one, mark=1.2, at_least=False),
    ]
