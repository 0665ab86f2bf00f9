"""Scores of training pairs by their neighbours against scikit-learn's neighbour search, used in the plain way: one search for each score.

Four scores that one would compare (k-distance, SLOF and DAO with k = 16, LID with k = 64) of unit features, against a reference of 2 048
pictures and as many captions. Both sides give the same numbers, which is checked. Features come in batches on our side, as in the stage.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from tests.bench.measure import Meter, Row, alternate
from trainers.detect.base import Features, NeighbourScore, smallest
from trainers.detect.dao import DAO
from trainers.detect.kdistance import KDistance
from trainers.detect.lid import LID
from trainers.detect.scoring import REFERENCE, Scorer
from trainers.detect.slof import SLOF

SIZES = {"full": ((12_000, 512, 2048), (12_000, 64, 2048)), "quick": ((600, 16, 128),)}
BATCH = 256


def run(size: str, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    rows = []
    for pairs, width, m in SIZES[size]:
        features = _features(pairs, width)
        scores: tuple[NeighbourScore, ...] = (KDistance(k=16, m=m), SLOF(k=16, m=m), DAO(k=16, m=m), LID(k=64, m=m))
        for chosen, mark in ((scores, 3.0), (scores[1:2], None)):
            seen: list[np.ndarray] = []

            def timed(search, chosen=chosen, seen=seen, features=features) -> dict[str, float]:
                with Meter() as used:
                    found = search(features, chosen)
                seen.append(found)
                np.testing.assert_allclose(found, seen[0], rtol=1e-6, atol=1e-9)
                return {"per_cpu": len(chosen) * len(features) / used.cpu}

            ours, theirs = alternate(lambda timed=timed: timed(shared), lambda timed=timed: timed(plain), rounds)
            what = f"{len(chosen)} score{'s' * (len(chosen) > 1)} of {pairs:,} pairs, {width} features, m = {m:,}"
            rows.append(Row(what, "scores/CPU-s", ours["per_cpu"], theirs["per_cpu"], mark=mark))
    return rows


def _features(pairs: int, width: int) -> Features:
    """Pairs in 50 clusters."""
    draw = np.random.default_rng(0)
    centre_CD = draw.standard_normal((50, width))
    sides = (centre_CD[draw.integers(50, size=pairs)] + 0.5 * draw.standard_normal((pairs, width)) for _ in range(2))
    image_ND, text_ND = (torch.from_numpy(side.astype(np.float32)) for side in sides)
    return Features(keys=np.array([f"{number:08d}" for number in range(pairs)], object), image_BD=image_ND, text_BD=text_ND)


def shared(features: Features, scores: tuple[NeighbourScore, ...]) -> np.ndarray:
    """[scores, N], as the stage and the evaluator do it."""
    scorer = Scorer(scores, features, np.zeros(len(features), bool))
    parts = [scorer.of(features.take(np.arange(start, min(start + BATCH, len(features))))) for start in range(0, len(features), BATCH)]
    return np.stack([np.concatenate([part[score] for part in parts]) for score in scores])


def plain(features: Features, scores: tuple[NeighbourScore, ...]) -> np.ndarray:
    """[scores, N]: a search for each score, one neighbour more than k, from which the pair's own picture is taken out."""
    found = []
    for score in scores:
        place_M = smallest(features.keys, score.m, score.seed, REFERENCE)
        row_RD = torch.cat([features.image("unit")[place_M], features.text("unit")[place_M]]).numpy()
        search = NearestNeighbors(n_neighbors=score.k + 1).fit(row_RD)
        own_N = np.full(len(features), -1)
        own_N[place_M] = np.arange(score.m)
        distance_NK, row_NK = _without(own_N, *search.kneighbors(features.image("unit").numpy()))
        if isinstance(score, KDistance):
            found.append(distance_NK[:, -1])
            continue
        if isinstance(score, LID):
            found.append(_lid(distance_NK))
            continue
        own_RK, _ = search.kneighbors(n_neighbors=score.k)  # without the row itself
        far_NK = distance_NK[:, -1:] / own_RK[row_NK, -1]
        found.append((far_NK if isinstance(score, SLOF) else _lid(own_RK)[row_NK] * np.log(far_NK)).mean(axis=1))
    return np.stack(found)


def _without(own_N: np.ndarray, distance_NK: np.ndarray, row_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    drop_NK = row_NK == own_N[:, None]
    drop_NK[~drop_NK.any(axis=1), -1] = True
    shape = len(own_N), row_NK.shape[1] - 1
    return distance_NK[~drop_NK].reshape(shape), row_NK[~drop_NK].reshape(shape)


def _lid(distance_NK: np.ndarray) -> np.ndarray:
    return -1 / np.log(distance_NK / distance_NK[:, -1:]).mean(axis=1)
