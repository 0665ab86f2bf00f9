"""Computes several scores of the same pairs. Scores share references and neighbour searches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.errors import InputError
from datasets.index.pairs import Pairs
from trainers.detect.base import Features, NeighbourScore, Reference, Score, smallest

REFERENCE, TRUSTED = "reference", "trusted"


def first_positions(scores: Sequence[Score], pairs: Pairs, victim_N: np.ndarray) -> np.ndarray:
    """int64, rising: positions of the pairs that must be embedded before any pair can be scored: the references and the trusted pairs.

    InputError if a trusted key is not a pair's key, or if there are too few pairs.
    """
    positions = [np.zeros(0, np.int64)]
    for score in scores:
        m, seed = score.drawn
        score.check(len(pairs), score.label)
        if m:
            positions.append(pairs.smallest(m, seed, REFERENCE))
        if isinstance(score.trusts, tuple):
            known = {key: place for place, key in enumerate(pairs.keys().to_pylist())}
            if missing := [key for key in score.trusts if key not in known]:
                raise InputError(f"{score.label}.trusted names {missing[0]!r}, which is no key of a pair that is scored.")
            positions.append(np.array([known[key] for key in score.trusts], np.int64))
        elif score.trusts:
            clean = np.flatnonzero(~victim_N)
            if score.trusts > len(clean):
                raise InputError(f"{score.label}.trusted is {score.trusts}, but only {len(clean)} pairs are no victims.")
            positions.append(pairs.smallest(score.trusts, seed, TRUSTED, among=clean))
    return np.unique(np.concatenate(positions))


class Scorer:
    """Scores batches of pairs against references built from the features of the first pairs."""

    def __init__(self, scores: Sequence[Score], first: Features, victim_F: np.ndarray) -> None:
        """`first`: the pairs of `first_positions`, in any order; `victim_F`: which of them are victims."""
        self.scores = tuple(scores)
        self.clamped = dict.fromkeys(self.scores, 0)
        """How many distances were 0 among the pairs scored so far."""
        self.poisons: dict[Score, int] = {}
        """The number of victims in each score's reference."""
        self._references: dict[Score, Reference] = {}
        shared: dict[tuple[int, int], Reference] = {}
        for score in self.scores:
            place_M, trusted = smallest(first.keys, score.drawn[0], score.drawn[1], REFERENCE), _trusted(score, first, victim_F)
            deepest = max(one.depth for one in self.scores if one.drawn == score.drawn)
            if trusted is not None:
                self._references[score] = Reference(first.take(place_M), trusted)
            else:
                self._references[score] = shared.setdefault(score.drawn, Reference(first.take(place_M), None, deepest))
            self.poisons[score] = int(victim_F[place_M].sum())

    def of(self, pairs: Features) -> dict[Score, np.ndarray]:
        """Score → float64 [B], high is suspect."""
        suspicions = {}
        for score, reference in self._references.items():
            suspicions[score] = score.suspicion(pairs, reference)
            if isinstance(score, NeighbourScore):
                self.clamped[score] += score.clamped(pairs, reference)
        return suspicions


def _trusted(score: Score, first: Features, victim_F: np.ndarray) -> Features | None:
    if isinstance(score.trusts, tuple):
        place = {key: number for number, key in enumerate(first.keys)}
        return first.take(np.array([place[key] for key in dict.fromkeys(score.trusts)], np.int64))
    if not score.trusts:
        return None
    clean = np.flatnonzero(~victim_F)
    return first.take(clean[smallest(first.keys[clean], score.trusts, score.drawn[1], TRUSTED)])
