"""Pictures that are small as files and large when decoded: refused by their header, in bounded memory."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.acquire.fetch import Wanted, picture
from datasets.acquire.ingest import ingest
from datasets.acquire.manners import Failed
from datasets.evaluation.evalset import EvalSet
from datasets.images.view import MAX_BYTES, DecodeError, TooLarge, _to_rgb, check_decodes, decode, scans
from datasets.index.source import Source
from tests.experiments import ROOT
from tests.unit.making import tar


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """A whole PNG of one colour, 0, of `depth` bits and colour type `colour`."""
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row, packer = bytes(1 + -(-width * bands * depth // 8)), zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    palette = chunk(b"PLTE", bytes(3)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + palette + chunk(b"IDAT", data) + chunk(b"IEND", b"")


LARGE = {
    "one bit": lambda: png(9400, 9400, 1, 0),
    "palette": lambda: png(9000, 9000, 8, 3),
    "grey of 16 bits": lambda: png(9000, 9000, 16, 0),
    "colour of 16 bits": lambda: png(9000, 10000, 16, 2),
    "with alpha": lambda: png(6500, 6500, 8, 6),
    "grey with alpha": lambda: png(6500, 6500, 8, 4),
    "animated GIF": lambda: encoded(Image.new("P", (9000, 8000)), "GIF", save_all=True, append_images=[Image.new("P", (9000, 8000), 1)]),
    "WebP": lambda: encoded(Image.new("RGBA", (6200, 6200), (1, 2, 3, 4)), "WEBP", method=0),
    "TIFF": lambda: encoded(Image.new("CMYK", (6200, 6200)), "TIFF", compression="tiff_deflate"),
    "JPEG of CMYK": lambda: encoded(Image.new("CMYK", (6200, 6200)), "JPEG"),
}
WITHIN = """
import resource, sys
from datasets.images.view import DecodeError, decode
spent = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (spent + (int(sys.argv[2]) << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
try:
    print(decode(open(sys.argv[1], "rb").read()).shape)
except DecodeError as error:
    print(type(error).__name__, error.reason)
"""


def decoded_within(path: Path, mebibytes: int) -> str:
    """What became of decoding the file in a process of its own that may take so much more memory."""
    command = [sys.executable, "-c", WITHIN, str(path), str(mebibytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.strip()


@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path, name):
    data = LARGE[name]()
    assert len(data) < 4 << 20
    (tmp_path / "large").write_bytes(data)
    room = 512 if name == "WebP" else 64  # libwebp asks for its canvas when it opens a file, and does not touch it
    assert decoded_within(tmp_path / "large", room) == "TooLarge too_large"


def test_what_is_within_the_limit_takes_little_more(tmp_path):
    """The pixels as Pillow stores them, the array, and a strip: once 3000×4000 pixels with alpha took over 300 MB."""
    (tmp_path / "p").write_bytes(png(3000, 4000, 8, 6))
    assert decoded_within(tmp_path / "p", (3000 * 4000 * 7 >> 20) + 80) == "(4000, 3000, 3)"
    (tmp_path / "p").write_bytes(png(5000, 8000, 1, 0))
    assert decoded_within(tmp_path / "p", (5000 * 8000 * 4 >> 20) + 80) == "(8000, 5000, 3)"


def test_the_limit_is_on_bytes():
    assert MAX_BYTES == 256 << 20
    for depth, colour, need in ((8, 2, 3), (1, 0, 4), (8, 6, 7), (16, 0, 5)):
        data = png(100, 50, depth, colour)
        assert decode(data, 5000 * need).shape == (50, 100, 3)
        with pytest.raises(TooLarge, match=f"take {5000 * need} bytes decoded"):
            decode(data, 5000 * need - 1)
    jpeg = encoded(Image.new("RGB", (100, 50)), "JPEG")
    assert decode(jpeg, 15_000).shape == (50, 100, 3)
    with pytest.raises(TooLarge):
        decode(jpeg, 14_999)


TEXT = zlib.compress(bytes(8 << 20))
PROFILE = zlib.compress(bytes(96 << 20), 9)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"a\0\0" + TEXT)],
        [chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT)],
        [chunk(b"iCCP", b"a\0\0" + PROFILE)],
        [chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(80)],
    ],
    ids=["zTXt", "iTXt", "iCCP", "many texts"],
)
def test_what_unpacks_to_much_beside_the_pixels_is_undecodable(tmp_path, chunks):
    (tmp_path / "p").write_bytes(png(8, 8, 8, 2, *chunks))
    assert decoded_within(tmp_path / "p", 200) == "DecodeError undecodable"


def test_a_jpeg_of_very_many_scans_is_undecodable():
    jpeg = encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    assert decode(jpeg).shape == (64, 64, 3)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    with pytest.raises(DecodeError, match="scans"):
        decode(jpeg[:-2] + scan * 200 + jpeg[-2:])


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "EPS"])
def test_formats_that_hide_another_picture_or_need_a_program_are_not_opened(kind):
    with pytest.raises(DecodeError, match="no picture of a format"):
        decode(encoded(Image.new("RGB", (32, 32)), kind))


def test_it_is_counted_by_its_own_reason(tmp_path):
    for name, data in {"a/0.png": png(8, 8, 8, 2), "b/0.png": png(8, 8, 8, 2), "b/1.png": LARGE["one bit"]()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert EvalSet(path=str(tmp_path), templates=("a {}",)).load().table["drop"].to_pylist() == ["", "", "too_large"]
    packed = [("0.png", png(8, 8, 8, 2)), ("0.txt", b"a cat"), ("1.png", LARGE["one bit"]()), ("1.txt", b"a cat")]
    path = str(tar(tmp_path / "a.tar", packed))
    for verify in ("decode", "header"):
        assert Source(urls=path, verify=verify).index_shard(0, path)["drop"].to_pylist() == ["", "too_large"]
    assert ingest(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", captions="folder")["dropped"] == {"too_large": 1}
    with pytest.raises(Failed) as caught:
        picture(LARGE["one bit"](), Wanted())
    assert caught.value.status == "bomb" and "bytes decoded" in caught.value.detail


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "PA", "LAB", "HSV"])
def test_strips_are_converted_as_the_whole_is(mode, monkeypatch):
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (37, 53, 4), dtype=np.uint8))
    if mode == "F":
        image = Image.fromarray(draw.random((37, 53), dtype=np.float32) ** 8)
    elif mode in ("I", "I;16"):
        image = Image.fromarray(draw.integers(0, 1 << 16, (37, 53)).astype(np.int32 if mode == "I" else np.uint16))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (53, 37), draw.bytes(53 * 37 * 3))
    else:
        rgb = colour.convert("RGB")
        image = rgb.quantize(64).convert(mode) if mode in ("P", "PA") else (colour if mode in ("RGBA", "LA") else rgb).convert(mode)
    assert image.mode == mode
    whole = _to_rgb(image)
    monkeypatch.setattr("datasets.images.view._STRIP_PIXELS", 53 * 5)
    assert np.array_equal(_to_rgb(image), whole) and whole.std() > 10
    if mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"):
        assert np.array_equal(whole, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("size", [2, 3, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, (1 << 19) + 2])
def test_scans_are_counted_wherever_they_lie(size):
    """Also across the edge of two parts that are searched one after the other."""
    draw = np.random.default_rng(size)
    data = bytearray(draw.choice(np.array([0xFF, 0xDA, 0x00], np.uint8), size).tobytes())
    for edge in range(1 << 18, size - 1, 1 << 18):
        data[edge - 1 : edge + 1] = b"\xff\xda"
    assert scans(bytes(data)) == bytes(data).count(b"\xff\xda")


def verdict(check: object, data: bytes) -> str:
    try:
        check(data)  # type: ignore[operator]
    except DecodeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_jpeg_is_found_wrong_just_when_it_cannot_be_decoded_whole():
    """Bytes changed, put in, taken out and cut off, in JPEGs of every kind: the two must always say the same."""
    draw, found = np.random.default_rng(0), set()
    for number in range(60):
        height, width = (int(side) for side in draw.integers(1, 60, 2))
        grain = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC).convert(("RGB", "L", "CMYK")[number % 5 // 2])
        options: dict = {"quality": int(draw.integers(20, 100)), "progressive": bool(number % 2), "optimize": bool(number % 3)}
        options |= {} if image.mode == "L" else {"subsampling": number % 3}
        options |= {"restart_marker_blocks": 2} if number % 4 == 0 else {}
        whole = encoded(image, "JPEG", **options)
        assert verdict(check_decodes, whole) == verdict(decode, whole) == ""
        for kind in range(40):
            data, at = bytearray(whole), int(draw.integers(0, len(whole)))
            if kind % 4 == 0:
                del data[at:]
            elif kind % 4 == 1:
                del data[at : at + int(draw.integers(1, 5))]
            elif kind % 4 == 2:
                data[at:at] = draw.integers(0, 256, 3, dtype=np.uint8).tobytes()
            else:
                data[at] ^= 1 << int(draw.integers(8))
            assert verdict(check_decodes, bytes(data)) == verdict(decode, bytes(data)), (number, kind, at)
            found.add(bool(verdict(decode, bytes(data))))
    assert found == {True, False}


def test_a_jpeg_too_large_or_of_too_many_scans_is_refused_without_decoding():
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xc2") + 5
    assert verdict(check_decodes, jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :]).startswith("TooLarge")
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert "scans" in verdict(check_decodes, jpeg[:-2] + scan * 200 + jpeg[-2:])
