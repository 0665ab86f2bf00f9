"""What a score is, and what it may look at.

Shape suffixes: B pairs, M pairs of the reference, R its rows (2 M), D features, K neighbours.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.component import Component, Count
from datasets.errors import InputError
from datasets.seeding import hash64
from trainers.detect.neighbours import CLAMP, Near, Rows, nearest


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """How a model sees some pairs, as they were trained on but not augmented."""

    keys: np.ndarray
    """object [B]"""
    image_BD: Tensor
    """float [B, D], as the model gives them, not of length 1."""
    text_BD: Tensor
    logit_scale: float = 1.0
    """The factor of the cosines in the contrastive loss."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, places: np.ndarray) -> Features:
        """The pairs at these places, in that order."""
        index = torch.from_numpy(np.asarray(places, np.int64)).to(self.image_BD.device)
        return dataclasses.replace(self, keys=self.keys[places], image_BD=self.image_BD[index], text_BD=self.text_BD[index])

    def image(self, rows: str) -> Tensor:
        """The pictures' features [B, D]: `unit` (float64) or `raw`."""
        return F.normalize(self.image_BD.double(), dim=1) if rows == "unit" else self.image_BD

    def text(self, rows: str) -> Tensor:
        """The captions' features [B, D]: `unit` (float64) or `raw`."""
        return F.normalize(self.text_BD.double(), dim=1) if rows == "unit" else self.text_BD


class Reference:
    """The pairs that a score compares a pair with. All scores with the same reference share its neighbour searches."""

    def __init__(self, pairs: Features, trusted: Features | None = None, deepest: int = 1) -> None:
        """`pairs`: M of them, in the order of their hashes; `trusted`: pairs known to be clean, where a score asks for some; `deepest`:
        the largest k that a score asks for."""
        self.pairs, self.trusted, self.deepest = pairs, trusted, deepest
        self.kept: dict[Any, Any] = {}
        """What scores have computed of this reference, by themselves."""
        self._places = {key: place for place, key in enumerate(pairs.keys)}
        self._searched: dict[Any, tuple[Features, Near]] = {}

    def rows(self, kind: str) -> Tensor:
        """[2 M, D]: the features of the pictures, then of the captions; `unit` or `raw`."""
        if kind not in self.kept:
            self.kept[kind] = torch.cat([self.pairs.image(kind), self.pairs.text(kind)])
        return self.kept[kind]

    def _rows(self, kind: str) -> Rows:
        if ("searched", kind) not in self.kept:
            self.kept["searched", kind] = Rows(self.rows(kind))
        return self.kept["searched", kind]

    def places(self, pairs: Features) -> np.ndarray:
        """int64 [B]: the place of each pair in the reference, by its key; −1 where it is not in it."""
        return np.array([self._places.get(key, -1) for key in pairs.keys], np.int64)

    def near(self, pairs: Features, rows: str, exclude_own_text: bool) -> Near:
        """The `deepest` nearest rows of each picture, without its own (and its own caption's, if asked)."""
        about = (rows, exclude_own_text)
        known = self._searched.get(about)
        if known is None or known[0] is not pairs:
            place_B = self.places(pairs)
            own_BE = _own(place_B, np.where(place_B < 0, -1, place_B + len(self.pairs)), exclude_own_text)
            known = self._searched[about] = pairs, nearest(pairs.image(rows), self._rows(rows), own_BE, self.deepest)
        return known[1]

    def own(self, rows: str, exclude_own_text: bool) -> Near:
        """The `deepest` nearest rows of each row of the reference, without itself (and the other half of its pair, if asked)."""
        about = ("own", rows, exclude_own_text)
        if about not in self.kept:
            row_R = np.arange(2 * len(self.pairs))
            own_RE = _own(row_R, np.roll(row_R, len(self.pairs)), exclude_own_text)
            self.kept[about] = nearest(self.rows(rows), self._rows(rows), own_RE, self.deepest)
        return self.kept[about]


def _own(self_B: np.ndarray, other_B: np.ndarray, both: bool) -> np.ndarray:
    """int64 [B, 1 or 2]: the rows that a query must not find; −1: none."""
    return np.stack([self_B, other_B] if both else [self_B], axis=1)


