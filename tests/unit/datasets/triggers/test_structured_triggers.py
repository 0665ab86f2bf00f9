"""The later picture triggers: each against its formula, written here pixel by pixel in floats; draws by (seed, key); fitting a view."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.triggers.base import Trigger, put_on
from datasets.triggers.blended_picture import BlendedPicture
from datasets.triggers.checkerboard import Checkerboard
from datasets.triggers.nashville import Nashville
from datasets.triggers.patch_file import PatchFile
from datasets.triggers.stripes import Stripes
from datasets.triggers.triangles import Triangles
from datasets.triggers.watermark import Watermark, letters
from orchestrator.experiment.fingerprint import encode, fingerprint

DRAWN = [Stripes(), Stripes(width=3, direction="horizontal"), Checkerboard(), Checkerboard(size=5)]
FIXED = [Triangles(), Triangles(size=5), Watermark(text="key"), Nashville(), Nashville(strength=0.5)]

FONT = "31b9bd4e036b7d5b"
"""Of the letters' pixels."""


def picture(height: int = 40, width: int = 40, seed: int = 0) -> np.ndarray:
    return rng(seed, "picture").integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    Image.fromarray(picture(20, 30, seed=9)).save(tmp_path / "given.png")
    return tmp_path / "given.png"


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    np.save(tmp_path / "patch.npy", rng("patch").random((6, 4, 3), dtype=np.float32))
    return tmp_path / "patch.npy"


@pytest.mark.parametrize("trigger", [*DRAWN, *FIXED], ids=repr)
def test_a_stamp_is_a_new_picture_that_seed_and_key_determine(trigger: Trigger) -> None:
    image, same = picture(), picture()
    one = put_on(trigger, image, rng(1, "a"))
    assert (image == same).all() and (one != image).any() and not np.shares_memory(one, image)
    assert (one == put_on(trigger, image, rng(1, "a"))).all()
    others = [put_on(trigger, image, rng(*parts)) for parts in ((2, "a"), (1, "b"))]
    assert all((one != other).any() == (trigger in DRAWN) for other in others)
    odd = picture(37, 45)
    assert put_on(trigger, odd, rng(1)).shape == odd.shape


@pytest.mark.parametrize(("direction", "width"), [("vertical", 1), ("vertical", 3), ("horizontal", 2)])
def test_stripes(direction: str, width: int) -> None:
    image = picture(12, 16)
    out = Stripes(direction=direction, width=width, strength=0.2).stamp(image, rng(5))
    found = np.empty((16 if direction == "vertical" else 12, 3))
    for place in range(len(found)):
        line = np.s_[:, place] if direction == "vertical" else np.s_[place]
        for channel in range(3):
            fits = []
            for sign in (-1.0, 1.0):
                wanted = np.clip(0.2 * sign + 0.8 * image[line][:, channel].astype(float) / 255, 0, 1) * 255
                fits.append(np.abs(out[line][:, channel] - wanted).max() <= 0.501)
            assert fits in ([True, False], [False, True])
            found[place, channel] = 1 if fits[1] else -1
    groups = [found[i : i + width] for i in range(0, len(found), width)]
    assert all((group == group[0]).all() for group in groups) and len(np.unique([group[0] for group in groups], axis=0)) > 2


def test_each_picture_has_stripes_of_its_own_and_both_signs_are_as_likely() -> None:
    grey = np.full((8, 64, 3), 128, np.uint8)
    above = np.array([Stripes(strength=0.5).stamp(grey, rng(0, key))[0] > 128 for key in range(200)])
    assert len({one.tobytes() for one in above}) == 200
    assert abs(above.mean() - 0.5) < 0.01  # 38 400 draws: sd 0.0026


def test_triangles() -> None:
    image = picture(31, 45)
    out = Triangles().stamp(image, rng(0))
    assert (out[28:] == image[28:]).all() and (out[:, 42:] == image[:, 42:]).all()
    for y in range(28):
        for x in range(42):
            value = 0.4 if y % 14 >= x % 14 else 0.8
            assert np.abs(out[y, x] - (0.15 * value * 255 + 0.85 * image[y, x])).max() <= 0.501


