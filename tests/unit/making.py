"""Small real shards for the tests of reading and writing, and stages made of a few files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from PIL import Image

from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from orchestrator.stages.base import At, Stage, ensure
from orchestrator.store import Artefact, Store


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours, so that JPEG keeps them well."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(40, 215, (3, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image_HWC: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image_HWC).convert(mode).save(out, kind, **options)
    return out.getvalue()


def tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar by the standard library, as a peer of our own reading."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "someone"
            archive.addfile(info, io.BytesIO(data))
    return path


def members(first: int, count: int, **kinds: bytes) -> list[tuple[str, bytes]]:
    """jpg, txt and json of samples `first` …, in img2dataset's layout."""
    out = []
    for i in range(first, first + count):
        caption = f"a picture of thing number {i}"
        out.append((f"{i:09d}.jpg", encoded(picture(i), quality=80)))
        out.append((f"{i:09d}.txt", caption.encode()))
        out.append((f"{i:09d}.json", f'{{"caption": "{caption}", "key": "{i:09d}", "url": "x/{i}"}}'.encode()))
        out += [(f"{i:09d}.{kind}", data) for kind, data in kinds.items()]
    return out


def dataset(folder: Path, shards: int = 3, per_shard: int = 10) -> list[str]:
    """Shards 00000.tar … with samples numbered through."""
    for s in range(shards):
        tar(folder / f"{s:05d}.tar", members(s * per_shard, per_shard))
    return Source(urls=str(folder)).shards()


def pairs(folder: Path, shards: int = 3, per_shard: int = 10, plan: Mapping[int, str] | None = None) -> Pairs:
    """The pairs of a new data set; `plan` gives rows to poison and their captions."""
    import pyarrow.parquet as pq

    from datasets.attack.poison import PLAN_SCHEMA

    urls = dataset(folder, shards, per_shard)
    source = Source(urls=str(folder))
    index = folder / "index.arrow"
    tables = [source.index_shard(n, url) for n, url in enumerate(urls)]
    write_index(tables, index)
    if not plan:
        return Pairs(index, urls)
    rows = sorted(plan)
    table = pa.concat_tables(tables)
    keys, before = (table[name].take(rows).to_pylist() for name in ("key", "caption"))
    columns = [keys, rows, ["banana"] * len(rows), [7] * len(rows), before, [plan[row] for row in rows]]
    pq.write_table(pa.table([pa.array(c) for c in columns], schema=PLAN_SCHEMA), folder / "plan.parquet")
    return Pairs(index, urls, plan=folder / "plan.parquet")


def index(urls: Path | str | tuple[str, ...], **fields: Any) -> pa.Table:
    """The index of these shards; `fields`: those of a `Source`."""
    return Source(urls=urls if isinstance(urls, tuple) else str(urls), **fields).index()[0]


def rows(urls: Path | str | tuple[str, ...], *columns: str, **fields: Any) -> list[tuple]:
    """The rows of the same, by default their keys, captions and drop reasons."""
    table = index(urls, **fields)
    return list(zip(*(table[name].to_pylist() for name in columns or ("key", "caption", "drop"))))


def make_of(store: Store, stage: Stage, write: Callable[[Path], object] = lambda folder: None) -> Artefact:
    """The stage's artefact; where there is none it is made of what `write` puts into the folder, and of nothing else."""
    own = type(stage)
    with patch.object(own, "make", lambda self, at: write(at.folder)), patch.object(own, "needs", ()), patch.object(own, "accept"):
        return ensure(stage, At(store=store))
