"""The interface of a score, and the data it may use.

Shape suffixes: B pairs, M pairs of the reference, R its rows (2 M), D features, K neighbours.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from datasets.component import Component, Count
from datasets.errors import InputError
from datasets.seeding import hash64

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.detect.neighbours import Near, Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """A model's features of some pairs, which are as in training but not augmented."""

    keys: np.ndarray
    """object array [B] of strings"""
    image_BD: Tensor
    """float [B, D], not scaled to length 1"""
    text_BD: Tensor
    logit_scale: float = 1.0
    """The factor that multiplies cosines in the contrastive loss"""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, places: np.ndarray) -> Features:
        """The pairs at these positions, in this order."""
        import torch

        index = torch.from_numpy(np.asarray(places, np.int64)).to(self.image_BD.device)
        return dataclasses.replace(self, keys=self.keys[places], image_BD=self.image_BD[index], text_BD=self.text_BD[index])

    def image(self, rows: str) -> Tensor:
        """The pictures' features [B, D]: `unit` (float64) or `raw`."""
        from torch.nn import functional as F

        return F.normalize(self.image_BD.double(), dim=1) if rows == "unit" else self.image_BD

    def text(self, rows: str) -> Tensor:
        """The captions' features [B, D]: `unit` (float64) or `raw`."""
        from torch.nn import functional as F

        return F.normalize(self.text_BD.double(), dim=1) if rows == "unit" else self.text_BD


class Reference:
    """The pairs that a score compares others with. All scores with the same reference share its neighbour searches."""

    def __init__(self, pairs: Features, trusted: Features | None = None, deepest: int = 1) -> None:
        """`pairs`: the M pairs, ordered by their hashes; `trusted`: pairs known to be clean, for scores that ask for them; `deepest`: the
        largest k of the scores."""
        self.pairs, self.trusted, self.deepest = pairs, trusted, deepest
        self.kept: dict[Any, Any] = {}
        """A cache for what scores compute from this reference alone."""
        self._places = {key: place for place, key in enumerate(pairs.keys)}
        self._searched: dict[Any, tuple[Features, Near]] = {}

    def rows(self, kind: str) -> Tensor:
        """[2 M, D]: the pictures' features, then the captions'; `unit` or `raw`."""
        import torch

        if kind not in self.kept:
            self.kept[kind] = torch.cat([self.pairs.image(kind), self.pairs.text(kind)])
        return self.kept[kind]

    def _rows(self, kind: str) -> Rows:
        from trainers.detect.neighbours import Rows

        if ("searched", kind) not in self.kept:
            self.kept["searched", kind] = Rows(self.rows(kind))
        return self.kept["searched", kind]

    def places(self, pairs: Features) -> np.ndarray:
        """int64 [B]: each pair's position in the reference, found by key; −1 if it is not there."""
        return np.array([self._places.get(key, -1) for key in pairs.keys], np.int64)

    def near(self, pairs: Features, rows: str, exclude_own_text: bool) -> Near:
        """The `deepest` nearest rows of each picture, leaving out the picture itself and, with `exclude_own_text`, its caption."""
        from trainers.detect.neighbours import nearest

        about = (rows, exclude_own_text)
        known = self._searched.get(about)
        if known is None or known[0] is not pairs:
            place_B = self.places(pairs)
            own_BE = _own(place_B, np.where(place_B < 0, -1, place_B + len(self.pairs)), exclude_own_text)
            known = self._searched[about] = pairs, nearest(pairs.image(rows), self._rows(rows), own_BE, self.deepest)
        return known[1]

    def own(self, rows: str, exclude_own_text: bool) -> Near:
        """The `deepest` nearest rows of each row of the reference, leaving out the row itself and, with `exclude_own_text`, the other half
        of its pair."""
        from trainers.detect.neighbours import nearest

        about = ("own", rows, exclude_own_text)
        if about not in self.kept:
            row_R = np.arange(2 * len(self.pairs))
            own_RE = _own(row_R, np.roll(row_R, len(self.pairs)), exclude_own_text)
            self.kept[about] = nearest(self.rows(rows), self._rows(rows), own_RE, self.deepest)
        return self.kept[about]


def _own(self_B: np.ndarray, other_B: np.ndarray, both: bool) -> np.ndarray:
    """int64 [B, 1 or 2]: the rows that must not count as a query's neighbours; −1: none."""
    return np.stack([self_B, other_B] if both else [self_B], axis=1)


