"""English words by NLTK: WordNet's synonyms, the words of a caption, and their parts of speech.

NLTK takes a second to import, so functions import it when they need it. Functions that read a corpus say which one is missing.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datasets.errors import InputError

PARTS = "nvar"
"""WordNet's parts of speech: noun, verb, adjective, adverb."""
HYPERNYMS = Path(__file__).parent / "data" / "imagenet_hypernyms.txt"
GLOSSES = Path(__file__).parent / "data" / "imagenet_glosses.txt"
NO_TREE = ("tree", "give a tree of your own")
"""For messages: what classes lack without WordNet, and what to do instead."""
_DEBIAN = Path("/usr/share/wordnet")
_TAGGER = "averaged_perceptron_tagger_eng"


def words(caption: str) -> list[str]:
    """The words and signs of a caption, as the Penn Treebank splits them: `isn't` is `is` and `n't`. No corpus is needed."""
    from nltk.tokenize import TreebankWordTokenizer

    return TreebankWordTokenizer().tokenize(caption)


def tagged(caption: str) -> list[tuple[str, str]]:
    """The caption's `words`, each with its part of speech in the Penn Treebank's tags (NN, VBZ, JJ, …).

    InputError if NLTK's tagger is not installed on this machine.
    """
    return _tagger().tag(words(caption))


@lru_cache(maxsize=1)
def _tagger() -> Any:
    from nltk.tag import PerceptronTagger

    try:
        return PerceptronTagger()
    except LookupError:
        raise InputError(f"NLTK's tagger is not on this machine: run `python -m nltk.downloader {_TAGGER}`.") from None


def wordnet_folder() -> Path | None:
    """A folder with WordNet 3.0's files on this machine: NLTK's corpus, or that of Debian's package wordnet-base; None if there is
    neither."""
    import nltk

    try:
        return Path(str(nltk.data.find("corpora/wordnet")))
    except LookupError:
        return _DEBIAN if (_DEBIAN / "data.noun").exists() else None
    except OSError:
        return None


@contextmanager
def wordnet(folder: Path) -> Iterator[Any]:
    """NLTK's reader on a copy of the folder. The reader refuses links, and wants two files that wordnet-base lacks and synonyms do not
    need."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with tempfile.TemporaryDirectory() as root:
        copy = Path(root) / "corpora" / "wordnet"  # where the reader looks for its versions
        copy.mkdir(parents=True)
        for name in sorted(os.listdir(folder)):
            if name.split(".")[0] in ("data", "index", "cntlist", "noun", "verb", "adj", "adv", "lexnames"):
                (copy / name).write_bytes((folder / name).read_bytes().replace(b"\r\n", b"\n"))
        for name, text in (("lexnames", "".join(f"{i:02d}\tfile{i:02d}\t1\n" for i in range(45))), ("index.sense", "")):
            if not (copy / name).exists():
                (copy / name).write_text(text)
        nltk.data.path.insert(0, root)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other languages
                reader = WordNetCorpusReader(str(copy), None)
            yield reader
        finally:
            nltk.data.path.remove(root)


def wordnet_synonyms(reader: Any, word: str) -> tuple[str, ...]:
    """The synonyms that the reader has for a lower-case word, in the form of `captions.synonyms`, which takes them from its table."""
    return tuple(sorted(names_in(reader.synsets(word)) - {word}))


def imagenet_glosses() -> tuple[str, ...]:
    """WordNet 3.0's definition of each of ImageNet's 1000 classes, in their order, without examples; from a table that is shipped."""
    lines = GLOSSES.read_text().splitlines()
    return tuple(line.split("\t")[1] for line in lines)


def glosses(names: Sequence[str]) -> tuple[str, ...]:
    """WordNet's definition of the first noun of each name, without examples.

    InputError if WordNet is not installed on this machine, or a name is no noun in it.
    """
    with _first_nouns(names, "descriptions", "give descriptions of your own") as nouns:
        return tuple(noun.definition() for noun in nouns)


def required_wordnet(wanted: str, instead: str) -> Path:
    """The `wordnet_folder`; InputError if there is none, with what classes lack without it and what to do instead."""
    folder = wordnet_folder()
    if folder is None:
        raise InputError(f"WordNet is not on this machine, so these classes have no {wanted}: run `python -m nltk.downloader wordnet`, or "
                         f"{instead}.")
    return folder


@contextmanager
def _first_nouns(names: Sequence[str], wanted: str, instead: str) -> Iterator[list[Any]]:
    """Within the block: the synset of the first noun of each name. InputErrors say what these classes lack, and what to do instead."""
    with wordnet(required_wordnet(wanted, instead)) as reader:
        senses = [reader.synsets(name.strip().lower().replace(" ", "_"), "n") for name in names]
        unknown = [name for name, synsets in zip(names, senses) if not synsets]
        if unknown:
            listed = ", ".join(map(repr, unknown[:5])) + (" …" if len(unknown) > 5 else "")
            raise InputError(f"WordNet has no noun {listed}: {instead}.")
        yield [synsets[0] for synsets in senses]


class Hypernyms(NamedTuple):
    """Where classes stand in WordNet's tree of nouns."""

    nodes: tuple[str, ...]
    """The WordNet id of each class (`n01440764`)."""
    parents: dict[str, str]
    """Id → id of its hypernym; the root, `entity`, has none. Of several that WordNet lists the one farthest from the root (then of the
    lowest id), because a tree needs one: dog → canine, not dog → domestic animal."""
    names: dict[str, str]
    """Id → the first of its names."""


def imagenet_hypernyms() -> Hypernyms:
    """ImageNet's 1000 classes in WordNet 3.0's tree, in their order; from a table that is shipped."""
    lines = [line.split("\t") for line in HYPERNYMS.read_text().splitlines()]
    parents = {node: parent for node, parent, _ in lines if parent}
    return Hypernyms(tuple(node for node, *_ in lines[:1000]), parents, {node: name for node, _, name in lines})


def hypernyms(names: Sequence[str]) -> Hypernyms:
    """The first noun of each name in the tree of the WordNet that is installed.

    InputError if WordNet is not installed on this machine, or a name is no noun in it.
    """
    with _first_nouns(names, *NO_TREE) as nouns:
        return tree_above(nouns)


def tree_above(synsets: Sequence[Any]) -> Hypernyms:
    """These synsets of NLTK's reader and everything above them."""
    parents: dict[str, str] = {}
    names: dict[str, str] = {}
    waiting = list(synsets)
    while waiting:
        synset = waiting.pop(0)
        node = _id(synset)
        if node not in names:
            names[node] = synset.lemma_names()[0].replace("_", " ")
            above = synset.hypernyms() or synset.instance_hypernyms()
            if above:
                chosen = min(above, key=lambda one: (-one.max_depth(), one.offset()))
                parents[node] = _id(chosen)
                waiting.append(chosen)
    return Hypernyms(tuple(map(_id, synsets)), parents, names)


def _id(synset: Any) -> str:
    return f"n{synset.offset():08d}"


def names_in(synsets: list[Any]) -> set[str]:
    """The names of the lemmas of WordNet's synsets in the form that EDA puts into captions: lower case, only letters a–z and spaces."""
    names = {name for synset in synsets for name in synset.lemma_names()}
    return {re.sub("[^a-z ]", "", re.sub("[_-]", " ", name.lower())).strip() for name in names} - {""}
