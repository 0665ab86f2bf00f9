"""Pictures from the web into shards: `00000.tar` … as img2dataset writes them, with each row's status beside it.

Downloads are not trusted: a picture's type is read from its bytes, and its pixels are counted before it is decoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval
from PIL import Image

from datasets.acquire.download import download
from datasets.acquire.ingest import pack
from datasets.acquire.manners import Failed, Manners, Queue, Turns
from datasets.acquire.urllist import Row
from datasets.captions import clean_drop_reason
from datasets.component import Component
from datasets.errors import InputError
from datasets.images.view import MAX_PIXELS, MAX_SCANS, TooLarge, scans
from datasets.index.tar import samples
from datasets.index.write import write_tar
from datasets.storage import Reader, known_sha256, sync

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("line", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
    ]
)
"""Columns of a shard's Parquet file, which has every row of the list, fetched or not. `sha256` is that of the downloaded bytes."""
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"))
_LATER = {"timeout", "reset", "refused", "unreachable", "unknown_host", "tls_error", "truncated", "empty", "bad_response", "redirect_limit"}
_WHOLE = ".whole-"
"""Prefix of a folder with a shard's complete new files."""
_DECODING = threading.Semaphore(2)  # decoded pictures are large, and threads are many


@dataclass(frozen=True, kw_only=True)
class Wanted(Component):
    """The settings that determine the shards, together with the list and the servers' answers."""

    shard_size: Annotated[int, Interval(ge=1, le=10_000)] = 1000
    """Rows of the list in a shard. A key is the shard's number in 5 digits and the row's place in the shard in 4."""
    resize: Annotated[int, Interval(ge=1, le=1 << 16)] | None = None
    """Shrink pictures to this shorter side in pixels, as JPEG of quality 95; None keeps bytes."""
    min_caption_length: Annotated[int, Interval(ge=0, le=1 << 16)] = 0
    """Shorter captions (in characters) are dropped, before anything is fetched."""
    min_size: Annotated[int, Interval(ge=1, le=1 << 16)] = 1
    """Pictures whose shorter side has fewer pixels are dropped."""
    max_aspect_ratio: Annotated[float, Interval(ge=1, le=1 << 16)] | None = None
    """Pictures whose longer side is more than this many times the shorter are dropped."""
    max_bytes: Annotated[int, Interval(ge=1, le=1 << 30)] = 16_777_216
    """Largest download in bytes (16 MiB), and largest size that it may unpack to."""
    max_pixels: Annotated[int, Interval(ge=1, le=MAX_PIXELS)] = 89_478_485
    """Pictures with more pixels are not decoded."""
    allow_private: bool = False
    """Connect to private, loopback and link-local addresses too."""


# ---- one picture ---------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture as it is written into a shard."""

    data: bytes
    extension: str
    facts: dict[str, Any]
    """width, height, original_width, original_height, sha256."""


