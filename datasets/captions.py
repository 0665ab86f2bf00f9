"""Captions: which are dropped, and the augmentation EDA (Wei and Zou 2019) for the in-modal loss.

Synonyms come from WordNet 3.0 through a table shipped in `datasets/data`, so an augmented caption does not depend on the corpora installed
on the machine. A worker needs some 30 MB and a third of a second for the table; NLTK's reader needs 380 MB and five seconds.
`tests/baselines/make_synonyms.py` builds the table from NLTK's WordNet (`datasets.words`); a test compares the two.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.seeding import hash64
from datasets.storage import known_sha256
from datasets.text import NotText, decode_text

TABLE = Path(__file__).parent / "data" / "synonyms.txt.gz"
_SUFFIXES = {
    "n": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
          ("men", "man"), ("ies", "y")),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}  # fmt: skip
"""Endings that WordNet replaces, by part of speech (morphy(7WN)): pairs of an ending and the lemma's ending."""
_STOP_WORDS = (
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its "
    "itself they them their theirs themselves what which who whom this that these those am is are was were be been being "
    "have has had having do does did doing a an the and but if or because as until while of at by for with about against "
    "between into through during before after above below to from up down in out on off over under again further then once "
    "here there when where why how all any both each few more most other some such no nor not only own same so than too very "
    "s t can will just don should now"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""EDA's list: these words get no synonym."""


class Caption(NamedTuple):
    """A caption as read, or why there is none."""

    text: str | None
    """Stripped; None if there is none."""
    fault: str = ""
    """Why there is no text: `no_caption`, or `caption_not_text` for bytes or a value that is no text."""

    def drop_reason(self, min_length: int = 0) -> str:
        """Why the sample is unusable, or ""."""
        return self.fault or clean_drop_reason(self.text or "", min_length)


NO_CAPTION = Caption(None, "no_caption")
NOT_TEXT = Caption(None, "caption_not_text")


def as_caption(value: object) -> Caption:
    """A cell or a json value as a caption: text, bytes of text (`datasets.text`), or nothing.

    A byte order mark is removed. Text with NUL characters does not count as text.
    """
    if isinstance(value, bytes):
        try:
            value = decode_text(value, "the caption")
        except NotText:
            return NOT_TEXT  # the reader counts it
    if isinstance(value, str):
        return NOT_TEXT if "\0" in value else Caption(value.removeprefix("\ufeff").strip())
    return NO_CAPTION if value is None else NOT_TEXT


def chosen(captions: Sequence[Caption], choice: str, key: str) -> Sequence[Caption]:
    """Some of a picture's captions, at least one: the `first`, one drawn by its key (`random`), or all (`each`). `first` and `random`
    choose among those that have text."""
    usable = [caption for caption in captions if caption.text]
    if choice == "each" or not usable:
        return captions[: None if choice == "each" else 1] or (NO_CAPTION,)
    return (usable[hash64("caption", key) % len(usable) if choice == "random" else 0],)


def clean_drop_reason(caption: str, min_length: int = 0) -> str:
    """Why a caption makes its sample unusable: `empty_caption`, `no_letters`, or `short_caption` (fewer than `min_length` characters after
    stripping); "" if it does not."""
    caption = caption.strip()
    if not caption:
        return "empty_caption"
    if not any(map(str.isalpha, caption)):
        return "no_letters"
    return "short_caption" if len(caption) < min_length else ""


def clean(caption: str) -> str:
    """EDA's cleaning: remove apostrophes, lower the case, and turn every run of characters other than a–z into one space."""
    caption = re.sub("['’]", "", caption).lower()
    return re.sub("[^a-z]+", " ", caption).strip()


def eda(caption: str, rng: np.random.Generator) -> str:
    """One variant of the caption: cleaned, then changed in one of four ways, drawn at random.

    The ways are synonym replacement, random insertion and random swap (each of a tenth of the words, at least one), and random deletion
    (each word with chance 0.1, never all). A caption without the letters a–z (in another script, say) has no variant and comes back as it
    is.
    """
    words = clean(caption).split()
    if not words:
        return caption
    n = max(1, len(words) // 10)
    kind = int(rng.integers(4))
    if kind == 0:
        words = _replace(words, n, rng)
    elif kind == 1:
        words = _insert(words, n, rng)
    elif kind == 2:
        words = _swap(words, n, rng)
    else:
        words = _delete(words, 0.1, rng)
    return " ".join(words)


def _replace(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Replace up to `n` different words that are not stop words, each by one of its synonyms at all its places."""
    candidates = sorted(set(words) - STOP_WORDS)
    replaced: dict[str, str] = {}
    for i in rng.permutation(len(candidates)):
        choices = synonyms(candidates[i])
        if choices:
            replaced[candidates[i]] = choices[int(rng.integers(len(choices)))]
        if len(replaced) >= n:
            break
    return [replaced.get(word, word) for word in words]


def _insert(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Insert `n` synonyms of random words at random places, with ten attempts each to find a word that has synonyms."""
    words = list(words)
    for _ in range(n):
        for _ in range(10):
            choices = synonyms(words[int(rng.integers(len(words)))])
            if choices:
                words.insert(int(rng.integers(len(words))), choices[int(rng.integers(len(choices)))])
                break
    return words


def _swap(words: list[str], n: int, rng: np.random.Generator) -> list[str]:
    """Swap two random words, `n` times."""
    words = list(words)
    for _ in range(n if len(words) > 1 else 0):
        i, j = rng.choice(len(words), 2, replace=False)
        words[i], words[j] = words[j], words[i]
    return words


def _delete(words: list[str], chance: float, rng: np.random.Generator) -> list[str]:
    kept = [word for word, draw in zip(words, rng.random(len(words))) if draw >= chance]
    return kept or [words[int(rng.integers(len(words)))]]


class _Table(NamedTuple):
    lemmas: dict[str, str]
    """Lemma → its parts of speech with their synonyms, tab-separated as in the file; split when used."""
    irregular: dict[str, list[str]]
    """Part of speech and irregular form → lemmas."""


@lru_cache(maxsize=1)
def _table() -> _Table:
    table = _Table({}, {})
    for line in gzip.decompress(TABLE.read_bytes()).decode().splitlines():
        head, _, rest = line.partition("\t")
        if head.startswith("="):
            form, _, lemmas = rest.partition("\t")
            table.irregular[head[1] + form] = lemmas.split()
        else:
            table.lemmas[head] = rest
    return table


@lru_cache(maxsize=50_000)
def synonyms(word: str) -> tuple[str, ...]:
    """WordNet's synonyms of a lower-case word a–z, in alphabetical order; some consist of several words.

    Like NLTK's `wordnet.synsets(word)`, this looks up the word itself and every word that it may be an inflected form of ("leaves": leaf,
    leave), in every part of speech.
    """
    table, names = _table(), set[str]()
    for pos, suffixes in _SUFFIXES.items():
        bases = table.irregular.get(pos + word)
        if bases is None:
            bases = [word[: -len(old)] + new for old, new in suffixes if word.endswith(old)]
        for lemma in (word, *bases):
            for part in table.lemmas.get(lemma, "").split("\t"):
                if part.startswith(pos):
                    names.update((lemma, *part[2:].split(",")))
    return tuple(sorted(names - {word, ""}))


def synonym_digest() -> str:
    """sha256 of the synonym table, for the fingerprints of stages that depend on it."""
    return known_sha256(TABLE)
