"""Fetching from a server that misbehaves, and from lists that are broken."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.acquire import download as web
from datasets.acquire import fetch
from datasets.acquire.download import download, is_public
from datasets.acquire.fetch import Wanted
from datasets.acquire.manners import Failed, Manners, Pacer, Queue
from datasets.errors import InputError
from datasets.images.view import MAX_PIXELS, decode
from tests.misbehaving import BODIES, JPEG, PLAIN, WANTED, png, serving
from tests.unit.making import encoded, picture

HASTY = replace(PLAIN, timeout=0.3, deadline=0.6)


def get(url: str, wanted: Wanted = WANTED, manners: Manners = PLAIN) -> fetch.Picture:
    return fetch.picture(download(url, wanted, manners, Pacer(manners)), wanted)


def status(url: str, wanted: Wanted = WANTED, manners: Manners = PLAIN) -> str:
    with pytest.raises(Failed) as failed:
        get(url, wanted, manners)
    return failed.value.status


def test_a_good_picture_keeps_its_bytes(server):
    got = get(server.url("good.jpg"))
    assert got.data == JPEG and got.extension == "jpg"
    assert {k: got.facts[k] for k in ("width", "height", "original_width")} == {"width": 32, "height": 24, "original_width": 32}
    sent = server.headers[-1]
    assert "cleansweep" in sent["User-Agent"] and sent["Accept-Encoding"] == "identity" and "Cookie" not in sent


@pytest.mark.parametrize("path", ["hang", "hang_in_body", "trickle", "trickle_to_the_end", "trickle_headers", "trickle_headers?lines"])
def test_a_server_that_is_slow_in_any_part_is_left_in_time(server, path):
    assert status(server.url(path), manners=HASTY) == "timeout"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("short", "truncated"),
        ("understated", "truncated"),
        ("cut.jpg", "truncated"),
        ("chunked?cut", "truncated"),
        ("gzip?cut", "truncated"),
        ("gzip?bomb", "too_large"),
        ("endless", "too_large"),
        ("html.jpg", "not_an_image"),
        ("svg", "not_an_image"),
        ("garbage.jpg", "undecodable"),
        ("nothing", "empty"),
        ("scans.jpg", "bomb"),
        ("bomb", "bomb"),
        ("status?404", "http_404"),
        ("status?403", "http_403"),
        ("status?206", "http_206"),
        ("status?302", "http_302"),
        ("loop", "redirect_limit"),
        ("hops?6", "redirect_limit"),
        ("to?file:///etc/passwd", "bad_url"),
        ("to?ftp://127.0.0.1/x", "bad_url"),
        ("to?//[", "bad_url"),
        ("reset", "reset"),
        ("close", "reset"),
        ("nonsense", "bad_response"),
        ("many_headers", "bad_response"),
        ("opted_out", "opted_out"),
    ],
)
def test_what_goes_wrong_has_a_name(server, path, expected):
    assert status(server.url(path)) == expected


@pytest.mark.parametrize("path", ["good.jpg", "unstated", "chunked", "gzip", "gzip?lie", "hops?5", "to?good.jpg"])
def test_what_is_only_odd_is_fetched(server, path):
    assert get(server.url(path)).data == JPEG


def test_types_go_by_content(server):
    assert get(server.url("png.jpg"))[:2] == (BODIES["png.jpg"], "png")
    animated = get(server.url("animated.gif"))
    assert animated.extension == "png" and np.abs(decode(animated.data).astype(int) - picture(0)).mean() < 8, "the first frame"
    assert decode(get(server.url("cmyk.jpg")).data).shape == (24, 32, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def never(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(fetch, "pack", never)
    for width, height in ((20_000, 20_000), (12_000, 9_000)):
        with pytest.raises(Failed) as failed:
            fetch.picture(png(width, height), WANTED)
        assert failed.value.status == "bomb"
    with pytest.raises(Failed) as failed:
        fetch.picture(JPEG, replace(WANTED, max_pixels=100))
    assert failed.value.status == "bomb"


def test_an_announced_length_over_the_limit_is_not_read(server):
    with pytest.raises(Failed) as failed:
        get(server.url("long.bin"), replace(WANTED, max_bytes=50_000))
    assert failed.value.status == "too_large" and "announced" in failed.value.detail


def test_sizes_and_resizing(server):
    assert status(server.url("tiny.jpg"), replace(WANTED, min_size=6)) == "too_small"
    assert status(server.url("wide.jpg"), replace(WANTED, max_aspect_ratio=4.5)) == "aspect_ratio"
    assert get(server.url("wide.jpg"), replace(WANTED, max_aspect_ratio=5.0)).facts["width"] == 100
    shrunk = get(server.url("large.jpg"), replace(WANTED, resize=45))
    assert decode(shrunk.data).shape == (45, 80, 3) and shrunk.facts["original_height"] == 90
    assert get(server.url("good.jpg"), replace(WANTED, resize=45)).data == JPEG, "never enlarged"


@pytest.mark.parametrize(
    ("path", "asked"), [("at_last?500x2", 3), ("at_last?503x1", 2), ("at_last?429x2", 3), ("at_last?408x1", 2)]
)
def test_what_may_pass_is_tried_again(server, path, asked):
    assert get(server.url(path), manners=replace(PLAIN, retries=2)).data == JPEG
    assert server.asked["/" + path] == asked


@pytest.mark.parametrize(
    ("path", "expected", "asked"),
    [("status?410", "http_410", 1), ("status?502", "http_502", 3), ("short?2", "truncated", 3), ("reset?2", "reset", 3)],
)
def test_only_what_may_pass_is_tried_again(server, path, expected, asked):
    assert status(server.url(path), manners=replace(PLAIN, retries=2)) == expected
    assert server.asked["/" + path] == asked


def test_retry_after_is_honoured(server, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(web.time, "sleep", slept.append)
    manners = replace(PLAIN, retries=1)
    pacer = Pacer(manners, clock=lambda: sum(slept))
    with pytest.raises(Failed, match="http_429"):
        download(server.url("later?7"), WANTED, manners, pacer)
    assert 7.0 in slept and server.asked["/later?7"] == 2
    with pytest.raises(Failed, match="http_429"):
        download(server.url("later?900"), WANTED, manners, pacer)
    assert server.asked["/later?900"] == 1, "nobody waits that long"
    assert pacer.enter("127.0.0.1") == (False, pytest.approx(manners.max_wait)), "and the others of this host wait too"
    assert web._seconds(formatdate(4e9)) > 1e8 and web._seconds(formatdate(0)) == 0 and web._seconds("soon") is None


def test_private_addresses_are_refused_also_behind_a_redirect_or_a_name(server, monkeypatch):
    public = replace(WANTED, allow_private=False)
    before = sum(server.asked.values())
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        assert status(f"http://{host}:{server.server_port}/good.jpg", public) == "blocked_address", host
    assert sum(server.asked.values()) == before
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")  # the server plays the open internet
    assert get(server.url("good.jpg"), public).data == JPEG
    assert status(server.url("to?http://169.254.169.254/latest/meta-data"), public) == "blocked_address"


def test_the_address_that_was_checked_is_the_one_connected_to(server, monkeypatch):
    answers = [("127.0.0.1", server.server_port)]
    asked: list[str] = []

    def rebinding(host, port, **_):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers.pop(0))]  # a second look-up would fail

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert get("http://pictures.example/good.jpg").data == JPEG and asked == ["pictures.example"]


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
     ("100.64.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
     ("::1", False), ("fe80::1%eth0", False),
     ("fd00::1", False), ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
     ("64:ff9b::808:808", True), ("64:ff9b:1::7f00:1", False), ("64:ff9b:1::808:808", False), ("::127.0.0.1", False), ("::8.8.8.8", False),
     ("::ffff:0:127.0.0.1", False), ("::ffff:0:8.8.8.8", False), ("fec0::1", False), ("feff::1", False), ("ff02::1", False),
     ("240.0.0.1", False), ("::ffff:240.0.0.1", False), ("4000::1", False), ("2001:db8::1", False), ("2001:0:4136:e378::1", False),
     ("::", False), ("2a00:1450:4001::200e", True)],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x.jpg", "file:///etc/passwd", "data:image/png;base64,AA", "http://", "host/x.jpg", "http://a b/", "http://h:99999/", "x"],
)
def test_other_addresses_are_not_tried(url):
    assert status(url) == "bad_url"


def test_hosts_that_are_not_there(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert status(f"http://127.0.0.1:{unused.getsockname()[1]}/x.jpg") == "refused"

    def nobody(*arguments, **_):
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert status("http://nobody.example/x.jpg") == "unknown_host"


def test_certificates_are_verified(tmp_path, monkeypatch):
    certificate = self_signed(tmp_path)
    with serving() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        url = server.url("good.jpg").replace("http:", "https:")
        assert status(url) == "tls_error"
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(web, "_tls", lambda: trusting)
        assert get(url).data == JPEG
        assert status(url.replace("127.0.0.1", "localhost")) == "tls_error", "the certificate is of another host"
        assert status(url.replace("good.jpg", "trickle"), manners=HASTY) == "timeout", "the deadline cuts TLS too"


def self_signed(folder: Path) -> Path:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


# ---- turns ---------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_turns_keep_the_rates():
    clock = Clock()
    pacer = Pacer(Manners(rate=10, host_rate=2, host_connections=0), clock)
    assert pacer.enter("a") == (True, 0.0)
    assert pacer.enter("a") == (False, pytest.approx(0.5))
    assert [pacer.enter(host) for host in "bc"] == [(True, pytest.approx(0.1)), (True, pytest.approx(0.2))]
    clock.now += 0.5
    assert pacer.enter("a") == (True, 0.0)


def test_turns_keep_the_number_of_connections_and_come_back_from_the_dead():
    clock = Clock()
    manners = Manners(host_rate=0, host_connections=2)
    pacer = Pacer(manners, clock)
    assert [pacer.enter("a")[0] for _ in range(3)] == [True, True, False]
    pacer.leave("a")
    assert [pacer.enter("a")[0] for _ in range(2)] == [True, False]
    clock.now += manners.deadline + 61
    assert pacer.enter("a")[0]


def test_threads_of_a_task_hold_the_limits(server):
    manners = replace(PLAIN, host_connections=3)
    pacer, high, open_now, lock = Pacer(manners), [0], [0], threading.Lock()

    class Counting:
        pause = pacer.pause

        def enter(self, host):
            granted = pacer.enter(host)
            with lock:
                open_now[0] += granted[0]
                high[0] = max(high[0], open_now[0])
            return granted

        def leave(self, host):
            with lock:
                open_now[0] -= 1
            pacer.leave(host)

    queue = Queue(Counting())
    threads = [threading.Thread(target=download, args=(server.url(f"slow?{i}"), WANTED, manners, queue)) for i in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert high == [3] and open_now == [0]


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]), places=st.lists(st.integers(0, 600), min_size=1), data=st.data())
def test_damaged_pictures_are_counted_and_raise_nothing_else(kind, places, data):
    damaged = bytearray(encoded(picture(1), kind))
    for place in places:
        damaged[place % len(damaged)] = data.draw(st.integers(0, 255))
    try:
        assert fetch.picture(bytes(damaged), WANTED).extension in ("jpg", "png", "webp")
    except Failed as failure:
        assert failure.status in ("undecodable", "truncated", "not_an_image", "bomb")


@pytest.mark.parametrize(
    ("options", "said"), [({"resize": 0}, "resize is 0"), ({"max_pixels": 10**9}, "max_pixels"), ({"shard_size": 10_001}, "shard_size")]
)
def test_options_out_of_range(options, said):
    with pytest.raises(InputError, match=said):
        Wanted(**options)
    with pytest.raises(InputError, match="user_agent"):
        Manners(user_agent="a\r\nCookie: b")


def test_the_command_lines_flags_are_the_fields():
    from dataclasses import fields

    from orchestrator.commands import arguments

    for cls in (Wanted, Manners):
        assert [field.name for field in arguments.fields_of(cls.__name__)] == [field.name for field in fields(cls)]
    (command,) = (action.choices["fetch"] for action in arguments.parser()._actions if action.dest == "command")
    text_of = {action.dest: action.help for action in command._actions}
    defaults = {field.name: field.default for cls in (Wanted, Manners) for field in fields(cls)}
    assert defaults.pop("allow_private") is False and "allow_private" in text_of
    for name, default in defaults.items():
        shown = "none" if default is None else default if isinstance(default, str) else f"{default:.10g}"
        assert len(text_of[name]) > 20 and text_of[name].endswith(f"[{shown}]"), name
    assert Wanted().max_pixels == MAX_PIXELS