def _kind(data: bytes) -> str:
    """The format by its first bytes, among those that browsers show and Pillow decodes without other programs; empty for any other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "")


def picture(data: bytes, wanted: Wanted) -> Picture:
    """Check, decode and pack a downloaded picture. Raises `Failed`."""
    kind = _kind(data)
    if not kind:
        raise Failed("not_an_image", f"begins with {data[:16]!r}")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:
        raise Failed("bomb", error) from None
    except Exception as error:  # Pillow's plug-ins raise anything, here and below
        raise _undecodable(error) from None
    if width * height > wanted.max_pixels:
        raise Failed("bomb", f"{width}×{height} pixels")
    if kind == "JPEG" and scans(data) > MAX_SCANS:
        raise Failed("bomb", "more than a hundred scans")
    if min(width, height) < wanted.min_size:
        raise Failed("too_small", f"{width}×{height} pixels")
    if wanted.max_aspect_ratio is not None and max(width, height) > wanted.max_aspect_ratio * min(width, height):
        raise Failed("aspect_ratio", f"{width}×{height} pixels")
    try:
        with _DECODING:
            packed = pack(data, wanted.resize)
    except TooLarge as error:
        raise Failed("bomb", error) from None
    except Exception as error:
        raise _undecodable(error) from None
    facts = {name: getattr(packed, name) for name in ("width", "height", "original_width", "original_height")}
    return Picture(packed.data, packed.extension, facts | {"sha256": hashlib.sha256(data).hexdigest()})


def _undecodable(error: Exception) -> Failed:
    cut = "truncated" in str(error).lower()
    return Failed("truncated" if cut else "undecodable", f"{type(error).__name__}: {error}")


# ---- one shard -----------------------------------------------------------------------------------------


def fetch_shard(
    number: int,
    rows: Sequence[Row],
    folder: str | Path,
    wanted: Wanted,
    manners: Manners,
    turns: Turns,
    tell: Callable[[str], None] = lambda status: None,
    again: bool = False,
) -> dict[str, Any]:
    """Fetch the rows of shard `number` and write `00000.tar` (if any succeeded), `00000.parquet` (ROW_SCHEMA, all rows) and, last,
    `00000_stats.json` into `folder`. Returns the content of the last.

    A key is the row's place in the list, so it does not depend on any server. With `again`, a finished shard keeps its pictures, and only
    rows whose failure may have passed are fetched. `tell` gets each row's status. All files are replaced together: a process that dies
    leaves the old files, or a complete set of new ones that `settle` moves into place. InputError if `folder` cannot be written.
    """
    folder, stem = Path(folder), f"{number:05d}"
    _put(folder, stem)
    if not again and (earlier := finished(folder, number)):
        return earlier  # by an attempt whose process died afterwards
    work = folder / f".work-{uuid.uuid4().hex}"
    records: list[dict[str, Any]] = []
    todo: list[int] = []
    before = _fetched(folder / f"{stem}.parquet") if again else []
    for place, row in enumerate(rows):
        if before and not may_pass_later(before[place]["status"]):
            records.append(before[place])
            continue
        known = {"key": f"{stem}{place:04d}", "line": row.line, "url": row.url, "caption": row.caption}
        records.append(dict.fromkeys(ROW_SCHEMA.names) | known)
        todo.append(place)
    queue, lock = Queue(turns), threading.Lock()
    spooled: dict[int, tuple[str, int, int]] = {}

    def one(place: int, spool: BinaryIO) -> None:
        record = records[place]
        try:
            got = _fetch_row(rows[place], wanted, manners, queue)
        except Failed as failure:
            record |= {"status": failure.status, "error_message": failure.detail or None}
        else:
            record |= {"status": "success", **got.facts}
            with lock:
                spooled[place] = got.extension, spool.seek(0, os.SEEK_END), len(got.data)
                spool.write(got.data)
        tell(record["status"])

    try:
        work.mkdir(parents=True)
        with open(work / "spool", "w+b") as spool:  # pictures arrive in any order, and may not fit into memory
            pool = ThreadPoolExecutor(min(manners.threads, max(1, len(todo))))
            try:
                done, _ = wait([pool.submit(one, place, spool) for place in todo], return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
            kept = any(record["status"] == "success" for record in before)
            tar = None
            if spooled or kept:
                old = folder / f"{stem}.tar" if kept else None
                tar = write_tar(work / f"{stem}.tar", _samples(records, spool, spooled, old))
        pq.write_table(pa.Table.from_pylist(records, ROW_SCHEMA), work / f"{stem}.parquet")
        stats = _stats(records, tar)
        with open(work / f"{stem}_stats.json", "w", encoding="utf-8") as file:
            json.dump(stats, file, indent=1, ensure_ascii=False)
        (work / "spool").unlink()
        for path in (work / f"{stem}.parquet", work / f"{stem}_stats.json", work):
            sync(path)
        os.replace(work, folder / f"{_WHOLE}{stem}")  # from here on they are the shard's files
        _put(folder, stem)
    except OSError as error:
        raise InputError(f"fetch: {folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return stats


def _put(folder: Path, stem: str) -> None:
    """Move the shard's new files into place, if there are any. The statistics go last, so the process may die at any point."""
    new, stats = folder / f"{_WHOLE}{stem}", f"{stem}_stats.json"
    if not new.is_dir():
        return
    if (new / stats).exists():
        if json.loads((new / stats).read_bytes())["tar"] is None:
            (folder / f"{stem}.tar").unlink(missing_ok=True)
        for name in (f"{stem}.tar", f"{stem}.parquet", stats):
            if (new / name).exists():
                os.replace(new / name, folder / name)
    new.rmdir()


