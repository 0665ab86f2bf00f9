"""Corruptions: severity, draws by key, and closed forms of those that have one."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2hsv

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.synthetic import World
from tests.unit.trainers.audit.bias.subjects import pictures, subject
from trainers.audit.bias.corrupt import CORRUPTIONS
from trainers.audit.bias.corruptions import Corruptions


def world(size, n=24):
    made = next(World(size=size).pictures("test", n))
    return pictures(made.images, made.labels)


def corrupt(name, image, severity, draw="draw"):
    return CORRUPTIONS[name](image, severity, rng(draw))


def picture(seed=0, size=32):
    smooth = ndimage.gaussian_filter(rng("smooth", seed).random((size, size, 3)), (2, 2, 0), mode="wrap")
    return 0.2 + 0.6 * (smooth - smooth.min()) / np.ptp(smooth)


@pytest.mark.parametrize("size", [32, 64])
def test_each_severity_changes_more_than_the_one_before(size):
    given = world(size)
    audit = Corruptions()
    assert len(audit.names) == 15
    for name in audit.names:
        made = [audit.corrupted(given, name, severity).image_NHWC for severity in (1, 2, 3, 4, 5)]
        change = [np.abs(image.astype(float) - given.image_NHWC).mean() for image in made]
        assert change[0] > 0.5 and (np.diff(change) > 0).all(), (name, change)


def test_a_corruption_depends_on_its_key_its_severity_and_its_seed_alone():
    given = world(24, 6)
    turned = given.part(slice(None, None, -2))
    for name in CORRUPTIONS:
        whole, part = Corruptions().corrupted(given, name, 3), Corruptions().corrupted(turned, name, 3)
        np.testing.assert_array_equal(part.image_NHWC, whole.image_NHWC[::-2])
    for name in ("gaussian_noise", "snow", "frost", "fog", "motion_blur", "elastic_transform", "glass_blur"):
        one, other = (Corruptions(seed=seed).corrupted(given, name, 3).image_NHWC for seed in (0, 1))
        assert (one != other).any(), name


def test_noise_has_the_stated_size():
    grey = np.full((64, 64, 3), 0.5)
    assert np.std(corrupt("gaussian_noise", grey, 3)) == pytest.approx(0.18, rel=0.03)
    assert np.var(corrupt("shot_noise", grey, 2)) == pytest.approx(0.5 / 25, rel=0.06)
    impulse = corrupt("impulse_noise", grey, 5)
    assert np.mean(impulse != grey) == pytest.approx(0.27, abs=0.02) and np.mean(impulse[impulse != grey]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "glass_blur", "zoom_blur", "elastic_transform", "pixelate", "contrast"])
def test_a_picture_of_one_colour_stays_as_it_is(name):
    flat = np.full((32, 32, 3), (51, 102, 153)) / 255
    np.testing.assert_allclose(corrupt(name, flat, 5), flat, atol=1e-9)


def test_blurs_spread_one_point_over_their_kernel():
    point = np.zeros((224, 224, 3))
    point[112, 112] = 1
    disk = corrupt("defocus_blur", point, 5)[..., 0]
    down, across = np.indices(disk.shape) - 112
    assert disk.sum() == pytest.approx(1) and (disk[np.hypot(down, across) > 11.5] < 1e-9).all()
    inner = disk[np.hypot(down, across) < 8]
    assert inner == pytest.approx(np.full(len(inner), 1 / (np.pi * 100)), rel=0.05)
    line = corrupt("motion_blur", point, 5)[..., 0]
    far = np.hypot(down, across)[line > 1e-6]
    assert line.sum() == pytest.approx(1) and 18 < far.max() < 21 and np.linalg.matrix_rank(np.cov(
        np.stack([down, across])[:, line > 1e-6]), tol=3) == 1  # fmt: skip
    for size in (224, 112, 56, 28):  # the same share of the picture: the spread's variance along an axis is r²/4, plus that of the pixels
        point = np.zeros((size, size, 3))
        point[size // 2, size // 2] = 1
        weight = corrupt("defocus_blur", point, 5)[..., 0]
        spread = (weight * (np.indices(weight.shape)[0] - size // 2) ** 2).sum()
        assert spread == pytest.approx((10 * size / 224) ** 2 / 4 + 1 / 6, rel=0.1)


def test_the_others_follow_their_descriptions():
    image = picture()
    for severity, factor in ((1, 0.4), (5, 0.05)):
        made = corrupt("contrast", image, severity)
        assert made.mean((0, 1)) == pytest.approx(image.mean((0, 1))) and made.std((0, 1)) == pytest.approx(factor * image.std((0, 1)))
    assert rgb2hsv(corrupt("brightness", image, 2))[..., 2] == pytest.approx(np.minimum(1, rgb2hsv(image)[..., 2] + 0.2))
    out = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(out, "JPEG", quality=10)
    np.testing.assert_array_equal(np.rint(255 * corrupt("jpeg_compression", image, 4)), np.asarray(Image.open(out)))
    blocks = corrupt("pixelate", picture(size=40), 2)
    assert (blocks[::2, ::2] == blocks[1::2, 1::2]).all() and (blocks[::2, ::2] == blocks[::2, 1::2]).all()
    np.testing.assert_allclose(blocks[::2, ::2], picture(size=40).reshape(20, 2, 20, 2, 3).mean((1, 3)), atol=0.01)
    assert corrupt("fog", image, 5).max() <= image.max() + 1e-9 and corrupt("snow", image, 5).mean() > image.mean()


def test_accuracies_are_those_of_a_model_that_is_known():
    given = world(24, 40)
    audit = Corruptions(names=("gaussian_noise", "jpeg_compression"), severities=(2, 4), count=30)

    def dark(image_BHWC):
        return (image_BHWC.mean((1, 2, 3)) < 95).astype(int)

    labelled = pictures(given.image_NHWC, dark(given.image_NHWC.astype(float)))
    one, seven = (audit.run(subject(labelled, dark, ("light", "dark"), batch_size=size)) for size in (1, 7))
    assert one.metrics == seven.metrics and one.rows == seven.rows
    told = {name.removeprefix("bias/corruptions/"): value for name, value in one.metrics.items()}
    assert told["clean"] == 100 and told["n"] == 30 and len(one.rows["key"]) == 30 * 4
    right = []
    for name in audit.names:
        for severity in audit.severities:
            whole = audit.corrupted(labelled, name, severity)
            right.append(dict(zip(whole.keys, dark(whole.image_NHWC.astype(float)) == labelled.label_N)))
            chosen = [hit for key, hit in right[-1].items() if key in one.rows["key"]]
            assert told[f"{name}/{severity}"] == pytest.approx(100 * np.mean(chosen))
    by_picture = [100 * np.mean([hits[key] for hits in right]) for key in dict.fromkeys(one.rows["key"])]
    half = 1.96 * np.std(by_picture, ddof=1) / np.sqrt(30)
    assert (told["mean"], told["relative"]) == pytest.approx((np.mean(by_picture),) * 2)
    assert told["mean_low"] == pytest.approx(told["mean"] - half) and told["mean_high"] == pytest.approx(min(100, told["mean"] + half))
    assert list(one.gallery) == ["clean", "gaussian noise", "jpeg compression"]
    never = audit.run(subject(labelled, lambda image_BHWC: 1 - dark(image_BHWC), ("light", "dark"))).metrics
    assert never["bias/corruptions/clean"] == 0 and "bias/corruptions/relative" not in never


def test_wrong_fields():
    for fields in ({"names": ()}, {"severities": (1, 1)}, {"severities": (6,)}, {"names": ("rain",)}):
        with pytest.raises(InputError, match=f"Corruptions.{list(fields)[0]}"):
            Corruptions(**fields)
