"""Shared by the audits of bias: answers and features of many pictures, counted shares, choices by key, logistic regression.

Shape suffixes: N samples, H and W height and width, C channels, D features, K classes.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats

from datasets.errors import InputError
from datasets.seeding import hash64
from datasets.text import read_text
from trainers.audit.base import Pictures, Subject
from trainers.evaluate.analysis import looking


def answers(subject: Subject, pictures: Pictures) -> np.ndarray:
    """int64 [N]: the class that the model takes each picture for."""
    found = []
    for start in range(0, len(pictures), subject.batch_size):
        part = pictures.part(slice(start, start + subject.batch_size))
        found.append(subject.classifier.predict(part.floats(subject.classifier), part.keys).cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def image_features(subject: Subject, image_NHWC: np.ndarray) -> np.ndarray:
    """Unit features, float64 [N, D], of uint8 pictures in the model's size. FloatingPointError if they are not finite."""
    encoder, size = subject.encoder, subject.batch_size
    with looking(encoder):
        parts = [
            encoder.encode_image(torch.from_numpy(np.ascontiguousarray(image_NHWC[start : start + size])).to(encoder.device)).cpu().numpy()
            for start in range(0, len(image_NHWC), size)
        ]
    return _finite(parts)


def text_features(subject: Subject, captions: Sequence[str]) -> np.ndarray:
    """Unit features, float64 [N, D], of captions. FloatingPointError if they are not finite."""
    encoder, size = subject.encoder, subject.batch_size
    with looking(encoder):
        parts = [
            encoder.encode_text(encoder.tokenize(list(captions[start : start + size])).to(encoder.device)).cpu().numpy()
            for start in range(0, len(captions), size)
        ]
    return _finite(parts)


def _finite(parts: list[np.ndarray]) -> np.ndarray:
    feature_ND = np.concatenate(parts).astype(np.float64)
    if not np.isfinite(feature_ND).all():
        raise FloatingPointError("the model's features of audited samples are not finite")
    return feature_ND


def by_hash(keys: Sequence[str], *salt: object) -> np.ndarray:
    """int64 [N]: positions in the order of the keys' hashes under the salt, which does not depend on the order of the keys."""
    return np.array(sorted(range(len(keys)), key=lambda i: (hash64(*salt, keys[i]), keys[i])), np.int64)


def chance_p(count: int, n: int, chance: float) -> float:
    """Two-sided p of the exact binomial test of `count` among n against a chance of 0 … 1."""
    return float(stats.binomtest(count, n, chance).pvalue)


def sides_p(first: int, second: int) -> float:
    """Two-sided p of the exact sign test (McNemar 1947, exact): are two counts halves of their sum? 1 if both are 0."""
    return chance_p(first, first + second, 0.5) if first + second else 1.0


class Linear(NamedTuple):
    """A logistic regression, and the inverse penalty C that it was fitted with."""

    model: Any
    strength: float

    def scores(self, x_ND: Any) -> np.ndarray:
        """Probabilities of the classes, float64 [N, K]."""
        return self.model.predict_proba(x_ND)


def logistic(x_ND: Any, label_N: np.ndarray, keys: Sequence[str], grid: tuple[float, ...], *salt: object) -> Linear:
    """Multinomial logistic regression with an L2 penalty on columns scaled to variance 1 (dense columns also to mean 0).

    With several C in `grid` the one that is most accurate on a fifth of the samples, drawn by the hash of their keys, is taken (the
    smallest among equals) and the model fitted again on all. Every class must be among the other four fifths.
    """
    inner_N = np.zeros(len(label_N), bool)
    inner_N[by_hash(keys, *salt)[: len(label_N) // 5]] = True
    chosen = grid[0]
    if len(grid) > 1:
        right = [_fit(x_ND[~inner_N], label_N[~inner_N], C).score(x_ND[inner_N], label_N[inner_N]) for C in sorted(grid)]
        chosen = sorted(grid)[int(np.argmax(right))]
    return Linear(_fit(x_ND, label_N, chosen), chosen)


def _fit(x_ND: Any, label_N: np.ndarray, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler(with_mean=isinstance(x_ND, np.ndarray))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is good enough for a share
        return make_pipeline(scaled, LogisticRegression(C=strength, max_iter=300)).fit(x_ND, label_N)


def read_rows(field: str, path: str, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The rows of a CSV file whose header line names at least these columns, each a tuple in their order. InputError names the field."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{field} is {path!r}, which has no column {missing[0]!r}; accepted: a CSV with {', '.join(columns)}.")
    rows = []
    for number, row in enumerate(reader, 2):
        values = tuple((row[name] or "").strip() for name in columns)
        if not all(values):
            raise InputError(f"{field} is {path!r}, where row {number} has no {columns[values.index('')]}; accepted: all of them given.")
        rows.append(values)
    if not rows:
        raise InputError(f"{field} is {path!r}, which has no rows; accepted: at least one.")
    return rows
