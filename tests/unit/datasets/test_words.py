"""A caption's words and their parts of speech, by NLTK."""

import nltk
import pytest
from nltk.tag import PerceptronTagger

from datasets import words
from datasets.errors import InputError

SENTENCES = [
    [("The", "DT"), ("dog", "NN"), ("'s", "POS"), ("ball", "NN"), ("is", "VBZ"), ("n't", "RB"), ("red", "JJ"), (".", ".")],
    [("A", "DT"), ("cat", "NN"), ("sleeps", "VBZ"), ("on", "IN"), ("the", "DT"), ("green", "JJ"), ("sofa", "NN"), (".", ".")],
]


def test_words_are_split_as_the_treebank_splits_them():
    assert words.words("The dog's ball isn't red.") == [word for word, _ in SENTENCES[0]]
    assert words.words("") == [] and words.words("собака на траве") == ["собака", "на", "траве"]


@pytest.fixture
def without_data(tmp_path, monkeypatch):
    """NLTK looks below this folder alone."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    words._tagger.cache_clear()
    yield tmp_path
    words._tagger.cache_clear()


def test_the_missing_tagger_is_named(without_data):
    said = r"NLTK's tagger is not on this machine: run `python -m nltk.downloader averaged_perceptron_tagger_eng`\."
    with pytest.raises(InputError, match=said):
        words.tagged("A dog.")


def test_each_word_has_the_tag_that_the_installed_tagger_gives(without_data):
    folder = without_data / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True, mode=0o700)
    tagger = PerceptronTagger(load=False)
    tagger.train(SENTENCES * 3)
    tagger.save_to_json("eng", str(folder))
    for sentence in SENTENCES:
        assert words.tagged(" ".join(word for word, _ in sentence).replace(" '", "'").replace(" n't", "n't").replace(" .", ".")) == sentence
