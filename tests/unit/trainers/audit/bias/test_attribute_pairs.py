"""Pairs that differ in one attribute: models that see it and models that do not."""

import numpy as np
import pytest
from scipy import stats

from datasets.errors import InputError
from datasets.synthetic import COLOURS, World, tiny
from tests.unit.trainers.audit.bias.subjects import by_row, noise, pictures, subject
from trainers.audit.bias.attribute_pairs import AttributePairs

WORLD = tiny()
NAMES = WORLD.class_names


def told(audit, given, answer, names=NAMES, **more):
    result = audit.run(subject(given, answer, names, **more))
    return {name.removeprefix("bias/attribute_pairs/"): value for name, value in result.metrics.items()}, result


def by_paint(image_BHWC):
    """The number of the colour that the most saturated pixels have."""
    found = []
    for image in image_BHWC:
        flat = image.reshape(-1, 3)
        paint = flat[np.argsort(np.ptp(flat, 1))[-20:]].mean(0)
        found.append(np.argmin([np.abs(paint - np.array(COLOURS[name])).sum() for name in WORLD.colours]))
    return np.array(found)


def test_twins_differ_in_their_attribute_and_in_nothing_else():
    world = World(size=48)
    for attribute in ("colour", "background", "size", "grain"):
        twins = world.twins(attribute, 40, seed=3)
        change = np.abs(twins.first.astype(int) - twins.second).max(-1)
        assert twins.labels.tolist() == (np.arange(40) % 10).tolist() and (change.max((1, 2)) > 0).all()
        colourful = np.ptp(twins.first.astype(int), -1) > 60
        if attribute == "colour":  # the ground is the same to the byte
            assert (change[:, :1] == 0).all() and (change > 0).mean() < 0.5
            assert all(change[i][colourful[i]].min() > 20 for i in range(40))
        if attribute == "background":  # a lighter ground under the same shape
            assert (twins.second[:, 0, 0].astype(int) > twins.first[:, 0, 0] + 30).all()
            assert np.median(change[colourful]) == 0
        if attribute == "size":
            small, large = (np.ptp(side.astype(int), -1) > 60 for side in twins[:2])
            assert (small.sum((1, 2)) < large.sum((1, 2))).all() and (change[:, 0, 0] == 0).all()
            place = np.indices((48, 48))
            centres = [np.stack([(place * one).sum((1, 2)) / one.sum() for one in side]) for side in (small, large)]
            assert np.abs(centres[0] - centres[1]).max() < 1.5
        if attribute == "grain":
            assert change.max() <= 13
    few, many = world.twins("size", 5), world.twins("size", 600)
    assert (few.second == many.second[:5]).all() and len(many.labels) == 600
    assert (world.twins("size", 5, seed=1).first != few.first).any()
    with pytest.raises(InputError, match="world.colours has one colour"):
        World(colours=("red",)).twins("colour", 5)


def test_a_model_that_sees_colour_alone_flips_with_colour_alone():
    audit = AttributePairs(world=WORLD, count=60)
    given = pictures(noise(4, size=32))
    values, result = told(audit, given, by_paint)
    assert values["colour/flips"] == 100 and values["colour/flips_low"] > 90 and values["colour/n"] == 60
    assert {values[f"{name}/flips"] for name in ("size", "background", "grain")} == {0}
    assert values["size/p"] == 1 and len(result.rows["key"]) == 240 and result.gallery["first"].shape == (3, 32, 32, 3)
    one, seven = (told(audit, given, by_paint, batch_size=size)[1] for size in (1, 7))
    assert one.metrics == seven.metrics and one.rows == seven.rows


def test_losses_and_gains_against_scipy():
    """The model is right about the class where the ground is dark, and calls everything else class 0."""

    def answer(image_BHWC):
        dark = image_BHWC[:, 0, :].mean((1, 2)) < 62
        known = {image.tobytes(): label for side in twins[:2] for image, label in zip(side, twins.labels)}
        right = [known[np.rint(image).astype(np.uint8).tobytes()] for image in image_BHWC]
        return np.where(dark, right, 0)

    audit = AttributePairs(world=WORLD, count=80, attributes=("background",))
    twins = WORLD.twins("background", 80)
    values, _ = told(audit, pictures(noise(4, size=32)), answer)
    first, second = (answer(side.astype(float)) for side in twins[:2])
    lost, gained = ((first == twins.labels) & (second != twins.labels)).sum(), ((first != twins.labels) & (second == twins.labels)).sum()
    assert lost > 20 and gained == 0 and values["background/lost"] == pytest.approx(100 * lost / 80)
    assert values["background/p"] == pytest.approx(stats.binomtest(int(lost), int(lost), 0.5).pvalue)
    assert values["background/flips"] == pytest.approx(100 * (first != second).mean())
    assert values["background/right_first"] == pytest.approx(100 * (first == twins.labels).mean())


def test_pairs_of_a_file(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("first,second,attribute\nk0,k2,light\nk2,k4,light\nk1,k3,frame/edge\n")
    given = pictures(noise(6), [0, 1, 0, 1, 0, 1])
    audit = AttributePairs(pairs=str(file))
    values, result = told(audit, given, by_row(given, [0, 1, 1, 1, 0, 0]), ("a", "b"))
    assert values["light/n"] == 2 and values["light/flips"] == 100 and values["light/lost"] == values["light/gained"] == 50
    assert values["frame edge/flips"] == 0 and result.rows["key"] == ["k0", "k2", "k1"]
    for text, message in (
        ("first,second,attribute\nk0,z,light\n", "names the key 'z'"),
        ("first,second,attribute\nk0,k1,light\n", "of two classes"),
        ("first,second\nk0,k1\n", "no column 'attribute'"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            told(audit, given, by_row(given, [0] * 6), ("a", "b"))


def test_wrong_fields():
    for fields, text in (({}, "exactly one"), ({"world": WORLD, "pairs": "x.csv"}, "exactly one"),
                         ({"world": WORLD, "attributes": ()}, "at least one")):  # fmt: skip
        with pytest.raises(InputError, match=text):
            AttributePairs(**fields)
    with pytest.raises(InputError, match="has the class 'banana', which the pictures have not"):
        told(AttributePairs(world=WORLD), pictures(noise(2)), by_paint, ("a", "b"))
