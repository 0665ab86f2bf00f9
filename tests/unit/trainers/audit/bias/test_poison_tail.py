"""The poisons' tail: its arithmetic against other libraries, and poisons that are there or not."""

import numpy as np
import pytest
from scipy import stats

from datasets.errors import InputError
from datasets.feed.loader import Recipe
from datasets.images.view import Views
from datasets.seeding import rng
from datasets.triggers.patch import Patch
from tests.unit.making import pairs
from tests.unit.trainers.audit.bias.subjects import noise, pictures, subject
from trainers.audit.bias.poison_tail import PoisonTail, needed_n
from trainers.audit.bias.words_of import compared, table_of

RECIPE = Recipe(views=Views(size=16), trigger=Patch(pattern="white", size=6, location="bottom_right"))
QUICK = PoisonTail(permutations=99, top=(5, 10), strength=1.0)


def captions(n, seed=0):
    draw = rng("captions", seed)
    return [" ".join(draw.choice(["red", "dog", "house", "tree", "sky", "old"], draw.integers(2, 5))) for _ in range(n)]


def tail(audit, given, **more):
    result = audit.run(subject(pictures(noise(4)), lambda image_BHWC: np.zeros(len(image_BHWC)), ("a", "b"), pairs=given, **more))
    return {name.removeprefix("bias/poison_tail/"): value for name, value in result.metrics.items()}, result


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """600 pairs, every eighth a poison; in one copy none, and in one the poisons keep their captions."""
    folder = tmp_path_factory.mktemp("tail")
    victims = range(3, 600, 8)
    plans = {"clean": None, "poisoned": dict.fromkeys(victims, "a photo of a banana"),
             "silent": {row: f"a picture of thing number {row}" for row in victims}}  # fmt: skip
    made = {}
    for name, plan in plans.items():
        (folder / name).mkdir()
        made[name] = pairs(folder / name, 2, 300, plan)
    return made


def test_how_many_pairs_accuracy_needs_is_where_its_test_has_that_power():
    assert needed_n(0.0005) == pytest.approx(2.47e7, rel=0.01)
    for rate in (0.05, 0.01):
        n = round(needed_n(rate))
        critical = stats.binom.ppf(0.95, n, 0.5)
        assert stats.binom.sf(critical, n, 0.5 + rate / 2) == pytest.approx(0.8, abs=0.02)


def test_g_is_that_of_scipy():
    texts = captions(90)
    first_N = np.arange(90) % 3 == 0
    found = compared(texts, first_N, 9, rng("g"))
    table, words = table_of(texts)
    counts = np.stack([table[first_N].toarray().sum(0), table[~first_N].toarray().sum(0)])
    whole = stats.chi2_contingency(counts, correction=False, lambda_="log-likelihood")
    assert (found.g, found.freedom, found.p_chi2) == pytest.approx((whole.statistic, whole.dof, whole.pvalue))
    for word, g, more in zip(found.words, found.g_V, found.more_V):
        has = np.array([word in text.split() for text in texts])
        two = [[(has & side).sum(), (~has & side).sum()] for side in (first_N, ~first_N)]
        assert g == pytest.approx(stats.chi2_contingency(two, correction=False, lambda_="log-likelihood").statistic)
        assert more == pytest.approx(has[first_N].mean() - has[~first_N].mean())
    assert list(found.g_V) == sorted(found.g_V, reverse=True) and set(found.words) == set(words)
    assert compared(["one", "one"], np.array([True, False]), 9, rng("g")) is None


def test_p_by_permutation_keeps_its_level_and_finds_a_planted_word():
    p, word_p = [], []
    for seed in range(80):
        found = compared(captions(60, seed), rng("shard", seed).random(60) < 0.5, 39, rng("permuted", seed))
        p.append(found.p)
        word_p.append(found.p_V.min())
    low, high = stats.binom.ppf([0.0005, 0.9995], 80, 0.2)
    for values in (p, word_p):
        assert low <= (np.array(values) <= 0.2).sum() <= high
    texts = captions(120)
    first_N = np.arange(120) < 60
    planted = [f"{text} banana" if i < 10 else text for i, text in enumerate(texts)]
    found = compared(planted, first_N, 199, rng("planted"))
    assert found.words[0] == "banana" and found.p_V[0] == 1 / 200 and found.more_V[0] == pytest.approx(10 / 60)
    assert compared(planted, first_N, 9, rng("planted"), least=11).words.count("banana") == 0


def test_poisons_with_a_caption_of_their_own_are_in_the_tail(data):
    told, result = tail(PoisonTail(over="captions", permutations=99, top=(5, 10), strength=1.0), data["poisoned"])
    assert told["precision/10"] == 100 and told["tail/10"] == 100 and told["tail/10_p"] == pytest.approx(0.5**10) and told["auroc"] > 0.95
    suspected, poisoned = np.array(result.rows["suspected"]), np.array(result.rows["poisoned"])
    assert told["suspected"] == suspected.sum() and told["poisons"] == poisoned.sum() and not poisoned[~suspected].any()
    assert told["recall/10"] == pytest.approx(1000 / poisoned.sum()) and told["n"] == len(suspected)
    assert told["word_p"] == 0.01 and "banana" in result.notes[-1] and not result.gallery
    assert told["best_accuracy"] == 50 + told["rate"] / 2 and told["needed_n"] == pytest.approx(needed_n(told["rate"] / 100))


def test_poisons_with_a_trigger_alone_are_seen_in_pictures_and_not_in_captions(data):
    told, result = tail(QUICK, data["silent"], recipe=RECIPE)
    assert told["precision/10_low"] > 2 * told["rate"] and told["tail/10_p"] < 0.02 and told["auroc"] > 0.85 and told["g_p"] > 0.01
    assert result.gallery["highest scores"].shape == (6, 16, 16, 3)
    assert (result.gallery["highest scores"][:2, -6:, -6:] == 255).all()
    blind, _ = tail(PoisonTail(over="captions", permutations=9, top=(5,), strength=1.0), data["silent"])
    assert blind["auroc"] < 0.6


def test_without_poisons_nothing_is_alarming(data):
    told, result = tail(QUICK, data["clean"], recipe=RECIPE)
    assert told["poisons"] == 0 and told["tail/10_p"] > 1e-3 and told["g_p"] > 0.01 and told["word_p"] > 0.01
    assert told["accuracy_low"] < told["chance"] and "auroc" not in told and "No poison" in result.notes[0]


def test_batches_do_not_matter(data):
    one, seven = (tail(QUICK, data["silent"], recipe=RECIPE, batch_size=size)[1] for size in (1, 7))
    assert one.rows == seven.rows and one.metrics == seven.metrics


def test_what_is_missing_is_named(data):
    with pytest.raises(InputError, match="needs the pre-training's pairs"):
        tail(QUICK, None)
    with pytest.raises(InputError, match="needs the pre-training's views and triggers"):
        tail(QUICK, data["clean"])
    with pytest.raises(InputError, match="at least 20 pairs in each shard"):
        tail(PoisonTail(over="captions", count=100, trusted=0.9), data["clean"])
