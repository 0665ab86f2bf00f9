"""A web server with every bad habit, by path. What it answers well is a picture that its path alone determines."""

import contextlib
import gzip
import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
from PIL import Image

from datasets.acquire.fetch import Wanted
from datasets.acquire.manners import Manners
from tests.unit.making import encoded, picture

WANTED = Wanted(allow_private=True, max_bytes=1_000_000)
PLAIN = Manners(retries=0, backoff=0.01, host_rate=0, host_connections=0)


def png(width: int, height: int) -> bytes:
    """A black PNG of any size in few bytes, one bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes((1 + -(-width // 8)) * height))) + chunk(b"IEND", b"")


def _gif() -> bytes:
    frames, out = [Image.fromarray(picture(i)) for i in range(3)], io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


JPEG = encoded(picture(1), quality=90)
BODIES = {
    "good.jpg": JPEG,
    "large.jpg": encoded(picture(2, 90, 160)),
    "wide.jpg": encoded(picture(3, 20, 100)),
    "tiny.jpg": encoded(picture(4, 5, 5)),
    "html.jpg": b"<!doctype html><title>not found</title>" * 20,
    "png.jpg": encoded(picture(5), "PNG"),
    "animated.gif": _gif(),
    "cmyk.jpg": encoded(picture(6), mode="CMYK"),
    "cut.jpg": encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))[:-2000],
    "garbage.jpg": b"\xff\xd8\xff" + bytes(500),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "nothing": b"",
    "scans.jpg": JPEG[:-2] + b"\xff\xda" * 200 + b"\xff\xd9",
    "long.bin": bytes(100_000),
    "bomb": png(20_000, 20_000),
}
PACKED = {"": gzip.compress(JPEG), "bomb": gzip.compress(bytes(20_000_000)), "cut": gzip.compress(JPEG)[:-20], "lie": JPEG}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 (the name is http.server's)
        name, _, argument = unquote(self.path[1:]).partition("?")
        argument = argument.partition("&")[0]
        server: Server = self.server  # type: ignore[assignment]
        with server.lock:
            server.asked[self.path] += 1
            server.headers.append(dict(self.headers))
            nth = server.asked[self.path]
        with contextlib.suppress(OSError):  # the client may have gone, which is the point
            if name in BODIES:
                self.answer(BODIES[name], "image/jpeg")
            else:
                getattr(self, "serve_" + name)(argument, nth)

    def answer(self, body: bytes, kind: str = "image/jpeg", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Set-Cookie": "a=b"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for header, value in headers.items():
            if value:
                self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def serve_numbered(self, argument: str, nth: int) -> None:
        self.answer(encoded(picture(int(argument))))

    def serve_slow(self, argument: str, nth: int) -> None:
        time.sleep(0.05)
        self.serve_numbered(argument, nth)

    def serve_status(self, argument: str, nth: int) -> None:
        self.answer(b"no", status=int(argument))

    def serve_at_last(self, argument: str, nth: int) -> None:
        """`at_last?500x2`: twice that status, then a picture."""
        status, _, times = argument.partition("x")
        if nth > int(times):
            self.answer(JPEG)
        else:
            self.answer(b"", status=int(status), Retry_After="0" if status == "429" else "")

    def serve_later(self, argument: str, nth: int) -> None:
        self.answer(b"", status=429, Retry_After=argument)

    def serve_to(self, argument: str, nth: int) -> None:
        self.answer(b"", status=302, Location=argument)

    def serve_hops(self, argument: str, nth: int) -> None:
        left = int(argument)
        self.answer(b"", status=301, Location=f"hops?{left - 1}" if left > 1 else "/good.jpg")

    def serve_loop(self, argument: str, nth: int) -> None:
        self.answer(b"", status=302, Location=self.path)

    def serve_hang(self, argument: str, nth: int) -> None:
        self.wait()

    def serve_hang_in_body(self, argument: str, nth: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(JPEG)))
        self.end_headers()
        self.wfile.write(JPEG[:100])
        self.wfile.flush()
        self.wait()

    def serve_trickle(self, argument: str, nth: int) -> None:
        self.trickle(JPEG, {"Content-Length": str(len(JPEG))})

    def serve_trickle_to_the_end(self, argument: str, nth: int) -> None:
        self.trickle(JPEG, {})

    def serve_trickle_headers(self, argument: str, nth: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.server.closing.wait(0.02):  # type: ignore[attr-defined]
            self.wfile.write(b"X-A: b\r\n" if argument == "lines" else b"X")
            self.wfile.flush()

    def serve_short(self, argument: str, nth: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(JPEG) + 50))
        self.end_headers()
        self.wfile.write(JPEG)

    def serve_understated(self, argument: str, nth: int) -> None:
        self.answer(JPEG, Content_Length=str(len(JPEG) - 300))

    def serve_unstated(self, argument: str, nth: int) -> None:
        self.answer(JPEG, Content_Length="")

    def serve_endless(self, argument: str, nth: int) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.closing.is_set():  # type: ignore[attr-defined]
            self.wfile.write(JPEG + bytes(1 << 16))

    def serve_chunked(self, argument: str, nth: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (JPEG[:200], JPEG[200:]):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n" if argument != "cut" else b"ff\r\nabc")

    def serve_gzip(self, argument: str, nth: int) -> None:
        self.answer(PACKED[argument], Content_Encoding="gzip")

    def serve_reset(self, argument: str, nth: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def serve_close(self, argument: str, nth: int) -> None:
        self.close_connection = True

    def serve_nonsense(self, argument: str, nth: int) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")

    def serve_many_headers(self, argument: str, nth: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n")

    def serve_opted_out(self, argument: str, nth: int) -> None:
        self.answer(JPEG, X_Robots_Tag="noindex, noai")

    def trickle(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(0.02):  # type: ignore[attr-defined]
                return

    def wait(self) -> None:
        self.server.closing.wait(60)  # type: ignore[attr-defined]

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size, block_on_close = True, 256, False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """The server on a free port of loopback, in threads."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