def settle(folder: str | Path) -> None:
    """Clean up after killed processes: move a shard's new files into place if they are complete, and remove unfinished ones. Do not call it
    while shards are being fetched into the folder."""
    for new in Path(folder).glob(f"{_WHOLE}*"):
        _put(Path(folder), new.name.removeprefix(_WHOLE))
    for work in Path(folder).glob(".work-*"):
        shutil.rmtree(work, ignore_errors=True)


def _fetch_row(row: Row, wanted: Wanted, manners: Manners, queue: Queue) -> Picture:
    if row.fault:
        raise Failed("bad_line", row.fault)
    if reason := clean_drop_reason(row.caption, wanted.min_caption_length):
        raise Failed(reason)
    return picture(download(row.url, wanted, manners, queue), wanted)


def _samples(
    records: list[dict], spool: BinaryIO, spooled: dict[int, tuple[str, int, int]], old: Path | None
) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """The downloaded rows in the order of the list: new ones from the spool, earlier ones from the tar `old`."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(str(old))) if old else None
        places = {sample.key: sample for sample in samples(reader)} if reader else {}
        for place, record in enumerate(records):
            if place in spooled:
                extension, offset, size = spooled[place]
                spool.seek(offset)
                fields = {k: v for k, v in record.items() if k != "line"}
                yield record["key"], {
                    extension: spool.read(size),
                    "txt": record["caption"],
                    "json": json.dumps(fields, ensure_ascii=False),
                }
            elif reader and record["status"] == "success":
                members = places[record["key"]].members
                yield record["key"], {kind: reader.read(member.offset, member.size) for kind, member in members.items()}


def _fetched(table: Path) -> list[dict[str, Any]]:
    """The rows of a shard that was fetched before; InputError if their table is damaged."""
    try:
        return pq.read_table(table, columns=ROW_SCHEMA.names).cast(ROW_SCHEMA).to_pylist()
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        why = str(error).splitlines()[0][:200]
        raise InputError(f"fetch: {table} cannot be read ({why}): delete it and the shard's _stats.json to fetch that again.") from None


def _stats(records: list[dict], tar: dict | None) -> dict[str, Any]:
    counts = Counter(record["status"] for record in records)
    return {
        "count": len(records),
        "successes": counts["success"],
        "status_dict": dict(sorted(counts.items())),
        "bad_lines": {str(r["line"]): r["error_message"] for r in records if r["status"] == "bad_line"},
        "tar": tar,
    }


def may_pass_later(status: str) -> bool:
    """Whether the failure lies with the network or the server and may be gone another day."""
    return status in _LATER or status.startswith("http_")


def finished(folder: str | Path, number: int) -> dict[str, Any] | None:
    """The statistics of a complete shard, else None."""
    folder, stem = Path(folder), f"{number:05d}"
    try:
        stats = json.loads((folder / f"{stem}_stats.json").read_bytes())
        whole = (folder / f"{stem}.parquet").exists()
        if stats["tar"] is not None:
            tar = folder / f"{stem}.tar"
            whole = whole and tar.stat().st_size == stats["tar"]["bytes"] and known_sha256(tar) == stats["tar"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return stats if whole else None
