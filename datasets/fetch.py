"""Pictures from the web into shards: `00000.tar` … as img2dataset writes them, each row's fate beside it.

Nothing that a list or a server says is believed: addresses are checked where the connection goes to, lengths while bytes
arrive, types in the bytes, numbers of pixels before decoding, and every attempt has a deadline that no trickle prolongs.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import hashlib
import http.client
import io
import ipaddress
import itertools
import json
import logging
import os
import shutil
import socket
import ssl
import threading
import time
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.parquet as pq
import urllib3.connection
import urllib3.exceptions
from PIL import Image
from urllib3.util import Url, parse_url

from datasets.captions import clean_drop_reason
from datasets.component import Component
from datasets.errors import InputError
from datasets.ingest import pack
from datasets.seeding import rng
from datasets.shards import write_tar
from datasets.storage import Reader
from datasets.tar import samples
from datasets.urllist import Row
from datasets.view import MAX_PIXELS

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
"""Of a shard's Parquet file: every row of the list, fetched or not. `sha256` is of the bytes that were downloaded."""
ACCEPT = "image/jpeg, image/png, image/webp, image/gif;q=0.8, image/*;q=0.5, */*;q=0.1"
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"))
_LATER = {"timeout", "reset", "refused", "unreachable", "unknown_host", "tls_error", "truncated", "empty", "bad_response", "redirect_limit"}
_MAX_SCANS = 100
_MAX_ADDRESSES = 4
_DECODING = threading.Semaphore(2)  # decoded pictures are large, and threads are many
logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every server's odd headers


@dataclass(frozen=True, kw_only=True)
class Wanted(Component):
    """What determines the shards, with the list and what the servers answer."""

    shard_size: int = 1000
    """Rows of the list in a shard; a key is the shard in 5 digits and the row's place in it in 4."""
    resize: int | None = None
    """Shrink pictures to this shorter side in pixels, as JPEG of quality 95; None keeps bytes."""
    min_caption_length: int = 0
    """Shorter captions (in characters) are dropped, before anything is fetched."""
    min_size: int = 1
    """Pictures whose shorter side has fewer pixels are dropped."""
    max_aspect_ratio: float | None = None
    """Pictures whose longer side is more than this many times the shorter are dropped."""
    max_bytes: int = 16 << 20
    """Of a download, and of what it unpacks to."""
    max_pixels: int = MAX_PIXELS
    """Pictures with more are not decoded."""
    allow_private: bool = False
    """Connect to private, loopback and link-local addresses too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, shard_size=(1, 10_000), resize=(1, 1 << 16), min_caption_length=(0, 1 << 16), min_size=(1, 1 << 16))
        _check_range(self, max_aspect_ratio=(1, 1 << 16), max_bytes=(1, 1 << 30), max_pixels=(1, MAX_PIXELS))


@dataclass(frozen=True, kw_only=True)
class Manners(Component):
    """How the servers are asked; may change while a list is being fetched."""

    threads: int = 32
    """Downloads at a time in a task."""
    rate: float = 0.0
    """Requests a second, of all tasks together; 0: no limit."""
    host_rate: float = 10.0
    """Requests a second to one host, of all tasks together; 0: no limit."""
    host_connections: int = 4
    """Requests at a time to one host, of all tasks together; 0: no limit."""
    timeout: float = 10.0
    """Seconds to connect, and to wait for the next bytes."""
    deadline: float = 30.0
    """Seconds for one attempt at a picture, with its redirects, however busily its server sends."""
    retries: int = 2
    """Further attempts after what may pass: timeouts, 5xx, 429, 408, connections reset or cut."""
    backoff: float = 1.0
    """Seconds before the second attempt; doubled for each further one, and up to half more by chance."""
    max_wait: float = 60.0
    """The longest Retry-After, in seconds, that is waited for."""
    redirects: int = 5
    """Redirects followed for a picture."""
    user_agent: str = "Mozilla/5.0 (compatible; cleansweep)"
    """What servers are told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self, threads=(1, 1024), rate=(0, 1e6), host_rate=(0, 1e6), host_connections=(0, 1024), retries=(0, 20))
        _check_range(self, timeout=(0.01, 3600), deadline=(0.01, 3600), backoff=(0, 3600), max_wait=(0, 86400), redirects=(0, 30))
        if not self.user_agent.isascii() or not self.user_agent.isprintable():
            raise InputError("fetch: user_agent holds other characters than printable ASCII.")


def _check_range(options: Component, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"fetch: {name} is {value}; accepted are {low} … {high}.")


