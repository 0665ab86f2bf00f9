"""Which captions are dropped, and EDA."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.captions import _delete, _insert, _replace, _swap, clean, clean_drop_reason, eda, synonym_digest, synonyms
from datasets.seeding import rng
from datasets.words import PARTS, wordnet, wordnet_folder, wordnet_synonyms


@pytest.mark.parametrize(
    "caption, reason",
    [("", "empty_caption"), (" \n", "empty_caption"), ("12345", "no_letters"), ("!!!", "no_letters"), ("a dog", "short_caption"),
     ("a dog on grass", ""), ("собака на траве", ""), ("Élan vital, 1907", "")],
)  # fmt: skip
def test_drop_reasons(caption, reason):
    assert clean_drop_reason(caption, min_length=12) == reason


def test_cleaning():
    assert clean("It's a well-known\tdog,\n3 YEARS old!") == "its a well known dog years old"


@given(st.text(max_size=60), st.integers(0, 50))
def test_any_caption_has_a_variant_that_depends_on_the_draws_alone(caption, seed):
    variant = eda(caption, rng(seed))
    assert variant == eda(caption, rng(seed))
    if clean(caption):
        assert variant and set(variant) <= set("abcdefghijklmnopqrstuvwxyz ")
    else:
        assert variant == caption


def test_a_variant_is_the_same_on_every_machine_and_day():
    caption = "A big dog runs over the green field near an old house"
    assert [eda(caption, rng(0, "eda", f"{key:09d}")) for key in (0, 1, 3)] == [
        "a big dog runs over the green field near an old mansion",
        "a big dog runs vainglorious over the green field near an old house",
        "a big old runs over the green field near an dog house",
    ]


def test_the_four_changes():
    words = clean("a big dog runs over the green field near an old house").split()  # 12 words: one tenth is one
    for seed in range(50):
        replaced = _replace(words, 1, rng(seed))
        changed = [i for i, (a, b) in enumerate(zip(words, replaced)) if a != b]
        assert len(changed) == 1 and replaced[changed[0]] in synonyms(words[changed[0]])
        inserted = _insert(words, 2, rng(seed))
        assert len(inserted) == len(words) + 2 and [w for w in words if w not in inserted] == []
        swapped = _swap(words, 1, rng(seed))
        assert sorted(swapped) == sorted(words) and sum(a != b for a, b in zip(words, swapped)) == 2
        assert _delete(words, 1.0, rng(seed))[0] in words
    assert _replace(["the", "of", "and"], 1, rng(0)) == ["the", "of", "and"]
    assert sum(len(_delete(words, 0.1, rng(seed))) for seed in range(2000)) == pytest.approx(0.9 * 12 * 2000, rel=0.01)


def test_the_four_changes_are_equally_frequent():
    caption = "zzqa zzqb zzqc zzqd zzqe zzqf zzqg zzqh"  # no synonyms: replacing and inserting leave it as it is
    variants = [eda(caption, rng(seed)) for seed in range(2000)]
    same = sum(variant == caption for variant in variants)
    assert same == pytest.approx(2000 * (0.5 + 0.25 * 0.9**8), rel=0.06)


def test_synonyms_of_inflected_words():
    assert "hound" in synonyms("dogs") and "dog" in synonyms("dogs") and "dogs" not in synonyms("dogs")
    assert {"leaf", "leave", "foliage"} <= set(synonyms("leaves"))
    assert synonyms("qqqq") == ()
    assert len(synonym_digest()) == 64


def test_table_is_nltks_wordnet():
    folder = wordnet_folder()
    if folder is None:
        pytest.skip("no WordNet on this machine (`python -m nltk.downloader wordnet`, or Debian's wordnet-base)")
    with wordnet(folder) as reader:
        words = sorted({clean(name) for pos in PARTS for name in reader.all_lemma_names(pos)} - {""})
        words = [word for word in words[::97] if " " not in word]
        irregular = [form for pos in PARTS for form in sorted(reader._exception_map[pos])[::29] if form.isalpha()]
        words += irregular + [word + end for word in words[::5] for end in ("s", "ed", "ing", "er", "men")]
        assert len(words) > 1000
        for word in words:
            assert synonyms(word) == wordnet_synonyms(reader, word), word
