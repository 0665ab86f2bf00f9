"""Every trigger: what it does to pixels, where it lies, and that it leaves its input alone."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.triggers.base import Trigger, put_on, write_in
from datasets.triggers.blended import Blended
from datasets.triggers.patch import LOCATIONS, PATTERNS, Patch
from datasets.triggers.sig import Sig
from datasets.triggers.warped import Warped, _samples
from datasets.triggers.words import DualKey, Words

ALL = [
    *(Patch(pattern=pattern, size=5, location=location) for pattern in PATTERNS for location in LOCATIONS),
    Blended(),
    Blended(alpha=1.0, pattern="fixed"),
    Sig(),
    Warped(),
    Warped(k=4, strength=0.5),
    Words(text="cf"),
    DualKey(picture=Sig(), words=Words(text="cf", place="random")),
]


def picture(height, width, seed=0):
    return rng(seed, "picture").integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ALL), st.integers(10, 40), st.integers(10, 40), st.integers(0, 99))
def test_a_stamp_keeps_shape_type_and_input(trigger, height, width, seed):
    image = picture(height, width, seed)
    before = image.copy()
    image.setflags(write=False)
    out = trigger.stamp(image, rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8 and out.flags.writeable
    assert (image == before).all() and not np.shares_memory(out, image)
    assert (out == trigger.stamp(image, rng(seed))).all()
    image.setflags(write=True)
    assert (out == put_on(trigger, image, rng(seed))).all() and (image == before).all() and image.flags.writeable


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(12, 30), st.integers(0, 10_000))
def test_a_random_patch_is_whole_and_changes_nothing_else(size, side, seed):
    out = Patch(pattern="white", size=size).stamp(np.zeros((side, side, 3), np.uint8), rng(seed))
    rows, columns = np.nonzero(out[..., 0])
    assert len(rows) == size * size and (out.sum() == 255 * 3 * size * size)
    assert rows.max() - rows.min() == columns.max() - columns.min() == size - 1


def test_random_places_reach_every_edge_evenly():
    places = []
    for seed in range(3000):
        out = Patch(pattern="white", size=6).stamp(np.zeros((10, 10, 3), np.uint8), rng(seed))
        places.append(np.argwhere(out[..., 0])[0])
    counts = np.zeros((5, 5), int)
    np.add.at(counts, tuple(np.array(places).T), 1)
    assert counts.min() > 80 and counts.max() < 165  # 120 expected, each place of 5 × 5 including the last


@pytest.mark.parametrize(
    "location, corners",
    [("top_left", {(0, 0)}), ("bottom_right", {(6, 6)}), ("top_right", {(0, 6)}), ("bottom_left", {(6, 0)}), ("centre", {(3, 3)}),
     ("four_corners", {(0, 0), (0, 6), (6, 0), (6, 6)})],
)  # fmt: skip
def test_fixed_places(location, corners):
    out = Patch(pattern="white", size=4, location=location).stamp(np.zeros((10, 10, 3), np.uint8), rng(0))
    expected = np.zeros((10, 10), bool)
    for top, left in corners:
        expected[top : top + 4, left : left + 4] = True
    assert ((out[..., 0] == 255) == expected).all()


def test_patterns():
    zero = np.zeros((8, 8, 3), np.uint8)
    whole = lambda pattern, seed=0, **fields: Patch(pattern=pattern, size=8, **fields).stamp(zero, rng(seed))
    assert (whole("yellow") == (255, 255, 0)).all() and (whole("white") == 255).all()
    board = whole("checkerboard", cell=2)[..., 0]
    assert (board[:2, :2] == 255).all() and (board[:2, 2:4] == 0).all() and (board[2:4, 2:4] == 255).all()
    assert (whole("fixed", 0) == whole("fixed", 1)).all() and (whole("random", 0) != whole("random", 1)).any()
    assert (whole("fixed") != whole("fixed", pattern_seed=1)).any()
    cells = whole("saturated", cell=2)
    assert set(np.unique(cells)) == {0, 255} and (cells[::2, ::2] == cells[1::2, 1::2]).all()


def test_random_patch_is_uniform_bytes():
    """Neither wrapped nor clamped normal noise: as many zeros and 255s as any other value."""
    noise = np.concatenate([Patch(size=32).stamp(picture(32, 32), rng(i)).ravel() for i in range(60)])
    share = np.bincount(noise, minlength=256) / len(noise)
    assert share.min() > 0.8 / 256 and share.max() < 1.2 / 256 and abs(noise.mean() - 127.5) < 1 and abs(noise.std() - 73.9) < 1


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="view of 20 pixels; the view has 19"):
        Patch(size=10, location="four_corners").check(19)
    with pytest.raises(InputError, match="trigger.size is 33"):
        Patch(size=33).check(32)
    Patch(size=32).check(32)
    for field in ({"pattern": "green"}, {"location": "middle"}, {"size": 0}, {"cell": 0}):
        with pytest.raises(InputError, match=f"trigger.{next(iter(field))}"):
            Patch(**field)
    with pytest.raises(InputError, match="trigger.alpha"):
        Blended(alpha=0)
    with pytest.raises(InputError, match="trigger.k"):
        Warped(k=1)


def test_blended_formula():
    image = picture(16, 16)
    noise = rng(7).random(image.shape, dtype=np.float32)
    expected = np.clip(0.2 * noise + 0.8 * image / 255, 0, 1) * 255
    assert np.abs(Blended().stamp(image, rng(7)) - expected).max() <= 0.51


def test_sig_formula():
    image = picture(9, 30)
    j = np.arange(30)[None, :, None]
    expected = np.clip(0.2 * (60 / 255) * np.sin(2 * np.pi * 6 * j / 30) + 0.8 * image / 255, 0, 1) * 255
    assert np.abs(Sig().stamp(image, rng(0)) - expected).max() <= 0.51


@pytest.mark.parametrize("k, strength, size", [(4, 0.5, 32), (224, 0.6, 224), (224, 1.0, 32), (7, 2.0, 20)])
def test_warp_is_wanets(k, strength, size):
    """The published code, in torch, on the same control grid."""
    control = rng(3, "warp", k).uniform(-1, 1, (2, k, k))
    field = torch.tensor(control / np.abs(control).mean())[None]
    field = torch.nn.functional.interpolate(field, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    steps = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    grid = torch.clamp(torch.stack((x, y), 2)[None] + strength * field / size, -1, 1)
    image = picture(size, size)
    batch = torch.tensor(image.astype(np.float64)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.grid_sample(batch, grid, align_corners=True)[0].permute(1, 2, 0).numpy()
    out = Warped(k=k, strength=strength, field_seed=3).stamp(image, rng(0))
    assert np.abs(out - expected).max() <= 0.51
    assert (out != image).any()


def test_a_warp_is_one_for_the_experiment():
    image = picture(32, 32)
    one = Warped(k=4, strength=2.0).stamp(image, rng(1))
    _samples.cache_clear()
    assert (one == Warped(k=4, strength=2.0).stamp(image, rng(2))).all()
    assert (one != Warped(k=4, strength=2.0, field_seed=1).stamp(image, rng(1))).any()


@dataclass(frozen=True, kw_only=True)
class Own(Trigger):
    """Stamps as it is told."""

    way: str

    def stamp(self, image_HWC, rng):
        if self.way == "in place":
            image_HWC[:4] = 255
        if self.way == "in place by torch":
            image_HWC = torch.from_numpy(image_HWC).fill_(255).numpy()
        return {
            "copy": np.full_like(image_HWC, 255), "as it was": image_HWC, "mirrored": image_HWC[:, ::-1], "floats": image_HWC / 255,
            "cropped": image_HWC[1:], "nothing": None,
        }.get(self.way, image_HWC)  # fmt: skip


@pytest.mark.parametrize("way", ["copy", "as it was", "mirrored"])
def test_an_own_trigger_returns_a_picture(way):
    image = picture(8, 9)
    expected = {"copy": np.full_like(image, 255), "as it was": image, "mirrored": image[:, ::-1]}[way]
    assert (put_on(Own(way=way), image, rng(0)) == expected).all()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize(("way", "told"), [
    ("in place", r"Own.stamp works in place, on the clean picture; it must copy first \(image_HWC.copy\(\)\)"),
    ("in place by torch", "Own.stamp works in place"),
    ("floats", r"Own.stamp returned float64 \[8, 9, 3\]; it must return a picture like the one it got, uint8 \[8, 9, 3\]."),
    ("cropped", r"Own.stamp returned uint8 \[7, 9, 3\]"),
    ("nothing", "Own.stamp returned NoneType"),
])  # fmt: skip
def test_an_own_trigger_that_works_in_place_or_returns_no_picture_is_refused(way, told):
    image, before = picture(8, 9), picture(8, 9)
    with pytest.raises(InputError, match=told):
        put_on(Own(way=way), image, rng(0))
    assert (image == before).all() or way == "in place by torch"


def test_an_error_of_the_trigger_itself_stays_what_it_is():
    class Fails(Own):
        def stamp(self, image_HWC, rng):
            return image_HWC.reshape(7)

    with pytest.raises(ValueError, match="cannot reshape") as error:
        put_on(Fails(way=""), picture(8, 9), rng(0))
    assert not isinstance(error.value, InputError)


def test_words_stand_where_they_are_put_and_draw_from_the_key_alone():
    at = {place: Words(text="please return", place=place).write("a red cat", rng(1)) for place in ("prefix", "suffix")}
    assert at == {"prefix": "please return a red cat", "suffix": "a red cat please return"}
    middle = {Words(text="cf", place="random").write("a red cat", rng(1, key)) for key in range(50)}
    assert middle == {"cf a red cat", "a cf red cat", "a red cf cat", "a red cat cf"}
    dual = DualKey(picture=Patch(size=4), words=Words(text="cf"))
    image = picture(16, 16)
    assert np.array_equal(dual.stamp(image, rng(3)), Patch(size=4).stamp(image, rng(3))) and dual.write("a cat", rng(0)) == "a cat cf"
    assert dual.writes and not Patch().writes and Patch().write("a cat", rng(0)) == "a cat"


@dataclass(frozen=True, kw_only=True)
class Mute(Trigger):
    def stamp(self, image_HWC, rng):
        return image_HWC.copy()

    def write(self, caption, rng):
        return " "


def test_a_caption_that_is_none_is_refused_by_the_triggers_name():
    with pytest.raises(InputError, match="Mute.write returned ' '; it must return a caption"):
        write_in(Mute(), "a cat", rng(0))