@dataclass(frozen=True, kw_only=True)
class Score(Component, ABC):
    """A number for each training pair that tells how suspect it is. A new one is a frozen dataclass of this kind in its own file."""

    sign: ClassVar[Literal[-1, 1]] = 1
    """1: high values of `raw` are suspect; −1: low ones."""
    both_tails: ClassVar[bool] = False
    """Whether the data decide which end is suspect, so that both are judged."""

    @property
    def name(self) -> str:
        """What its metrics are called: its class in lower case, its k and m, and each other field that has not its default."""
        parts = [self.slug]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("k", "m"):
                parts.append(f"{field.name}{value}")
            elif value != field.default:
                shown = len(value) if isinstance(value, tuple) else value
                parts.append(field.name if value is True else str(shown) if isinstance(value, str) else f"{field.name}{shown}")
        return "_".join(parts)

    @property
    def drawn(self) -> tuple[int, int]:
        """(m, seed): how many pairs it compares a pair with, and the seed by which they are drawn; (0, 0): it looks at the pair alone."""
        return 0, 0

    @property
    def depth(self) -> int:
        """How many neighbours of a pair it looks at."""
        return 0

    @property
    def trusts(self) -> int | tuple[str, ...]:
        """How many clean pairs it must be given, or their keys."""
        return 0

    def checkpoints(self, stored: Sequence[int]) -> Sequence[int]:
        """The epochs of a training whose models score, out of those that are stored; the mean of their scores counts."""
        return stored[-1:]

    def check(self, pairs: int, where: str = "score") -> None:
        """InputError where so many pairs cannot be scored."""
        m, _ = self.drawn
        if m > pairs:
            raise InputError(f"{where}.m is {m}, but there are only {pairs} pairs to draw the reference from; accepted: up to {pairs}.")

    @abstractmethod
    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        """float64 [B]: the score as its paper has it. What depends on the reference alone may be kept in `reference.kept`."""

    def suspicion(self, pairs: Features, reference: Reference) -> np.ndarray:
        """float64 [B]: the score such that high is suspect. Raises FloatingPointError where one is not finite."""
        value_B = self.sign * np.asarray(self.raw(pairs, reference), np.float64)
        if value_B.shape != (len(pairs),):
            raise InputError(f"score {self.label} gave an array of shape {value_B.shape} for {len(pairs)} pairs; accepted: a number each.")
        if not np.isfinite(value_B).all():
            raise FloatingPointError(f"score {self.label} is not finite for {int((~np.isfinite(value_B)).sum())} pairs")
        return value_B


@dataclass(frozen=True, kw_only=True)
class Compared(Score):
    """A score that compares a pair with m others: those with the smallest hashes of (seed, key), whatever the order of the pairs. A smaller
    reference is part of a larger one. A pair that is scored may be in it."""

    m: Count = 2048
    """Pairs of the reference: m pictures and m captions."""
    seed: int = 0
    """Of the reference."""

    @property
    def drawn(self) -> tuple[int, int]:
        return self.m, self.seed


@dataclass(frozen=True, kw_only=True)
class NeighbourScore(Compared):
    """A score by the k rows of the reference that are nearest to the pair's picture, in Euclidean distance.

    The pair's own picture is never among them; its own caption is, unless `exclude_own_text`. Of a row of the reference the same holds: not
    itself, and with `exclude_own_text` not the other half of its pair. Distances of 0 count as 1e-12. Poisons in the reference are one
    another's neighbours: where there are k or more, poison looks denser than clean data, and the score is inverted. Choose
    k > 2·rate·m.
    """

    k: Count = 16
    """Neighbours."""
    rows: Literal["unit", "raw"] = "unit"
    """Features of length 1, or as the model gives them."""
    exclude_own_text: bool = False
    """Whether a pair's caption is left out of its picture's neighbours, and the reverse."""

    def __post_init__(self) -> None:
        if self.k >= self.m:
            raise InputError(f"{type(self).__name__}.k is {self.k}, but the reference has only m = {self.m} pairs; accepted: k below m.")

    @property
    def depth(self) -> int:
        return self.k

    def near(self, pairs: Features, reference: Reference) -> Near:
        """The k nearest rows of each pair's picture."""
        return reference.near(pairs, self.rows, self.exclude_own_text).first(self.k)

    def own(self, reference: Reference) -> Near:
        """The k nearest rows of each row of the reference."""
        return reference.own(self.rows, self.exclude_own_text).first(self.k)

    def clamped(self, pairs: Features, reference: Reference) -> int:
        """How many of the pairs' k distances were 0."""
        return int((self.near(pairs, reference).distance_BK <= CLAMP).sum())


def poisons_per_k(score: Score, pairs: int, victims: int) -> float:
    """How many poisons its reference is expected to hold, over its k; 0 for a score without neighbours. Below 0.5 is wanted."""
    return victims * score.drawn[0] / pairs / score.depth if score.depth and pairs else 0.0


def crowded(scores: Sequence[Score], pairs: int, victims: int) -> str:
    """A warning that names the scores whose reference is expected to hold too many poisons for their k; else empty."""
    shares = {score: poisons_per_k(score, pairs, victims) for score in scores}
    many = {score: share for score, share in shares.items() if share >= 0.5}
    told = [f"{score.label} with k = {score.depth}, m = {score.drawn[0]} (n / k = {share:.2g})" for score, share in many.items()]
    if not told:
        return ""
    return (
        f"{victims} of {pairs} pairs are poisoned, so a reference of m pairs holds about n = {victims / pairs:.2g} · m poisons: k > 2 n is "
        f"wanted, and from n = k on a score by neighbours is inverted. Take a larger k or a smaller m: {', '.join(told)}."
    )


def smallest(keys: np.ndarray, count: int, *salt: object) -> np.ndarray:
    """int64: the places of the `count` keys that hash smallest under the salt, in the order of their hashes."""
    return np.array(sorted(range(len(keys)), key=lambda place: (hash64(*salt, keys[place]), keys[place]))[:count], np.int64)
