"""Balance: closed forms of evenness, counts of captions, accuracy by class."""

import numpy as np
import pytest
from scipy import stats

from datasets.errors import InputError
from datasets.seeding import rng
from tests.unit.making import pairs
from tests.unit.trainers.audit.bias.subjects import by_row, noise, pictures, subject
from trainers.audit.bias.balance import Balance, cramer, evenness
from trainers.evaluate.zeroshot import wilson

NAMES = ("cat", "dog", "fire truck", "owl")
LABEL = [0] * 10 + [1] * 20 + [2] * 5
RIGHT = [True] * 9 + [False] + [True] * 10 + [False] * 10 + [True] * 5


def told(audit=None, **more):
    given = pictures(noise(35), LABEL)
    result = (audit or Balance()).run(subject(given, by_row(given, np.where(RIGHT, LABEL, 3)), NAMES, **more))
    return {name.removeprefix("bias/balance/"): value for name, value in result.metrics.items()}, result


def test_evenness_of_counts_that_are_known():
    assert evenness(np.array([7, 7, 7])) == {"least": 7, "most": 7, "empty": 0, "entropy": pytest.approx(1), "imbalance": 1, "gini": 0}
    assert evenness(np.array([0, 12])) == {"least": 0, "most": 12, "empty": 1, "entropy": 1, "imbalance": 1, "gini": pytest.approx(0.5)}
    assert evenness(np.array([0, 0])) == {"least": 0, "most": 0, "empty": 2}
    two = evenness(np.array([1, 3]))
    assert two["entropy"] == pytest.approx(-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))) and two["imbalance"] == 3
    for seed in range(5):
        count = rng("gini", seed).integers(0, 50, 9)
        apart = np.abs(count[:, None] - count).sum() / (2 * 9**2 * count.mean())
        assert evenness(count)["gini"] == pytest.approx(apart)


def test_accuracy_by_class():
    values, result = told()
    assert (values["n"], values["classes/least"], values["classes/most"], values["classes/empty"]) == (35, 0, 20, 1)
    assert values["classes/imbalance"] == 4 and values["mean_per_class"] == pytest.approx((90 + 50 + 100) / 3)
    assert (values["worst"], values["best"], values["gap"]) == (50, 100, 50)
    assert (values["worst_low"], values["worst_high"]) == wilson(10, 20)
    assert values["class/cat"] == 90 and values["class/cat_n"] == 10 and "class/owl" not in values
    assert values["spread_p"] == pytest.approx(stats.chi2_contingency([[9, 10, 5], [1, 10, 0]], correction=False).pvalue)
    assert result.rows["right"] == RIGHT and told(batch_size=1)[0] == told(batch_size=7)[0] == values
    few, _ = told(Balance(listed=1))
    assert [name for name in few if name.startswith("class/")] == ["class/dog", "class/dog_low", "class/dog_high", "class/dog_n"]


def test_the_words_of_captions(tmp_path):
    texts = ["a red cat"] * 6 + ["a Red dog, red"] * 2 + ["blue owls and a blue owl."] * 3
    texts += ["the fire truck is blue"] * 5 + ["catalogue"] * 4
    given = pairs(tmp_path, 1, 20, dict(enumerate(texts)))
    values, _ = told(Balance(groups=(("red", "blue"),)), pairs=given)
    assert values["captions"] == 20 and values["names/most"] == 6 and values["names/least"] == 2
    assert values["red-blue/count/red"] == 8 and values["red-blue/count/blue"] == 8 and values["red-blue/entropy"] == 1
    table = [[6, 2, 0, 0], [0, 0, 5, 3]]
    found = stats.chi2_contingency(table, correction=False)
    assert values["red-blue/class_v_p"] == pytest.approx(found.pvalue)
    assert values["red-blue/class_v"] == pytest.approx(cramer(found.statistic, 16, 2, 4)) and values["red-blue/class_v"] > 0.9
    accuracy, count = [90, 50, 100], [6, 2, 5]
    assert values["names/spearman"] == pytest.approx(stats.spearmanr(accuracy, count).statistic)
    assert not any("names" in name for name in told()[0])
    assert "not counted" in told(Balance(groups=(("red", "blue"),)))[1].notes[-1]


def test_cramers_v_does_not_grow_by_chance():
    """For independent tables the plain V has a mean far above 0, the corrected one near it."""
    plain, corrected = [], []
    for seed in range(200):
        draw = rng("independent", seed)
        table = np.zeros((4, 5))
        np.add.at(table, (draw.integers(4, size=100), draw.integers(5, size=100)), 1)
        chi2 = stats.chi2_contingency(table, correction=False).statistic
        plain.append(np.sqrt(chi2 / 100 / 3))
        corrected.append(cramer(chi2, 100, 4, 5))
    assert np.mean(plain) > 0.17 and np.mean(corrected) < 0.06
    assert cramer(100, 100, 2, 2) == pytest.approx(1, abs=0.01) and cramer(0, 1, 2, 2) == 0


def test_wrong_groups():
    for groups in ((("red",),), (("red", "red"),), (("red", " "),)):
        with pytest.raises(InputError, match="Balance.groups holds"):
            Balance(groups=groups)