@dataclass(frozen=True, kw_only=True)
class Score(Component, ABC):
    """A number for each training pair that says how suspect it is. To add a score, subclass this as a frozen dataclass in its own file."""

    sign: ClassVar[Literal[-1, 1]] = 1
    """1: high values of `raw` are suspect; −1: low values are."""
    both_tails: ClassVar[bool] = False
    """Whether either end may be the suspect one, depending on the data; then metrics are computed for both."""

    @property
    def name(self) -> str:
        """Its name in metrics: the class in lower case, k and m, and every other field that differs from its default."""
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
        """(m, seed): the number of pairs in the reference and the seed that selects them. (0, 0): the score looks at each pair alone."""
        return 0, 0

    @property
    def depth(self) -> int:
        """The number of neighbours it uses."""
        return 0

    @property
    def trusts(self) -> int | tuple[str, ...]:
        """The number of clean pairs that it needs, or their keys."""
        return 0

    def checkpoints(self, stored: Sequence[int]) -> Sequence[int]:
        """The epochs whose models compute the score, out of the stored ones; the scores of several are averaged."""
        return stored[-1:]

    def check(self, pairs: int, where: str = "score") -> None:
        """Raise InputError if the score cannot be computed with this number of pairs."""
        m, _ = self.drawn
        if m > pairs:
            raise InputError(f"{where}.m is {m}, but there are only {pairs} pairs to draw the reference from; accepted: up to {pairs}.")

    @abstractmethod
    def raw(self, pairs: Features, reference: Reference) -> np.ndarray:
        """float64 [B]: the score as its paper defines it. Results that depend only on the reference may be cached in `reference.kept`."""

    def suspicion(self, pairs: Features, reference: Reference) -> np.ndarray:
        """float64 [B]: the score with its sign set so that high is suspect. FloatingPointError if a value is not finite."""
        value_B = self.sign * np.asarray(self.raw(pairs, reference), np.float64)
        if value_B.shape != (len(pairs),):
            raise InputError(f"score {self.label} gave an array of shape {value_B.shape} for {len(pairs)} pairs; accepted: a number each.")
        if not np.isfinite(value_B).all():
            raise FloatingPointError(f"score {self.label} is not finite for {int((~np.isfinite(value_B)).sum())} pairs")
        return value_B


@dataclass(frozen=True, kw_only=True)
class Compared(Score):
    """A score that compares each pair with the m pairs that have the smallest hashes of (seed, key), in whatever order the pairs come. A
    smaller reference is part of a larger one. A scored pair may itself be in the reference."""

    m: Count = 2048
    """Pairs in the reference: m pictures and m captions."""
    seed: int = 0
    """Seed that selects the reference."""

    @property
    def drawn(self) -> tuple[int, int]:
        return self.m, self.seed


@dataclass(frozen=True, kw_only=True)
class NeighbourScore(Compared):
    """A score from the k rows of the reference that are nearest to the pair's picture in Euclidean distance.

    A picture is never its own neighbour, but its caption may be, unless `exclude_own_text` is set. The same holds for rows of the
    reference: a row is never its own neighbour, and with `exclude_own_text` neither is the other half of its pair. Distances of 0 count as
    1e-12. Poisoned pairs in the reference are neighbours of one another. If there are k or more of them, poison looks denser than clean
    data and the score is inverted, so choose k > 2·rate·m, with rate the share of poisoned pairs.
    """

    k: Count = 16
    """Number of neighbours."""
    rows: Literal["unit", "raw"] = "unit"
    """unit: features scaled to length 1 | raw: as the model returns them"""
    exclude_own_text: bool = False
    """Leave out a pair's caption as a neighbour of its picture, and the picture as a neighbour of the caption."""

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
        """How many of the pairs' k distances are 0."""
        from trainers.detect.neighbours import CLAMP

        return int((self.near(pairs, reference).distance_BK <= CLAMP).sum())


def poisons_per_k(score: Score, pairs: int, victims: int) -> float:
    """The expected number of poisoned pairs in the score's reference, divided by k; it should be below 0.5. 0 for a score without
    neighbours."""
    return victims * score.drawn[0] / pairs / score.depth if score.depth and pairs else 0.0


def crowded(scores: Sequence[Score], pairs: int, victims: int) -> str:
    """A warning that names the scores whose reference is expected to hold too many poisoned pairs for their k; "" if there are none."""
    shares = {score: poisons_per_k(score, pairs, victims) for score in scores}
    many = {score: share for score, share in shares.items() if share >= 0.5}
    listed = [f"{score.label} with k = {score.depth}, m = {score.drawn[0]} (n / k = {share:.2g})" for score, share in many.items()]
    if not listed:
        return ""
    return (
        f"{victims} of {pairs} pairs are poisoned, so a reference of m pairs holds about n = {victims / pairs:.2g} · m poisons: k > 2 n is "
        f"wanted, and from n = k on a score by neighbours is inverted. Take a larger k or a smaller m: {', '.join(listed)}."
    )


def smallest(keys: np.ndarray, count: int, *salt: object) -> np.ndarray:
    """int64 [count]: positions of the `count` keys with the smallest hashes under the salt, ordered by hash."""
    return np.array(sorted(range(len(keys)), key=lambda place: (hash64(*salt, keys[place]), keys[place]))[:count], np.int64)
