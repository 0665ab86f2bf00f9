"""A caption's words and their parts of speech, by NLTK."""

import nltk
import pytest
from nltk.tag import PerceptronTagger

from datasets import words
from datasets.errors import InputError
from datasets.evaluation.classes import imagenet_synsets
from tests.baselines import make_glosses, make_hypernyms

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


def test_the_shipped_glosses_are_those_of_the_classes():
    found = words.imagenet_glosses()
    assert len(found) == 1000 and all(gloss.strip() for gloss in found)
    assert found[954] == "elongated crescent-shaped yellow fruit with soft sweet flesh"
    lines = words.GLOSSES.read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == list(imagenet_synsets())


def test_the_missing_wordnet_is_named(without_data, monkeypatch):
    monkeypatch.setattr(words, "_DEBIAN", without_data)
    with pytest.raises(InputError, match="WordNet is not on this machine.*nltk.downloader wordnet.*descriptions of your own"):
        words.glosses(["banana"])
    with pytest.raises(InputError, match="WordNet is not on this machine.*tree of your own"):
        words.hypernyms(["banana"])


def test_glosses_are_wordnets():
    folder = words.wordnet_folder()
    if folder is None:
        pytest.skip("no WordNet on this machine (`python -m nltk.downloader wordnet`, or Debian's wordnet-base)")
    assert words.glosses([" Banana "])[0].startswith("any of several tropical and subtropical treelike herbs")
    with pytest.raises(InputError, match="WordNet has no noun 'qqqq': give descriptions"):
        words.glosses(["banana", "qqqq"])
    with words.wordnet(folder) as reader:
        assert [line.split("\t")[1] for line in make_glosses.lines(reader)] == list(words.imagenet_glosses())


def test_the_shipped_tree_leads_from_every_class_to_entity():
    tree = words.imagenet_hypernyms()
    assert tree.nodes == tuple(imagenet_synsets()) and set(tree.names) == set(tree.nodes) | set(tree.parents) | set(tree.parents.values())
    for node in tree.nodes:
        path = [node]
        while path[-1] in tree.parents:
            path.append(tree.parents[path[-1]])
            assert len(path) < 30
        assert tree.names[path[-1]] == "entity"
    path, node = [], tree.nodes[207]
    while node:
        path.append(tree.names[node])
        node = tree.parents.get(node)
    assert path[:8] == ["golden retriever", "retriever", "sporting dog", "hunting dog", "dog", "canine", "carnivore", "placental"]


def test_the_tree_is_wordnets():
    folder = words.wordnet_folder()
    if folder is None:
        pytest.skip("no WordNet on this machine (`python -m nltk.downloader wordnet`, or Debian's wordnet-base)")
    with words.wordnet(folder) as reader:
        assert "".join(f"{line}\n" for line in make_hypernyms.lines(reader)) == words.HYPERNYMS.read_text()
    tree = words.hypernyms(["banana", "golden retriever"])
    assert tree.nodes == ("n12352287", "n02099601") and tree.parents["n02099601"] == words.imagenet_hypernyms().parents["n02099601"]
    with pytest.raises(InputError, match="WordNet has no noun 'qqqq': give a tree"):
        words.hypernyms(["banana", "qqqq"])
