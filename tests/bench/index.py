"""The index of tars whose pictures are not looked at, against tarfile and json.

The peer walks the same tars with Python's tarfile, groups members by the name up to the first dot, reads each sample's txt and json, takes
caption and label from them, and makes the same columns. Both sides must find the same keys, captions, labels, offsets and lengths.
"""

from __future__ import annotations

import json
import tarfile
from typing import Any

import pyarrow as pa

from datasets.index.source import Source
from tests.bench.data import write_shards
from tests.bench.measure import Meter, Row, alternate, scratch

SIZES = {"full": 20_000, "quick": 1_000}
COLUMNS = ("key", "member", "offset", "length", "caption", "label")


def ours(source: Source, urls: list[str]) -> pa.Table:
    return pa.concat_tables([source.index_shard(number, url) for number, url in enumerate(urls)])


def theirs(urls: list[str]) -> pa.Table:
    rows: list[tuple[Any, ...]] = []
    for url in urls:
        with tarfile.open(url, "r:") as archive:
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in archive:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = member
            for key, members in samples.items():
                caption = archive.extractfile(members["txt"]).read().decode().strip()  # type: ignore[union-attr]
                fields = json.loads(archive.extractfile(members["json"]).read())  # type: ignore[union-attr]
                picture = members["jpg"]
                rows.append((key, picture.name, picture.offset_data, picture.size, caption, fields.get("label", -1)))
    return pa.table(dict(zip(COLUMNS, map(list, zip(*rows)))))


def run(size: str, rounds: int) -> list[Row]:
    samples = SIZES[size]
    with scratch() as folder:
        source = Source(urls=str(write_shards(folder / "data", samples, 1_000)), verify="none")
        urls = source.shards()
        first, second = ours(source, urls), theirs(urls)  # the files into memory
        assert all(first[name].to_pylist() == second[name].to_pylist() for name in COLUMNS), "both sides must find the same"

        def timed(work: Any, *args: Any) -> dict[str, float]:
            with Meter() as used:
                work(*args)
            return {"per_cpu": samples / used.cpu}

        mine, peer = alternate(lambda: timed(ours, source, urls), lambda: timed(theirs, urls), rounds)
    return [Row(f"index of {samples:,} samples, pictures not looked at", "samples/CPU-s", mine["per_cpu"], peer["per_cpu"], mark=4.0)]
