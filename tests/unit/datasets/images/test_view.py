"""Decoding, the canonical view, the augmentations, and the trigger's visibility."""

import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.errors import InputError
from datasets.images import augment
from datasets.images.resize import resize
from datasets.images.view import DecodeError, Views, canonical, decode, first_view, second_view, visibility
from datasets.seeding import rng
from datasets.triggers.blended import Blended
from datasets.triggers.patch import Patch


def encoded(picture, format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def photo(height, width, seed=0):
    """Smooth colours with some detail, uint8 [H, W, 3]."""
    small = rng(seed, "photo").integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng(seed, "grain").integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None], 30, axis=0))
    if mode in ("I;16", "I"):
        wide = np.asarray(grey).astype(np.uint16) * 257
        picture = Image.fromarray(wide) if mode == "I;16" else Image.fromarray(wide.astype(np.int32))
        assert picture.mode == mode
    elif mode == "P":
        picture = grey.convert("RGB").quantize(256)
    else:
        picture = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else grey.convert(mode)
    image = decode(encoded(picture, "TIFF"))
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    if mode != "1":
        assert np.abs(image[0].mean(axis=1) - np.linspace(0, 255, 40)).max() < 6


def test_sixteen_bit_png_is_scaled_and_not_clipped():
    wide = (np.arange(64, dtype=np.uint16) * 1040)[None].repeat(8, 0)
    assert np.abs(decode(encoded(Image.fromarray(wide)))[0, :, 0] - wide[0] / 257).max() <= 0.5


def test_transparent_pixels_lie_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (200, 100, 0, 255))
    image = decode(encoded(clear))
    assert tuple(image[0, 0]) == (200, 100, 0) and (image[1:] == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 1), 1)
    image = decode(encoded(palette, transparency=0))
    assert tuple(image[1, 1]) == (40, 50, 60) and (image[0] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_shows(mode):
    data = encoded(Image.fromarray(photo(45, 61)).convert(mode), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 2


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(Image.fromarray(photo(45, 61)), "JPEG")
    assert (decode(data + b"trailing") == decode(data)).all()


def png_of(width, height):
    """A PNG that only claims its size."""
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_decompression_bombs_are_refused(size):
    with pytest.raises(DecodeError):
        decode(png_of(*size))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_broken_bytes_raise_decode_error_and_nothing_else(format, data):
    whole = bytearray(encoded(Image.fromarray(photo(24, 24)), format))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        image = decode(cut)
    except DecodeError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (300, 300), (224, 900), (100, 140), (37, 1000), (640, 481)])