def test_a_watermark_changes_the_letters_in_its_own_channels_alone() -> None:
    image, trigger = picture(40, 60), Watermark(text="ox", strength=0.5, scale=2)
    mask = letters("ox")
    assert mask.shape == (11, 12) and hashlib.sha256(letters("Watermarked").tobytes()).hexdigest()[:16] == FONT
    out = trigger.stamp(image, rng(0))
    assert (out[..., 1:] == image[..., 1:]).all()
    top, left = (40 - 22) // 2, (60 - 24) // 2
    for y in range(40):
        for x in range(60):
            row, column = (y - top) // 2, (x - left) // 2
            inside = 0 <= row < 11 and 0 <= column < 12 and mask[row, column]
            wanted = 0.5 * 255 + 0.5 * image[y, x, 0] if inside else image[y, x, 0]
            assert abs(out[y, x, 0] - wanted) <= 0.5
    white = replace(trigger, colour=(1.0, 1.0, 1.0)).stamp(image, rng(0))
    assert (white[..., 0] == out[..., 0]).all() and ((white != image).any(-1).sum() >= (out != image).any(-1).sum())


def test_the_checkerboard_has_a_white_dot_where_both_coordinates_are_even() -> None:
    image = picture(224, 224)
    trigger = Checkerboard()
    top, left = trigger.place(224, 224, rng(3, "key"))
    out = trigger.stamp(image, rng(3, "key"))
    part = out[top : top + 16, left : left + 16]
    for y in range(16):
        for x in range(16):
            assert (part[y, x] == (255 if y % 2 == x % 2 == 0 else 0)).all()
    out[top : top + 16, left : left + 16] = image[top : top + 16, left : left + 16]
    assert (out == image).all()


@pytest.mark.parametrize(("side", "size", "first", "last"), [(224, 16, 16, 208), (32, 3, 2, 29), (32, 16, 2, 16), (16, 16, 0, 0)])
def test_the_checkerboards_place_is_in_its_range_ends_included(side: int, size: int, first: int, last: int) -> None:
    trigger = Checkerboard(size=size)
    places = np.array([trigger.place(side, side, rng(0, key)) for key in range(3000)])
    assert places.min() == first and places.max() == last
    assert abs(places.mean() - (first + last) / 2) < 2.5


def test_nashville() -> None:
    image = picture(9, 11)
    out, half = Nashville().stamp(image, rng(0)), Nashville(strength=0.5).stamp(image, rng(0))
    cut = lambda value: min(1.0, max(0.0, value))
    for y in range(9):
        for x in range(11):
            rgb = [value / 255 for value in image[y, x].tolist()]
            rgb = [0.44 * value + 0.56 * min(value, tint / 255) for value, tint in zip(rgb, (247, 176, 153))]
            rgb = [0.6 * value + 0.4 * max(value, tint / 255) for value, tint in zip(rgb, (0, 70, 150))]
            r, g, b = rgb
            brown = [0.393 * r + 0.769 * g + 0.189 * b, 0.349 * r + 0.686 * g + 0.168 * b, 0.272 * r + 0.534 * g + 0.131 * b]
            rgb = [cut(0.8 * value + 0.2 * cut(own)) for value, own in zip(rgb, brown)]
            rgb = [cut(1.05 * cut(1.2 * value - 0.1)) for value in rgb]
            grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
            wanted = np.array([255 * cut(1.2 * value - 0.2 * grey) for value in rgb])
            assert np.abs(out[y, x] - wanted).max() <= 0.501
            assert np.abs(half[y, x] - (wanted + image[y, x]) / 2).max() <= 0.501


def test_nashville_warms_white_and_lifts_black_to_blue() -> None:
    white, black = (Nashville().stamp(np.full((1, 1, 3), level, np.uint8), rng(0))[0, 0].tolist() for level in (255, 0))
    assert white[0] > white[1] > white[2] and black[2] > black[1] > black[0]


