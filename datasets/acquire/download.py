"""Download bytes without trusting the list or the servers: limits, retries, one address after another.

An address is checked at the moment of connecting to it. Lengths are checked while bytes arrive and while they unpack. Every attempt has a
deadline that a slow trickle of bytes cannot extend.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
import zlib
from typing import Any, NamedTuple, Protocol
from urllib.parse import urljoin

import urllib3.connection
import urllib3.exceptions
from urllib3.util import Url, parse_url

from datasets.acquire.manners import Failed, Manners, Queue, Turns
from datasets.seeding import rng

ACCEPT = "image/jpeg, image/png, image/webp, image/gif;q=0.8, image/*;q=0.5, */*;q=0.1"
_MAX_ADDRESSES = 4
logging.getLogger("urllib3").setLevel(logging.ERROR)  # urllib3 warns about odd headers of servers


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet.

    An IPv6 address that wraps an IPv4 address in a way that everyone unwraps alike (mapped, NAT64's own prefix) counts as that IPv4
    address. Any other wrapping is not public.
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in ipaddress.IPv6Network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved  # is_reserved: all of ::/8, which includes other wrappings


class _Guarded:
    """Shared by both kinds of connection. It connects to the very address that it checked, so a second look-up cannot return another one.
    At the deadline it cuts the connection, whatever is going on."""

    host: str
    port: int
    timeout: float
    allow_private: bool
    ends: float
    expired = False
    _timer: threading.Timer | None = None

    def _new_conn(self) -> socket.socket:
        try:
            entries = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise Failed("unknown_host", f"{self.host}: {error}", may_pass=passing) from None
        allowed = [entry for entry in entries if self.allow_private or is_public(str(entry[4][0]))]
        if not allowed:
            raise Failed("blocked_address", f"{self.host} is {entries[0][4][0]}")
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
            self._double = sock.dup()  # TLS takes over the socket
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
    """Verifies certificates and host names against the system's authorities (or those of SSL_CERT_FILE)."""
    return ssl.create_default_context()


class Limits(Protocol):
    """The part of `datasets.acquire.fetch.Wanted` that a download depends on."""

    @property
    def max_bytes(self) -> int:
        """Largest size of a body, packed and unpacked."""

    @property
    def allow_private(self) -> bool:
        """Whether connections to addresses that are not public are allowed."""


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


def _ask(url: Url, limits: Limits, manners: Manners, ends: float) -> _Answer:
    """One GET on a new connection, without cookies, user names or passwords."""
    options: dict[str, Any] = {"timeout": manners.timeout}
    if url.scheme == "https":
        options["ssl_context"] = _tls()
    connection = (_Secure if url.scheme == "https" else _Plain)((url.host or "").strip("[]"), url.port, **options)
    connection.allow_private, connection.ends = limits.allow_private, ends
    headers = {"User-Agent": manners.user_agent, "Accept": ACCEPT, "Accept-Encoding": "identity", "Connection": "close"}
    try:
        connection.request("GET", url.request_uri, headers=headers, preload_content=False, decode_content=False)
        response = connection.getresponse()
        location, retry_after = (response.headers.get(name, "") for name in ("Location", "Retry-After"))
        if response.status == 200:
            robots = " ".join(response.headers.getlist("X-Robots-Tag")).lower().replace(",", " ").split()
            if {"noai", "noimageai"} & set(robots):
                raise Failed("opted_out", "X-Robots-Tag")
        body = _body(response, limits.max_bytes) if response.status == 200 else b""
        if connection.expired:
            raise TimeoutError
        return _Answer(response.status, location, retry_after, body)
    except Exception as error:  # a server may cause any error, which fails its own picture but not the run
        if isinstance(error, Failed) and not connection.expired:
            raise
        raise _failure(error, connection.expired) from None
    finally:
        connection.release()
        connection.close()


def _body(response: Any, limit: int) -> bytes:
    """The body of at most `limit` bytes; unpacked if the server packed it."""
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
            return data  # not packed, although the header says so
        if len(plain) > limit:
            raise Failed("too_large", f"unpacks to more than {limit} bytes")
        if not unpacker.eof:
            raise Failed("truncated", "the packed body ends early", may_pass=True)
        return plain
    return data


def _failure(error: BaseException, expired: bool) -> Failed:
    """The status of a request, from the exception that was raised and all those it carries."""
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


def _follow(address: str, limits: Limits, manners: Manners, queue: Queue) -> bytes:
    """One attempt at a picture, through its redirects."""
    left = manners.deadline
    for _ in range(manners.redirects + 1):
        url = _address(address)
        host = url.host or ""
        with queue.turn(host):
            started = time.monotonic()
            answer = _ask(url, limits, manners, started + left)
            left -= time.monotonic() - started  # waiting for a turn does not count
        if answer.status == 200:
            if not answer.body:
                raise Failed("empty")
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
    """How many seconds from now a Retry-After header (seconds or a date) asks to wait; None if it is neither."""
    text = retry_after.strip()
    if text.isdecimal():
        return float(text[:9])
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


def download(url: str, limits: Limits, manners: Manners, turns: Turns | Queue) -> bytes:
    """The bytes at an address, after as many attempts as `manners` allows. Raises `Failed` with the status of the last attempt."""
    queue = turns if isinstance(turns, Queue) else Queue(turns)
    attempt = 0
    while True:
        try:
            return _follow(url, limits, manners, queue)
        except Failed as failure:
            if not failure.may_pass or attempt >= manners.retries:
                raise
            pause = manners.backoff * 2**attempt * (1 + rng("backoff", url, attempt).random() / 2)
            time.sleep(pause if failure.wait_s is None else failure.wait_s)
        attempt += 1