def test_canonical_is_pillows_resize_and_crop(shape):
    image = photo(*shape)
    picture = Image.fromarray(image)
    expected = torchvision.transforms.Resize(224, torchvision.transforms.InterpolationMode.BICUBIC)(picture)
    expected = np.asarray(torchvision.transforms.CenterCrop(224)(expected)).astype(int)
    got = canonical(image, 224)
    assert got.shape == (224, 224, 3) and got.dtype == np.uint8
    assert np.abs(got - expected).mean() < 0.5


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("shape", [(300, 400), (333, 251), (224, 224), (63, 65), (7, 200), (200, 3), (1, 90), (90, 1), (1, 1)])
def test_resize_is_bit_for_bit_that_of_planes(shape, mode):
    """The channels lie side by side in memory for the sake of speed; torch makes the same bytes of one plane after the other."""
    grain = rng(0, "grain", *shape).integers(0, 256, (*shape, 4), dtype=np.uint8)
    picture = Image.fromarray(grain[..., 0] if mode == "L" else grain if mode == "RGBA" else grain[..., :3])
    image_HWC = decode(encoded(picture))
    part_HWC = image_HWC[: -(-shape[0] * 2 // 3), shape[1] // 3 :]  # rows with a gap between them
    for source_HWC in (image_HWC, part_HWC, image_HWC[..., :1], grain):
        for size in ((224, 224), (64, 85), (33, 31), (1, 50), (50, 1), source_HWC.shape[:2]):
            planes_1CHW = torch.from_numpy(source_HWC.transpose(2, 0, 1).copy())[None]
            wanted_1CHW = torch.nn.functional.interpolate(planes_1CHW, size, mode="bicubic", antialias=True)
            out_HWC = resize(source_HWC, *size)
            assert np.array_equal(out_HWC, wanted_1CHW[0].numpy().transpose(1, 2, 0))
            assert out_HWC.flags.c_contiguous and out_HWC.flags.writeable and not np.shares_memory(out_HWC, source_HWC)


def test_resize_without_vector_instructions():
    """torch takes other code then. With the stride that tells channels_last, that code is wrong for a result one pixel wide."""
    script = """if True:
        import numpy as np, torch
        from datasets.images.resize import resize
        assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
        for shape in ((30, 40), (40, 1), (1, 40), (33, 51)):
            image_HWC = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            planes_1CHW = torch.from_numpy(image_HWC.transpose(2, 0, 1).copy())[None]
            for size in ((64, 85), (21, 17), (50, 1), (1, 50), shape):
                wanted_1CHW = torch.nn.functional.interpolate(planes_1CHW, size, mode="bicubic", antialias=True)
                assert np.array_equal(resize(image_HWC, *size), wanted_1CHW[0].numpy().transpose(1, 2, 0)), (shape, size)
    """
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, check=True, timeout=120)


def test_canonical_of_odd_pictures():
    assert canonical(photo(32, 32), 32).shape == (32, 32, 3)
    square = photo(32, 32)
    assert canonical(square, 32) is square
    for shape in [(1, 1), (1, 5000), (5000, 1), (2, 3)]:
        image = photo(*shape)
        assert canonical(image, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("name", sorted({op for pair in augment.AUTOAUGMENT_IMAGENET for op, *_ in pair}))
def test_autoaugment_operations_are_torchvisions(name):
    from torchvision.transforms import autoaugment as peer

    picture = Image.fromarray(photo(40, 40))
    auto = peer.AutoAugment()
    assert [tuple(map(tuple, pair)) for pair in auto.policies] == [tuple(pair) for pair in augment.AUTOAUGMENT_IMAGENET]
    space = auto._augmentation_space(10, (40, 40))
    for level in range(10):
        for negative in (False, True):
            magnitudes, signed = space[name]
            magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
            magnitude = -magnitude if signed and negative else magnitude
            nearest = torchvision.transforms.InterpolationMode.NEAREST
            expected = np.asarray(peer._apply_op(picture, name, magnitude, interpolation=nearest, fill=None)).astype(int)
            got = np.asarray(augment.apply([augment.autoaugment_step(name, level, negative)], np.asarray(picture))).astype(int)
            assert (np.abs(got - expected).max(axis=2) > 1).mean() < 0.01


@pytest.mark.parametrize("kind", ["autoaugment", "simclr", "none"])
def test_views_are_functions_of_the_generator(kind):
    views = Views(size=32, augment=kind, crop=(0.5, 1.0), flip=True)
    image, before = photo(32, 32), torch.get_rng_state()
    kept = image.copy()
    for make in (first_view, second_view):
        results = [make(image, views, rng(i)) for i in range(12)]
        assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view in results)
        assert all((view == make(image, views, rng(i))).all() for i, view in enumerate(results))
        assert kind == "none" and make is second_view or len({view.tobytes() for view in results}) > 6
    assert (image == kept).all() and (torch.get_rng_state() == before).all()


def test_visibility_is_whole_where_nothing_is_cut():
    images = [photo(64, 64, seed=i) for i in range(20)]
    keys = [str(i) for i in range(20)]
    views = Views(size=64, augment="none")
    assert visibility(Patch(pattern="white"), images, keys, views, 0) == {"eval": 100, "train": 100, "augmented": 100}


def test_visibility_sees_what_crops_remove():
    images = [photo(64, 64, seed=i) for i in range(100)]
    keys = [str(i) for i in range(100)]
    corner = Patch(size=8, location="bottom_right", pattern="white")
    shares = visibility(corner, images, keys, Views(size=64, crop=(0.08, 1.0), augment="autoaugment"), 0)
    assert shares["eval"] == 100 and shares["train"] < 25 and shares["augmented"] > 80
    centre = visibility(Patch(size=8, location="centre", pattern="white"), images, keys, Views(size=64, crop=(0.5, 1.0)), 0)
    assert centre["train"] > 85
    faint = visibility(Blended(alpha=0.02), images, keys, Views(size=64, augment="autoaugment"), 0)
    assert faint["eval"] == 100 and faint["augmented"] < 95


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="Views.augment is .*; accepted: autoaugment, simclr, none"):
        Views(augment="randaugment")
    with pytest.raises(InputError, match="views.crop"):
        Views(crop=(0.5, 2.0))
