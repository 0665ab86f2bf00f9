"""Fetching a list into shards: `cleansweep fetch` against plain threads that download, decode, shrink and pack.

The peer is `requests` in as many threads, Pillow and tarfile in one process: no Ray, no limits, no check of an address, nothing
that could be continued. The server runs in a process of its own, whose CPU is not counted.
"""

from __future__ import annotations

import io
import multiprocessing
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import requests
from PIL import Image

from datasets.acquire.fetch import Wanted
from datasets.acquire.manners import Manners
from datasets.acquire.urllist import UrlList
from orchestrator.commands.fetch import fetch_list
from tests.bench.data import photo
from tests.bench.measure import Meter, Row, alternate, ray_session, scratch

SIZES = {"full": 2_000, "quick": 100}
SHORTER, THREADS, HOSTS = 224, 32, 40


def serve(ready: Any) -> None:
    from tests import misbehaving

    misbehaving.BODIES.update({f"{seed}.jpg": photo(seed) for seed in range(50)})
    with misbehaving.serving() as server:
        ready.put(server.url(""))
        time.sleep(3600)


def peer(urls: list[str], out: Path) -> None:
    def one(url: str) -> bytes:
        data = requests.get(url, timeout=10).content
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
        if min(picture.size) > SHORTER:
            scale = SHORTER / min(picture.size)
            picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
            packed = io.BytesIO()
            picture.save(packed, "JPEG", quality=95)
            data = packed.getvalue()
        return data

    out.mkdir()
    with ThreadPoolExecutor(THREADS) as pool, tarfile.open(out / "00000.tar", "w") as archive:
        for number, data in enumerate(pool.map(one, urls)):
            for kind, content in (("jpg", data), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"{number:09d}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def run(size: str, rounds: int) -> list[Row]:
    rows, context = SIZES[size], multiprocessing.get_context("spawn")
    ready = context.Queue()
    server = context.Process(target=serve, args=(ready,), daemon=True)
    server.start()
    try:
        base = ready.get()
        with scratch() as folder, ray_session():
            hosts = [base.replace("127.", f"0x{'0' * n}7f.") for n in range(HOSTS)]  # all of them 127.0.0.1
            addresses = [f"{hosts[i % HOSTS]}{i % 50}.jpg?{i}" for i in range(rows)]
            (folder / "list.tsv").write_text("".join(f"a picture of {i}\t{url}\n" for i, url in enumerate(addresses)))
            wanted = Wanted(allow_private=True, resize=SHORTER, shard_size=max(50, rows // 4))
            manners = Manners(threads=THREADS // 2, host_rate=0, host_connections=0)
            urls = UrlList(folder / "list.tsv", block_rows=wanted.shard_size)

            def side(work: Any) -> dict[str, float]:
                shutil.rmtree(folder / "out", ignore_errors=True)
                before = sum(psutil.Process(server.pid).cpu_times()[:2])
                with Meter() as used:
                    work()
                cpu = used.cpu - (sum(psutil.Process(server.pid).cpu_times()[:2]) - before)
                return {"per_cpu": rows / cpu, "per_second": rows / used.wall, "cpu": cpu, "wall": used.wall}

            def fetch() -> None:
                found = fetch_list(urls, folder / "out", wanted, manners, tasks=2)
                assert found["status"] == {"success": rows}, found

            side(fetch)  # the workers start and import outside the clock
            ours, theirs = alternate(lambda: side(fetch), lambda: side(lambda: peer(addresses, folder / "out")), rounds)
    finally:
        server.terminate()
    what = f"pictures fetched and shrunk to {SHORTER}, {rows:,} rows"
    return [
        Row(what, "pictures/CPU-s", ours["per_cpu"], theirs["per_cpu"], detail={"ours": ours, "theirs": theirs},
            note="CPU of driver, workers and Ray's services; the server's is not counted, but it has the same cores"),
        Row("the same, by the clock", "pictures/s", ours["per_second"], theirs["per_second"]),
    ]
