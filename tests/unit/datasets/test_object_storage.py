"""Shards in an object store that speaks S3's protocol: the same pairs and batches as from files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from datasets.errors import InputError
from datasets.feed.loader import LocalFeed, Recipe
from datasets.images.view import Views
from datasets.index.order import Windows
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from datasets.storage import Reader, _filesystem
from tests.unit.making import dataset


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[pyarrow.fs.SubTreeFileSystem]:
    """A new bucket of a server on this machine, named like the test."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    system = pyarrow.fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True)
    name = request.node.name.replace("_", "-")
    system.create_dir(name)
    try:
        yield pyarrow.fs.SubTreeFileSystem(name, system)
    finally:
        server.stop()


def put(bucket: pyarrow.fs.SubTreeFileSystem, files: list[str]) -> str:
    """The address of the folder that the files are copied to."""
    for file in files:
        with bucket.open_output_stream(f"cc/{Path(file).name}") as out:
            out.write(Path(file).read_bytes())
    return f"s3://{bucket.base_path.rstrip('/')}/cc"


def indexed(source: Source, path: Path) -> Pairs:
    write_index([source.index_shard(number, url) for number, url in enumerate(source.shards())], path)
    return Pairs(path, source.shards())


def test_batches_are_those_of_local_files(bucket: pyarrow.fs.SubTreeFileSystem, tmp_path: Path) -> None:
    files = dataset(tmp_path / "cc")
    address = put(bucket, files)
    for urls in (address, f"{address}/*.tar", address + "/{00000..00002}.tar"):
        assert Source(urls=urls).shards() == [f"{address}/0000{n}.tar" for n in range(3)]
    recipe = Recipe(views=Views(size=16), seed=1, two_views=True, order=Windows(shards=2))
    local, remote = (
        LocalFeed(indexed(Source(urls=urls), tmp_path / f"{name}.arrow"), recipe, batch_size=8, steps=6)
        for name, urls in {"local": str(tmp_path / "cc"), "remote": address}.items()
    )
    for mine, theirs in zip(remote.batches(), local.batches(), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_what_is_not_there_is_told(bucket: pyarrow.fs.SubTreeFileSystem, tmp_path: Path) -> None:
    address = put(bucket, dataset(tmp_path / "cc", shards=1))
    with pytest.raises(InputError, match=r"urls: nothing matches s3://.*/cc/\*\.csv"):
        Source(urls=f"{address}/*.csv").shards()
    with pytest.raises(InputError, match=r"urls: s3://.*/cc/00007\.tar does not exist"):
        Source(urls=f"{address}/00007.tar").shards()
    with pytest.raises(InputError, match=r"s3://.*/cc/00007\.tar does not exist"):
        Reader(f"{address}/00007.tar")


def test_a_store_that_does_not_answer_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    _filesystem.cache_clear()
    for urls in ("s3://nowhere/cc/{00000..00002}.tar", "s3://nowhere/cc"):
        with pytest.raises(InputError, match=r"urls: s3://nowhere/cc.* cannot be read: .*NETWORK_CONNECTION"):
            Source(urls=urls).shards()
