"""The command `protect`: what it writes for each kind of picture, and what it refuses in one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.commands import cli
from orchestrator.commands import protect as command

SIDE = 48


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with picture.png (RGB) and mask.png, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    colours().save("picture.png")
    square().save("mask.png")
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures little, for tests that run the command several times."""
    monkeypatch.setattr(command, "Evaluation", partial(command.Evaluation, kinds=("malicious",), treatments=("8bit",)))


def colours() -> Image.Image:
    values = np.random.default_rng(0).integers(30, 220, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def square(first: int = 20, last: int = 30, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    mask = np.zeros(size[::-1], np.uint8)
    mask[first:last, first:last] = 255
    return Image.fromarray(mask)


def run(*words: str, picture: str = "picture.png", mask: str = "mask.png") -> int:
    return cli.run(["protect", picture, "--mask", mask, "--inpainter", "linear", "--out", "out", *words])


def refused(capsys: pytest.CaptureFixture[str], *words: str, **named: str) -> str:
    before = sorted(Path().rglob("*"))
    assert run(*words, **named) == 2
    error = capsys.readouterr().err
    assert error.startswith("cleansweep: ") and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(Path().rglob("*")) == before, "it wrote something"
    return error


def test_it_writes_the_picture_a_sheet_and_numbers(capsys):
    assert run("--eps", "8/255", "--seed", "3") == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in Path("out").iterdir()) == ["numbers.json", "protected.png", "sheet.png"]
    before, after = (np.asarray(Image.open(name)).astype(int) for name in ("picture.png", "out/protected.png"))
    change = np.abs(after - before)
    assert after.shape == before.shape and change.max() == told["largest_change"] == 8 and (change == 8).mean() > 0.5
    numbers = json.loads(Path("out/numbers.json").read_text())
    assert numbers["protect"]["eps"] == 8 / 255 and numbers["protect"]["seed"] == 3 and numbers["inpainter"]["id"] == "LinearGain"
    assert {row["noise"] for row in numbers["rows"]} == {"protected", "random"} and len(numbers["rows"]) == 2 * 5 * 4
    mse = ((after - before) ** 2).mean() / 255**2
    assert numbers["psnr"] == pytest.approx(-10 * np.log10(mse), abs=1e-3)
    assert told["gain"] > 4 * told["gain_random"]
    sheet = Image.open("out/sheet.png")
    assert sheet.format == "PNG" and sheet.size[0] > 4 * 256 and sheet.size[1] > 2 * 256


def test_it_is_the_same_to_the_bit(capsys, quick):
    contents = []
    for out in ("one", "two"):
        assert run("--out", out) == 0
        contents.append({path.name: path.read_bytes() for path in Path(out).iterdir()})
    assert contents[0] == contents[1]


def test_a_small_network_is_trained_and_kept(capsys, monkeypatch):
    from trainers.audit.protect.small_net import SmallNetTraining

    monkeypatch.setattr(command, "TRAINING", SmallNetTraining(width=2, blocks=1, crop=16, batch_size=2, steps=2))
    assert run("--inpainter", "small") == 0
    kept = json.loads(Path("out/numbers.json").read_text())["inpainter"]["sha256"]
    assert kept == hashlib.sha256(Path("out/inpainter.safetensors").read_bytes()).hexdigest()


def test_the_folder_is_beside_the_picture_unless_one_is_named(capsys):
    assert cli.run(["protect", "picture.png", "--mask", "mask.png", "--inpainter", "harmonic"]) == 0
    assert (Path("picture-protected") / "protected.png").exists()


def test_transparency_grey_palette_and_bilevel_are_kept_or_become_rgb(capsys, quick):
    picture, alpha = colours(), Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE).astype(np.uint8))
    rgba, grey_alpha = picture.copy(), picture.convert("L")
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    given = {"RGBA": rgba, "LA": grey_alpha, "L": picture.convert("L"), "P": picture.quantize(16), "1": picture.convert("1")}
    for mode, one in given.items():
        one.save("one.png")
        assert Image.open("one.png").mode == mode and run(picture="one.png") == 0
        made = Image.open("out/protected.png")
        assert made.mode == ("RGBA" if mode in ("RGBA", "LA") else "RGB")
        change = np.asarray(made.convert("RGB")).astype(int) - np.asarray(one.convert("RGBA").convert("RGB"))
        assert 0 < np.abs(change).max() <= 6
        if mode in ("RGBA", "LA"):
            assert np.array_equal(np.asarray(made)[..., 3], np.asarray(alpha))


def test_exif_lies_apart_and_the_picture_is_upright(capsys):
    picture = colours().resize((SIDE + 8, SIDE))
    exif = Image.Exif()
    exif[274], exif[315] = 6, "somebody"  # turned by a quarter; the artist
    picture.save("turned.jpg", exif=exif, quality=95)
    square(size=(SIDE, SIDE + 8)).save("upright.png")
    assert run(picture="turned.jpg", mask="upright.png") == 0
    made = Image.open("out/protected.png")
    assert made.size == (SIDE, SIDE + 8) and not made.getexif()
    kept = Image.Exif()
    kept.load(Path("out/protected.exif").read_bytes())
    assert kept[315] == "somebody" and 274 not in kept


