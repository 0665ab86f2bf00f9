"""Pictures made on the spot, about as large and as hard to decode as photographs of the web."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from datasets.index.write import write_tar

DISTINCT = 400
"""Different pictures in a set; more samples repeat them under other keys and captions."""


def photo(seed: int, shape: tuple[int, int] | None = None, quality: int = 90) -> bytes:
    """A JPEG of 256 to 400 pixels a side (or of `shape`) and some 30 KB: noise of several scales, and shapes with edges."""
    draw = np.random.default_rng(seed)
    height, width = shape or (int(side) for side in draw.integers(256, 401, 2))
    picture = np.full((height, width, 3), 118.0, np.float32)
    for cells, strength in ((3, 70), (12, 38), (48, 22), (128, 14)):
        grid = draw.normal(0, strength, (cells, cells, 3)).clip(-127, 127) + 128
        layer = Image.fromarray(grid.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(layer, np.float32) - 128
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = draw.integers(0, width), draw.integers(0, height)
        box = (int(x), int(y), int(x + draw.integers(20, 140)), int(y + draw.integers(20, 140)))
        (pen.ellipse if draw.random() < 0.5 else pen.rectangle)(box, fill=tuple(int(c) for c in draw.integers(0, 256, 3)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def write_shards(
    folder: Path, samples: int, per_shard: int = 1000, shape: tuple[int, int] | None = None, quality: int = 90
) -> Path:
    """Tars in img2dataset's layout (jpg, txt, json): keys of 5 digits for the shard and 4 for the sample. Returns the folder."""
    photos = [photo(seed, shape, quality) for seed in range(min(DISTINCT, samples))]
    folder.mkdir(parents=True)
    for shard in range(-(-samples // per_shard)):
        numbers = range(shard * per_shard, min(samples, (shard + 1) * per_shard))
        write_tar(folder / f"{shard:05d}.tar", _samples(photos, shard, numbers))
    return folder


def _samples(photos: list[bytes], shard: int, numbers: range) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    for place, number in enumerate(numbers):
        key, caption = f"{shard:05d}{place:04d}", f"a picture of thing number {number} in a bright street"
        meta = json.dumps({"caption": caption, "key": key, "url": f"https://example.com/{number}.jpg", "status": "success"})
        yield key, {"jpg": photos[number % len(photos)], "txt": caption, "json": meta}