class Failed(Exception):
    """A picture cannot be had."""

    def __init__(self, status: str, detail: object = "", *, may_pass: bool = False, wait_s: float | None = None) -> None:
        super().__init__(status)
        self.status, self.detail, self.may_pass, self.wait_s = status, str(detail)[:300], may_pass, wait_s


# ---- taking turns --------------------------------------------------------------------------------------


class Turns(Protocol):
    """Who may send a request now; one for all tasks."""

    def enter(self, host: str) -> tuple[bool, float]:
        """(True, s): it is your turn in s seconds; (False, s): ask again then."""

    def leave(self, host: str) -> None:
        """The request is over."""

    def pause(self, host: str, seconds: float) -> None:
        """The host asked for quiet."""


class Pacer:
    """Turns by rate and number. One that is not given back (its process died) expires after `lease_s` seconds."""

    def __init__(self, manners: Manners, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 1 / manners.rate if manners.rate else 0.0
        self._host_gap = 1 / manners.host_rate if manners.host_rate else 0.0
        self._at_once = manners.host_connections or 1 << 30
        self._lease_s, self._clock, self._lock = manners.deadline + 60, clock, threading.Lock()
        self._next, self._next_of = 0.0, dict[str, float]()
        self._open: defaultdict[str, list[float]] = defaultdict(list)

    def enter(self, host: str) -> tuple[bool, float]:
        with self._lock:
            now = self._clock()
            leases = [end for end in self._open[host] if end > now]
            self._open[host] = leases
            if self._next_of.get(host, 0.0) > now:
                return False, self._next_of[host] - now
            if len(leases) >= self._at_once:
                return False, 0.05
            start = max(now, self._next)
            self._next, self._next_of[host] = start + self._gap, start + self._host_gap
            leases.append(start + self._lease_s)
            if len(self._next_of) > 100_000:  # hosts of long ago
                self._next_of = {name: at for name, at in self._next_of.items() if at > now}
                self._open = defaultdict(list, {name: ends for name, ends in self._open.items() if ends})
            return True, start - now

    def leave(self, host: str) -> None:
        with self._lock:
            leases = self._open.get(host)
            if leases:
                leases.pop(0)
            if not leases:
                self._open.pop(host, None)

    def pause(self, host: str, seconds: float) -> None:
        with self._lock:
            self._next_of[host] = max(self._next_of.get(host, 0.0), self._clock() + seconds)


class _Queue:
    """The turns of one task: of its threads that want the same host, one asks at a time."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self._guard = turns, threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextlib.contextmanager
    def turn(self, host: str) -> Iterator[None]:
        with self._guard:
            lock = self._locks[host]
        with lock:
            granted = False
            while not granted:
                granted, seconds = self.turns.enter(host)
                time.sleep(seconds)
        try:
            yield
        finally:
            self.turns.leave(host)


# ---- one request ---------------------------------------------------------------------------------------


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also when it wraps another."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in ipaddress.IPv6Network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None or ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast


class _Guarded:
    """What both kinds of connection share: the address is checked and then connected to, so that a second look-up cannot
    give another one; and at the deadline the connection is cut, in the middle of whatever goes on."""

    host: str
    port: int
    timeout: float
    allow_private: bool
    ends: float
    expired = False
    _timer: threading.Timer | None = None

    def _new_conn(self) -> socket.socket:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise Failed("unknown_host", f"{self.host}: {error}", may_pass=passing) from None
        allowed = [entry for entry in found if self.allow_private or is_public(str(entry[4][0]))]
        if not allowed:
            raise Failed("blocked_address", f"{self.host} is {found[0][4][0]}")
        last: OSError = TimeoutError()
        for family, kind, protocol, _, address in allowed[:_MAX_ADDRESSES]:
            left = self.ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(min(self.timeout, left))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
            except OSError as error:
                sock.close()
                last = error
                continue
            self._double = sock.dup()  # TLS takes the socket itself over
            self._timer = threading.Timer(max(0.0, self.ends - time.monotonic()), self._cut)
            self._timer.daemon = True
            self._timer.start()
            return sock
        raise last

    def _cut(self) -> None:
        self.expired = True
        with contextlib.suppress(OSError):
            self._double.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._double.close()


class _Plain(_Guarded, urllib3.connection.HTTPConnection):  # type: ignore[misc]
    pass


class _Secure(_Guarded, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Certificates and host names are verified, against the system's authorities (or SSL_CERT_FILE's)."""
    return ssl.create_default_context()


class _Answer(NamedTuple):
    status: int
    location: str
    retry_after: str
    body: bytes


def _address(url: str) -> Url:
    try:
        parsed = parse_url(url)
    except (urllib3.exceptions.LocationParseError, ValueError) as error:
        raise Failed("bad_url", error) from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Failed("bad_url", f"{parsed.scheme or 'no scheme'}: only http and https are fetched" if parsed.host else "no host")
    return parsed


def _ask(url: Url, wanted: Wanted, manners: Manners, ends: float) -> _Answer:
    """One GET, on a connection of its own, without cookies, names or passwords."""
    options: dict[str, Any] = {"timeout": manners.timeout}
    if url.scheme == "https":
        options["ssl_context"] = _tls()
    connection = (_Secure if url.scheme == "https" else _Plain)((url.host or "").strip("[]"), url.port, **options)
    connection.allow_private, connection.ends = wanted.allow_private, ends
    headers = {"User-Agent": manners.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity", "Connection": "close"}
    try:
        connection.request("GET", url.request_uri, headers=headers, preload_content=False, decode_content=False)
        response = connection.getresponse()
        location, retry_after = (response.headers.get(name, "") for name in ("Location", "Retry-After"))
        if response.status == 200:
            robots = " ".join(response.headers.getlist("X-Robots-Tag")).lower().replace(",", " ").split()
            if {"noai", "noimageai"} & set(robots):
                raise Failed("opted_out", "X-Robots-Tag")
        body = _body(response, wanted.max_bytes) if response.status == 200 else b""
        if connection.expired:
            raise TimeoutError
        return _Answer(response.status, location, retry_after, body)
    except Exception as error:  # a server may provoke anything; it costs its own picture, not the run
        if isinstance(error, Failed) and not connection.expired:
            raise
        raise _failure(error, connection.expired) from None
    finally:
        connection.release()
        connection.close()


def _body(response: Any, limit: int) -> bytes:
    """The body, unpacked if it was packed unasked, of at most `limit` bytes."""
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise Failed("too_large", f"{announced} bytes announced")
    parts, size = [], 0
    while part := response.read(1 << 16, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise Failed("too_large", f"more than {limit} bytes")
    data = b"".join(parts)
    if response.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip", "deflate"):
        unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)
        try:
            plain = unpacker.decompress(data, limit + 1)
        except zlib.error:
            return data  # not packed, whatever the header says
        if len(plain) > limit:
            raise Failed("too_large", f"unpacks to more than {limit} bytes")
        if not unpacker.eof:
            raise Failed("truncated", "the packed body ends early", may_pass=True)
        return plain
    return data


def _failure(error: BaseException, expired: bool) -> Failed:
    """What became of a request, from what was raised and what that carries."""
    chain: list[BaseException] = []
    left: list[Any] = [error]
    while left:
        one = left.pop(0)
        if isinstance(one, BaseException) and one not in chain:
            chain.append(one)
            left += [*one.args, one.__cause__, one.__context__]

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    detail = f"{type(error).__name__}: {error}"
    if expired or has(TimeoutError, urllib3.exceptions.TimeoutError):
        return Failed("timeout", may_pass=True)
    if has(http.client.IncompleteRead):
        return Failed("truncated", "the connection ended before the body", may_pass=True)
    if has(ssl.SSLError):
        return Failed("tls_error", detail)
    if has(ConnectionRefusedError):
        return Failed("refused")
    if has(ConnectionError):
        return Failed("reset", may_pass=True)
    if isinstance(error, OSError) and not has(http.client.HTTPException):
        return Failed("unreachable", detail)
    return Failed("bad_response", detail)


def _follow(address: str, wanted: Wanted, manners: Manners, queue: _Queue) -> bytes:
    """One attempt at a picture, through its redirects."""
    left = manners.deadline
    for _ in range(manners.redirects + 1):
        url = _address(address)
        host = url.host or ""
        with queue.turn(host):
            started = time.monotonic()
            answer = _ask(url, wanted, manners, started + left)
            left -= time.monotonic() - started  # waiting for one's turn does not count
        if answer.status == 200:
            if not answer.body:
                raise Failed("empty", may_pass=False)
            return answer.body
        if answer.status in (301, 302, 303, 307, 308) and answer.location:
            location = answer.location.encode("latin-1", "replace").decode("utf-8", "replace")
            try:
                address = urljoin(url.url, location)
            except ValueError as error:
                raise Failed("bad_url", f"redirected to {location!r}: {error}") from None
            continue
        passing = answer.status in (408, 425, 429) or answer.status >= 500
        seconds = _seconds(answer.retry_after) if answer.status in (429, 503) else None
        if seconds is not None and passing:
            queue.turns.pause(host, min(seconds, manners.max_wait))
            passing = seconds <= manners.max_wait
        raise Failed(f"http_{answer.status}", may_pass=passing, wait_s=seconds)
    raise Failed("redirect_limit", f"more than {manners.redirects}; the next was to {address}")


def _seconds(retry_after: str) -> float | None:
    """A Retry-After header, seconds or a date, from now."""
    text = retry_after.strip()
    if text.isdecimal():
        return float(text[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def download(url: str, wanted: Wanted, manners: Manners, turns: Turns | _Queue) -> bytes:
    """The bytes at an address, after as many attempts as `manners` allows. Raises `Failed`."""
    queue = turns if isinstance(turns, _Queue) else _Queue(turns)
    for attempt in itertools.count():
        try:
            return _follow(url, wanted, manners, queue)
        except Failed as failure:
            if not failure.may_pass or attempt >= manners.retries:
                raise
            pause = manners.backoff * 2**attempt * (1 + rng("backoff", url, attempt).random() / 2)
            time.sleep(pause if failure.wait_s is None else max(failure.wait_s, 0.0))
    raise AssertionError("unreachable")


# ---- one picture ---------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """What goes into a shard."""

    data: bytes
    extension: str
    facts: dict[str, Any]
    """width, height, original_width, original_height, sha256."""


def _kind(data: bytes) -> str:
    """The format by its first bytes: what browsers show and Pillow decodes without help from other programs."""
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
    if kind == "JPEG" and data.count(b"\xff\xda") > _MAX_SCANS:  # each scan goes over all pixels
        raise Failed("bomb", "more than a hundred scans")
    if min(width, height) < wanted.min_size:
        raise Failed("too_small", f"{width}×{height} pixels")
    if wanted.max_aspect_ratio is not None and max(width, height) > wanted.max_aspect_ratio * min(width, height):
        raise Failed("aspect_ratio", f"{width}×{height} pixels")
    try:
        with _DECODING:
            packed = pack(data, wanted.resize)
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
    """Fetch the rows of shard `number` and write `00000.tar` (if any succeeded), `00000.parquet` (ROW_SCHEMA, all rows)
    and, last, `00000_stats.json` into `folder`; returns what the last one holds.

    A key is the row's place in the list, so it depends on no server. With `again`, a finished shard keeps what it has
    and only those of its rows are fetched that failed for a reason which may have gone by. `tell` gets each status.
    """
    folder, stem = Path(folder), f"{number:05d}"
    work = folder / f".work-{uuid.uuid4().hex}"
    records: list[dict[str, Any]] = []
    todo: list[int] = []
    before = pq.read_table(folder / f"{stem}.parquet").to_pylist() if again else []
    for place, row in enumerate(rows):
        if before and not may_pass_later(before[place]["status"]):
            records.append(before[place])
            continue
        known = {"key": f"{stem}{place:04d}", "line": row.line, "url": row.url, "caption": row.caption}
        records.append(dict.fromkeys(ROW_SCHEMA.names) | known)
        todo.append(place)
    queue, lock = _Queue(turns), threading.Lock()
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
        with open(work / "spool", "w+b") as spool:  # pictures come in any order, and may be more than memory holds
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
            file.flush()
            os.fsync(file.fileno())
        if tar is None:
            (folder / f"{stem}.tar").unlink(missing_ok=True)
        for name in (f"{stem}.tar", f"{stem}.parquet", f"{stem}_stats.json"):
            if (work / name).exists():
                os.replace(work / name, folder / name)
    except OSError as error:
        raise InputError(f"fetch: {folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return stats


def _fetch_row(row: Row, wanted: Wanted, manners: Manners, queue: _Queue) -> Picture:
    if row.fault:
        raise Failed("bad_line", row.fault)
    if reason := clean_drop_reason(row.caption, wanted.min_caption_length):
        raise Failed(reason)
    return picture(download(row.url, wanted, manners, queue), wanted)


def _samples(
    records: list[dict], spool: BinaryIO, spooled: dict[int, tuple[str, int, int]], old: Path | None
) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """The successes in the order of the list: the new ones from the spool, the others as they stand in the tar `old`."""
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
                found = places[record["key"]].members
                yield record["key"], {kind: reader.read(member.offset, member.size) for kind, member in found.items()}


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
    """Whether a failure is one of the network or the server, which may have gone by another day."""
    return status in _LATER or status.startswith("http_")


def finished(folder: str | Path, number: int) -> dict[str, Any] | None:
    """The statistics of a shard that is whole, else None."""
    folder, stem = Path(folder), f"{number:05d}"
    try:
        stats = json.loads((folder / f"{stem}_stats.json").read_bytes())
        whole = (folder / f"{stem}.parquet").exists()
        if stats["tar"] is not None:
            whole = whole and (folder / f"{stem}.tar").stat().st_size == stats["tar"]["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stats if whole else None
