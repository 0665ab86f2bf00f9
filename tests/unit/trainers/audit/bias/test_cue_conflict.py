"""Cue conflict: a model that sees colour alone, one that sees edges alone, and pictures that depend on their keys."""

import colorsys

import numpy as np
import pytest
from scipy import ndimage

from datasets.errors import InputError
from datasets.seeding import rng
from datasets.synthetic import COLOURS
from tests.unit.trainers.audit.bias.subjects import by_row, pictures, shapes, subject
from trainers.audit.bias.cue_conflict import CueConflict, outline

NAMES, PAINT = ("circle", "cross", "triangle", "banana"), ("red", "green", "blue", "yellow")
AUDIT = CueConflict(count=24)


def by_colour(image_BHWC):
    """The class whose colour has the hue that most saturated pixels are near to; pixels that are grey do not count."""
    hues = np.array([colorsys.rgb_to_hsv(*COLOURS[name])[0] for name in PAINT])
    found = []
    for image in image_BHWC:
        flat = image.reshape(-1, 3)
        chroma = np.ptp(flat, 1)
        hue = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in flat])
        apart = np.abs(hue[:, None] - hues + 0.5) % 1 - 0.5
        nearest = np.abs(apart).argmin(1)
        found.append(np.bincount(nearest, weights=chroma * (chroma > 40), minlength=4).argmax())
    return np.array(found)


def edges(image_HWC):
    """Unit vector: the dark lines and steps of brightness, blurred."""
    grey = ndimage.gaussian_filter(image_HWC.min(-1), 0.7)
    map_HW = ndimage.gaussian_filter(np.hypot(*np.gradient(grey)), 1.5)
    centred = map_HW - map_HW.mean()
    return (centred / np.linalg.norm(centred)).ravel()


def by_edges():
    """The class with the most similar edges among bare outlines of the classes."""
    image_NHWC, label_N = shapes(NAMES, PAINT, 12)
    bare = [np.repeat(90 * (1 - 0.8 * outline(image / 255)[..., None]), 3, axis=-1) for image in image_NHWC]
    full = [np.where(np.ptp(image.astype(float), -1, keepdims=True) > 40, 40.0, 90.0) * np.ones(3) for image in image_NHWC]
    known_MD = np.stack([edges(image) for image in (*bare, *full)])
    label_M = np.concatenate([label_N, label_N])
    return lambda image_BHWC: np.array([label_M[(known_MD @ edges(image)).argmax()] for image in image_BHWC])


def given():
    return pictures(*shapes(NAMES, PAINT, 8))


def told(result):
    return {name.removeprefix("bias/cue_conflict/"): value for name, value in result.metrics.items()}


def test_a_model_that_sees_colour_alone_has_no_shape_share():
    values = told(AUDIT.run(subject(given(), by_colour, NAMES)))
    assert values["shape_share"] == 0 and values["decided"] == values["n"] == 24 and values["texture"] == 100
    assert values["shape_share_high"] < 20 and values["p"] == pytest.approx(2 * 0.5**24)


def test_a_model_that_sees_edges_alone_has_the_whole_shape_share():
    values = told(AUDIT.run(subject(given(), by_edges(), NAMES)))
    assert values["shape_share"] == 100 and values["shape"] > 75, values


def test_pictures_depend_on_their_keys_and_not_on_the_batch():
    everything = given()
    one, seven = (AUDIT.run(subject(everything, by_colour, NAMES, batch_size=size)) for size in (1, 7))
    assert one.metrics == seven.metrics and one.rows == seven.rows
    assert all((one.gallery[title] == seven.gallery[title]).all() for title in ("shape", "texture", "both"))
    assert len(one.gallery["both"]) == 8
    assert one.rows["key"] != CueConflict(count=24, seed=1).run(subject(everything, by_colour, NAMES)).rows["key"]
    assert all(label != other for label, other in zip(one.rows["label"], one.rows["texture_label"]))


def test_only_pictures_that_are_classified_correctly_take_part():
    everything = given()
    answer_N = everything.label_N.copy()
    answer_N[::2] = 3 - answer_N[::2]
    known = by_row(everything, answer_N)

    def answer(image_BHWC):
        try:
            return known(image_BHWC)
        except KeyError:
            return np.full(len(image_BHWC), 2)

    result = AUDIT.run(subject(everything, answer, NAMES))
    right = {key for key, one, other in zip(everything.keys, answer_N, everything.label_N) if one == other}
    assert set(result.rows["key"]) | set(result.rows["texture_key"]) <= right and set(result.rows["key"]) == right
    decision = np.array(result.rows["decision"])
    values = told(result)
    assert values["n"] == len(right) and values["decided"] == (decision != "neither").sum()
    assert values["neither"] == 100 * np.mean(decision == "neither") and set(decision) <= {"neither", "shape", "texture"}
    for answer, names in ((lambda image_BHWC: np.zeros(len(image_BHWC)), NAMES), (lambda image_BHWC: np.full(len(image_BHWC), 3), NAMES)):
        nothing = AUDIT.run(subject(everything, answer, names))
        assert nothing.metrics == {"bias/cue_conflict/n": 0} and "no pictures of two different classes" in nothing.notes[0]
    with pytest.raises(InputError, match="at least 2 classes, and there are 1"):
        AUDIT.check(1, False)


def test_the_surface_is_the_textures_and_the_outline_the_shapes():
    image_NHWC, _ = shapes(NAMES, PAINT, 1, ground=20)
    made = CueConflict(outline=0).stylised(image_NHWC[0], image_NHWC[1], rng("made")).astype(int)
    bare = CueConflict(outline=1).stylised(image_NHWC[0], image_NHWC[1], rng("made")).astype(int)
    assert made[..., 1].max() > 140 and (made[..., 0] < 90).all(), "green, and nothing of the red shape's colour"
    lines = outline(image_NHWC[0] / 255)
    assert (bare[lines == 1] == 0).all() and (bare[lines == 0] == made[lines == 0]).all() and 0.01 < (lines == 1).mean() < 0.3
    assert (outline(np.full((16, 16, 3), 0.4)) == 0).all()
