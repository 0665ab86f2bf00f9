"""Which words differ between two piles of captions: G-tests on unigrams, with p by permutation.

Shape suffixes: N captions, V words, P permutations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, stats
from scipy.special import xlogy

CHUNK = 64
"""Permutations at a time."""


class Words(NamedTuple):
    """What differs."""

    g: float
    """G = 2 Σ O ln(O/E) over the table of piles × words; a word counts once in a caption."""
    freedom: int
    """Words minus 1, the degrees of freedom of G's approximate law."""
    p_chi2: float
    """p of G by that law, which takes words of a caption as independent."""
    p: float
    """p of G by permutation of the captions."""
    words: tuple[str, ...]
    """All words, the most deviating first."""
    g_V: np.ndarray
    """Of each word: G of the table of piles × (caption with the word, caption without it)."""
    p_V: np.ndarray
    """Of each word: p by permutation, corrected for all words by the largest G of each permutation (Westfall and Young 1993)."""
    more_V: np.ndarray
    """Of each word: (share of the first pile's captions with it) − (share of the second pile's)."""


def table_of(captions: Sequence[str], least: int = 1) -> tuple[Any, list[str]]:
    """(sparse matrix of 0 and 1 [N, V]: which caption holds which word; the words, sorted). Words are letters and digits in lower case,
    and only those in at least `least` captions are there."""
    held = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    names = sorted(set().union(*held))
    number = {name: i for i, name in enumerate(names)}
    row = np.repeat(np.arange(len(held)), [len(one) for one in held])
    column = np.array([number[name] for one in held for name in sorted(one)], np.int64)
    table = sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(held), len(names)))
    kept = np.flatnonzero(np.asarray(table.sum(0))[0] >= least)
    return table[:, kept], [names[i] for i in kept]


def compared(captions: Sequence[str], first_N: np.ndarray, permutations: int, draw: np.random.Generator, least: int = 1) -> Words | None:
    """The words of the captions in `first_N` (bool) against those of the others; None if there are fewer than two words."""
    table_NV, names = table_of(captions, least)
    if len(names) < 2 or not 0 < first_N.sum() < len(first_N):
        return None
    total_V = np.asarray(table_NV.sum(0))[0]

    def both(first_PN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """G of the whole table [P] and of each word [P, V]."""
        in_first_PV = (table_NV.T @ first_PN.T.astype(np.float64)).T
        return _g(in_first_PV, total_V), _g_of_words(in_first_PV, total_V, int(first_N.sum()), len(first_N))

    whole_1, words_1V = both(first_N[None])
    as_large, larger_V = 0, np.zeros(len(names))
    for start in range(0, permutations, CHUNK):
        shuffled_PN = np.stack([draw.permutation(first_N) for _ in range(min(CHUNK, permutations - start))])
        whole_P, words_PV = both(shuffled_PN)
        as_large += int((whole_P >= whole_1[0] - 1e-9).sum())
        larger_V += (words_PV.max(1)[:, None] >= words_1V[0] - 1e-9).sum(0)
    count_V = np.asarray(table_NV[first_N].sum(0))[0]
    more_V = count_V / first_N.sum() - (total_V - count_V) / (~first_N).sum()
    order = np.argsort(-words_1V[0], kind="stable")
    return Words(
        g=float(whole_1[0]),
        freedom=len(names) - 1,
        p_chi2=float(stats.chi2.sf(whole_1[0], len(names) - 1)),
        p=(1 + as_large) / (1 + permutations),
        words=tuple(names[i] for i in order),
        g_V=words_1V[0][order],
        p_V=((1 + larger_V) / (1 + permutations))[order],
        more_V=more_V[order],
    )


def _g(in_first_PV: np.ndarray, total_V: np.ndarray) -> np.ndarray:
    """G of the 2 × V tables whose first row is given and whose columns have these sums, [P]."""
    first_P1, n = in_first_PV.sum(1, keepdims=True), total_V.sum()
    expected_PV = first_P1 * total_V / n
    rest_PV = total_V - in_first_PV
    return 2 * (_terms(in_first_PV, expected_PV) + _terms(rest_PV, total_V - expected_PV)).sum(1)


def _g_of_words(in_first_PV: np.ndarray, total_V: np.ndarray, first: int, n: int) -> np.ndarray:
    """G of each word's 2 × 2 table, [P, V]."""
    sums = 0.0
    for size, held_PV in ((first, in_first_PV), (n - first, total_V - in_first_PV)):
        expected_V = total_V * size / n
        sums = sums + _terms(held_PV, expected_V) + _terms(size - held_PV, size - expected_V)
    return 2 * np.asarray(sums)


def _terms(seen: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """O ln(O/E), 0 where O is 0."""
    return xlogy(seen, np.divide(seen, expected, out=np.ones_like(seen), where=np.asarray(expected > 0)))