def bomb() -> bytes:
    """A PNG whose header promises 60 000 × 60 000 pixels."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def png_of_16_bits() -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes(6 * SIDE) for _ in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


PICTURES = {
    "cmyk": (lambda: encoded(colours().convert("CMYK"), "JPEG"), "has the mode CMYK; accepted: RGB, grey and palette"),
    "grey16": (lambda: encoded(Image.fromarray(np.zeros((SIDE, SIDE), np.uint16))), "has 16 bits a channel; accepted"),
    "rgb16": (png_of_16_bits, "has 16 bits a channel; accepted"),
    "float": (lambda: encoded(Image.fromarray(np.zeros((SIDE, SIDE), np.float32)), "TIFF"), "has the mode F; accepted"),
    "pixel": (lambda: encoded(Image.new("RGB", (1, 1))), "has 1×1 pixels; accepted: at least 32 a side"),
    "large": (lambda: encoded(Image.new("L", (2000, 600))), "has 2000×600 pixels; accepted: at most 1048576"),
    "bomb": (bomb, "one.png"),
    "animated": (lambda: encoded(colours(), "GIF", save_all=True, append_images=[square().convert("RGB")]), "holds 2 pictures"),
    "text": (lambda: b"no picture at all", "cannot be read as a picture: the bytes are no picture"),
    "cut": (lambda: encoded(colours())[:900], "cannot be read as a picture"),
    "empty": (lambda: b"", "cannot be read as a picture"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cannot_be_protected(name, capsys):
    content, said = PICTURES[name]
    Path("one.png").write_bytes(content())
    told = refused(capsys, picture="one.png")
    assert said in told and "InputError" not in told and not told.endswith("..\n"), "one sentence, not one within another"


MASKS = {
    "another size": (lambda: square(size=(SIDE, SIDE + 1)), "has 48×49 pixels; accepted: those of the picture, 48×48"),
    "black": (lambda: square(0, 0), "is black all over"),
    "white": (lambda: square(0, SIDE), "covers the whole picture; accepted"),
    "nearly white": (lambda: square(5, SIDE - 5), "covers the whole picture when it is grown by 8 pixels"),
    "grey": (lambda: square().point(lambda value: value // 2),
             "is grey in 100 of its 2304 pixels, the first in row 21, column 21 with the value 127; accepted: black (0) and white (255)"),
    "soft": (lambda: square(20, 30).resize((24, 24)).resize((SIDE, SIDE), Image.Resampling.BILINEAR), "sharp edges and not as JPEG"),
    "coloured": (lambda: Image.merge("RGB", (square(), square(0, 0), square(0, 0))), "has colours in 100 of its 2304 pixels; accepted"),
    "transparent": (lambda: Image.merge("LA", (square(), square())), "is transparent in places"),
    "small": (lambda: square(2, 6, (31, 31)), "has 31×31 pixels; accepted"),
    "none": (lambda: None, "none.png cannot be read: No such file"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_cannot_be_used(name, capsys):
    content, said = MASKS[name]
    mask = content()
    if mask is not None:
        mask.save("one.png")
    assert said in refused(capsys, mask="none.png" if mask is None else "one.png")


def test_masks_of_zeros_and_ones_of_one_bit_and_with_a_palette_are_taken(capsys, quick):
    made = []
    for one in (square(), square().point(lambda value: value // 255), *(square().convert(mode) for mode in ("1", "P", "RGB"))):
        one.save("one.png")
        assert run(mask="one.png") == 0
        made.append(Path("out/protected.png").read_bytes())
    assert len(set(made)) == 1


@pytest.mark.parametrize("text", ["6.4", "0", "-0.1", "1.5", "nan", "inf", "1/0", "6.4/", "a/b", "0.5/255", "256/255", ""])
def test_an_epsilon_without_a_sensible_unit_is_refused(text, capsys):
    said = refused(capsys, f"--eps={text}")
    assert "--eps" in said and "cleansweep protect --help" in said
    if text == "6.4":
        assert "accepted: 1/255 to 1, e.g. 6.4/255 or 0.025" in said


def test_both_ways_to_write_epsilon_are_taken(capsys, quick):
    for text, value in (("6.4/255", 6.4 / 255), ("0.025", 0.025), ("1/255", 1 / 255)):
        assert run("--eps", text) == 0
        assert json.loads(Path("out/numbers.json").read_text())["protect"]["eps"] == value


def test_a_lama_file_with_another_hash_is_not_loaded(capsys, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(torch.jit, "load", never)
    Path("lama.pt").write_bytes(b"something else")
    assert "has the sha256 " in refused(capsys, "--inpainter", "lama", "--lama", "lama.pt")
    assert "cannot be read" in refused(capsys, "--inpainter", "lama", "--lama", "none.pt")
    assert "both or neither" in refused(capsys, "--inpainter", "lama")
    assert "both or neither" in refused(capsys, "--lama", "lama.pt")
    assert "invalid choice" in refused(capsys, "--inpainter", "magic")


def test_folders_that_cannot_be_written_to(capsys):
    Path("file").write_text("")
    assert "cannot be written to" in refused(capsys, "--out", "file")
    assert "cannot be written to" in refused(capsys, "--out", "file/below")
    Path("out").mkdir()
    colours().save("out/protected.png")
    assert "would be overwritten" in refused(capsys, picture="out/protected.png")
    assert "cannot be read" in refused(capsys, picture="out")


def test_a_failure_leaves_nothing(capsys, monkeypatch):
    whole = command.write_whole

    def full(path: Path, content: bytes) -> Path:
        if path.name == "numbers.json":
            raise OSError(28, "No space left on device", str(path))
        return whole(path, content)

    monkeypatch.setattr(command, "write_whole", full)
    assert run() == 1 and "No space left" in capsys.readouterr().err
    assert not Path("out").exists()

    def tired(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(command, "_made", tired)
    assert "not enough memory" in refused(capsys)
