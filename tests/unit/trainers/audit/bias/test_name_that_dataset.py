"""Name that data set: chance where there is nothing to tell, and what is planted is found."""

import numpy as np
import pytest
from scipy import stats

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.index.source import Source
from tests.unit.making import encoded, pairs, tar
from tests.unit.trainers.audit.bias.subjects import noise, pictures, subject
from trainers.audit.bias.name_that_dataset import NameThatDataset

OTHER, THIRD = EvalSet(path="somewhere/other"), EvalSet(path="elsewhere", name="cifar10")
NONE = ("a", "b")


def always(image_BHWC):
    return np.zeros(len(image_BHWC), np.int64)


def found(audit, given, batch_size=64, **sets):
    return audit.run(subject(given, always, NONE, batch_size=batch_size, **sets))


def marked(n, seed, by=60):
    image = noise(n, seed)
    image[:, :6, :6] += by
    return image


@pytest.mark.parametrize("over", ["pixels", "features"])
def test_halves_of_one_set_are_told_apart_by_chance_alone(over):
    right = n = 0
    for seed in range(4):
        result = found(NameThatDataset(over=over, seed=seed, grid=(1e-2,)), pictures(noise(200)))
        prefix = f"bias/name_that_dataset/{over}/control/test"
        assert not result.failures and set(result.metrics) == {prefix + end for end in ("", "_low", "_high", "_n", "_p")}
        n += result.metrics[f"{prefix}_n"]
        right += round(result.metrics[prefix] * result.metrics[f"{prefix}_n"] / 100)
    low, high = stats.binom.ppf([0.0005, 0.9995], n, 0.5)
    assert n == 240 and low <= right <= high


def test_a_control_that_is_not_at_chance_is_a_failure(monkeypatch):
    def cheat(self, parts, names):
        part_N = np.repeat([0, 1], [len(keys) for keys, _ in parts])
        return None, part_N, np.eye(2)[part_N], None

    monkeypatch.setattr(NameThatDataset, "_told", cheat)
    assert "two halves of test are told apart in 100.0 %" in found(NameThatDataset(), pictures(noise(50))).failures[0]


@pytest.mark.parametrize("over", ["pixels", "features"])
def test_a_planted_difference_is_found_and_no_other(over):
    sets = {OTHER: pictures(noise(220, 1), prefix="o"), THIRD: pictures(marked(200, 2), prefix="k")}
    result = found(NameThatDataset(over=over, sets=(OTHER, THIRD), grid=(1e-3,)), pictures(noise(240)), sets=sets)
    told = {name.removeprefix(f"bias/name_that_dataset/{over}/"): value for name, value in result.metrics.items()}
    assert told["recall/cifar10"] > 95 and told["p"] < 1e-6 and told["chance"] == pytest.approx(100 / 3)
    assert told["n"] == 180 and told["each"] == 200 and told["accuracy_low"] < told["accuracy"] < told["accuracy_high"]
    low, high = stats.binom.ppf([0.0005, 0.9995], 120, 0.5) / 1.2
    assert low <= (told["recall/other"] + told["recall/test"]) / 2 <= high, "the two unmarked sets are one"
    assert not result.failures and list(result.gallery) == ["test", "other", "cifar10"] and len(result.gallery["test"]) == 6
    assert len(result.rows["key"]) == 180 and np.mean(result.rows["right"]) * 100 == pytest.approx(told["accuracy"])


def test_neither_batch_nor_order_matters():
    sets = {THIRD: pictures(marked(60, 2, by=20), prefix="m")}
    audit, given = NameThatDataset(sets=(THIRD,)), pictures(noise(60))
    one, seven = (found(audit, given, size, sets=sets) for size in (1, 7))
    assert one.metrics == seven.metrics and one.rows == seven.rows
    turned = found(audit, given.part(slice(None, None, -1)), sets=sets)
    assert turned.metrics == one.metrics and turned.rows == one.rows


def test_the_penalty_is_not_chosen_on_what_is_tested():
    audit = NameThatDataset(over="pixels", sets=(THIRD,), grid=(1e-5, 1e-1))
    given, other = pictures(noise(100)), pictures(marked(100, 1, by=40), prefix="m")
    plain = found(audit, given, sets={THIRD: other})
    for one in (given, other):
        tested = [one.keys.index(key) for key in plain.rows["key"] if key in one.keys]
        one.image_NHWC[tested] = noise(len(tested), 7)
    changed = found(audit, given, sets={THIRD: other})
    name = "bias/name_that_dataset/pixels/"
    assert changed.metrics[name + "C"] == plain.metrics[name + "C"] and changed.rows["key"] == plain.rows["key"]
    assert changed.metrics[name + "accuracy"] < plain.metrics[name + "accuracy"]


def test_captions_of_other_words_are_told_apart(tmp_path):
    other = [(f"{i:04d}.{kind}", data) for i in range(40) for kind, data in
             (("jpg", encoded(noise(1, i)[0])), ("txt", f"a drawing of subject {i}".encode()))]  # fmt: skip
    tar(tmp_path / "drawn" / "00000.tar", other)
    audit = NameThatDataset(over="captions", sources=(Source(urls=str(tmp_path / "drawn")),))
    told = found(audit, pictures(noise(4)), pairs=pairs(tmp_path / "own", 1, 40)).metrics
    assert told["bias/name_that_dataset/captions/accuracy"] == 100 and told["bias/name_that_dataset/captions/n"] == 24
    assert {name.split("/")[-1] for name in told if "recall" in name} == {"pretraining", "drawn"}
    with pytest.raises(InputError, match="which needs the pre-training's pairs"):
        found(audit, pictures(noise(4)))


def test_the_drop_from_set_to_set_is_that_of_swapped_classes():
    """The classes of one set are bright and dark, those of the other the reverse: a classifier of the one is always wrong on the other."""
    label_N = np.arange(80) % 2
    image_NHWC = np.repeat(np.where(label_N, 200, 40), 16 * 16 * 3).reshape(80, 16, 16, 3).astype(np.uint8) + noise(80) // 8
    sets = {THIRD: pictures(image_NHWC, 1 - label_N, prefix="o")}
    told = found(NameThatDataset(over="pixels", sets=(THIRD,), same_classes=True), pictures(image_NHWC, label_N), sets=sets).metrics
    for name in ("test", "cifar10"):
        wanted = {"self": 100, "others": 0, "drop": 100}
        assert {key: told[f"bias/name_that_dataset/pixels/{key}/{name}"] for key in wanted} == wanted


def test_wrong_fields_are_named():
    for fields, text in (
        ({"grid": ()}, "grid is empty"),
        ({"sources": (Source(urls="x"),)}, "sources are captions"),
        ({"over": "captions", "sets": (OTHER,)}, "sets are pictures"),
        ({"same_classes": True}, "same_classes is true"),
    ):
        with pytest.raises(InputError, match=text):
            NameThatDataset(**fields)
    with pytest.raises(InputError, match="at least 20 samples"):
        found(NameThatDataset(), pictures(noise(19)))
    assert NameThatDataset(sets=(OTHER,)).needs() == (OTHER,)