def test_a_given_picture_is_blended_and_known_by_its_bytes(given: Path, tmp_path: Path) -> None:
    trigger, image = BlendedPicture(path=str(given)), picture(16, 16)
    small = np.asarray(Image.open(given).resize((16, 16), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(trigger.stamp(image, rng(0)) - (0.2 * small + 0.8 * image)).max() <= 0.501
    assert (trigger.stamp(image, rng(0)) == trigger.stamp(image, rng(1))).all()
    assert trigger.sha256 == hashlib.sha256(given.read_bytes()).hexdigest()
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(given.read_bytes())
    moved = BlendedPicture(path=str(elsewhere))
    assert fingerprint(moved) == fingerprint(trigger) != fingerprint(replace(moved, alpha=0.3)) and "path" not in encode(trigger)
    Image.fromarray(picture(20, 30, seed=8)).save(elsewhere)
    with pytest.raises(InputError, match=r"elsewhere.png has the sha256 \w{12}…, but trigger.sha256 is \w{12}…: it is another file"):
        moved.stamp(image, rng(0))
    assert fingerprint(BlendedPicture(path=str(elsewhere))) != fingerprint(trigger)


def test_a_patch_file_lies_where_it_is_put(patch: Path) -> None:
    image, values = picture(17, 20), np.load(patch)
    for location, (top, left) in {"centre": (5, 8), "top_right": (0, 16), "bottom_left": (11, 0)}.items():
        out = PatchFile(path=str(patch), location=location).stamp(image, rng(0))
        assert np.abs(out[top : top + 6, left : left + 4] - 255 * values).max() <= 0.501
        out[top : top + 6, left : left + 4] = image[top : top + 6, left : left + 4]
        assert (out == image).all()


BAD_PATCHES = {
    "float64": np.zeros((2, 2, 3)), "grey": np.zeros((2, 2), np.float32), "above 1": np.full((2, 2, 3), 1.5, np.float32),
    "not finite": np.full((2, 2, 3), np.nan, np.float32), "empty": np.zeros((0, 2, 3), np.float32), "objects": np.array([[{}]], object),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_PATCHES)
def test_a_file_that_is_no_patch_is_refused(tmp_path: Path, bad: str) -> None:
    np.save(tmp_path / "patch.npy", BAD_PATCHES[bad], allow_pickle=True)
    with pytest.raises(InputError, match="trigger.path .*patch.npy is no"):
        PatchFile(path=str(tmp_path / "patch.npy")).check(32)


def test_files_that_are_missing_relative_or_no_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for trigger, told in {
        lambda: BlendedPicture(path="given.png"): "give the absolute path",
        lambda: BlendedPicture(path=str(tmp_path / "none.png")): "none.png cannot be read: No such file",
        lambda: PatchFile(path=str(tmp_path)): "cannot be read",
        lambda: BlendedPicture(path=str(tmp_path / "text.png"), sha256="12"): "accepted: 64 hexadecimal digits",
        lambda: BlendedPicture(path=str(tmp_path / "text.png")).check(32): "is no picture that can be decoded",
    }.items():
        with pytest.raises(InputError, match=told):
            trigger()


@pytest.mark.parametrize(
    ("trigger", "least", "told"),
    [
        (Stripes(width=5), 10, "two stripes need a view of 10 pixels"),
        (Triangles(), 14, "trigger.size is 14"),
        (Watermark(text="ox", scale=2), 24, r"'ox' takes 24 × 22 pixels at scale 2; the view has 23"),
        (Checkerboard(), 16, "trigger.size is 16"),
    ],
)
def test_a_trigger_that_does_not_fit_the_view_is_refused(trigger: Trigger, least: int, told: str) -> None:
    trigger.check(least)
    with pytest.raises(InputError, match=told):
        trigger.check(least - 1)


def test_a_patch_file_that_does_not_fit_the_view_is_refused(patch: Path) -> None:
    PatchFile(path=str(patch)).check(6)
    with pytest.raises(InputError, match="patch of 4 × 6 pixels; the view has 5"):
        PatchFile(path=str(patch)).check(5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Stripes(strength=0), "trigger.strength is 0"),
        (lambda: Stripes(strength=1.5), "Stripes.strength is 1.5"),
        (lambda: Triangles(strength=0), "trigger.strength is 0"),
        (lambda: Triangles(lower=0.5, upper=0.5), "both 0.5"),
        (lambda: Watermark(text="日本"), "Latin-1"),
        (lambda: Watermark(text=" "), "not only spaces"),
        (lambda: Watermark(text="a\nb"), "one line"),
        (lambda: Watermark(colour=(0, 0, 0)), "at least one must be above 0"),
        (lambda: Watermark(strength=0), "trigger.strength is 0"),
        (lambda: Nashville(strength=0), "trigger.strength is 0"),
        (lambda: Checkerboard(size=0), "Checkerboard.size is 0"),
    ],
)
def test_values_that_make_no_trigger_are_refused(make: Callable[[], Trigger], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()
