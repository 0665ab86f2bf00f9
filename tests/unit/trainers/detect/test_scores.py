"""Scores against float64 written from the formulas, against scikit-learn, and where the poison in the reference turns them round."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from datasets.errors import InputError
from datasets.seeding import hash64
from trainers.detect.base import Features, Score, crowded
from trainers.detect.cosine import CosineByModel, CosineByReference
from trainers.detect.dao import DAO
from trainers.detect.early_loss import EarlyLoss
from trainers.detect.isolation_forest import IsolationForest
from trainers.detect.kdistance import KDistance
from trainers.detect.lid import LID
from trainers.detect.lorex import LoREx
from trainers.detect.merit import figures
from trainers.detect.neighbours import Rows, nearest
from trainers.detect.scoring import Scorer
from trainers.detect.slof import SLOF

NEIGHBOURS = (KDistance, SLOF, LID, DAO)


def features(n: int, seed: int = 0, width: int = 12) -> Features:
    draw = np.random.default_rng(seed)
    centre_CD = draw.standard_normal((7, width))
    image_ND, text_ND = (centre_CD[draw.integers(7, size=n)] + 0.3 * draw.standard_normal((n, width)) for _ in range(2))
    return of(image_ND, text_ND)


def of(image_ND: np.ndarray, text_ND: np.ndarray, keys: list[str] | None = None, scale: float = 20.0) -> Features:
    named = np.array(keys or [f"pair{number:05d}" for number in range(len(image_ND))], object)
    sides = (torch.from_numpy(side.astype(np.float32)) for side in (image_ND, text_ND))
    return Features(keys=named, image_BD=next(sides), text_BD=next(sides), logit_scale=scale)


def scored(scores: tuple[Score, ...], pairs: Features, batch: int = 64, victim_N: np.ndarray | None = None) -> dict[Score, np.ndarray]:
    """Each score's raw values of all pairs, in batches."""
    scorer = Scorer(scores, pairs, np.zeros(len(pairs), bool) if victim_N is None else victim_N)
    parts = [scorer.of(pairs.take(np.arange(len(pairs))[start : start + batch])) for start in range(0, len(pairs), batch)]
    return {score: score.sign * np.concatenate([part[score] for part in parts]) for score in scores}


def brute(pairs: Features, score: Score) -> np.ndarray:
    """The neighbour scores as methods define them, one distance after the other."""
    image_ND, text_ND = pairs.image_BD.double().numpy(), pairs.text_BD.double().numpy()
    if score.rows == "unit":
        image_ND, text_ND = (side / np.sqrt((side**2).sum(axis=1, keepdims=True)) for side in (image_ND, text_ND))
    chosen = sorted(range(len(pairs)), key=lambda i: hash64(score.seed, "reference", pairs.keys[i]))[: score.m]
    rows = [("image", i, image_ND[i]) for i in chosen] + [("text", i, text_ND[i]) for i in chosen]

    def near(kind: str, i: int, point_D: np.ndarray) -> list[tuple[float, int]]:
        found = []
        for place, (other, j, row_D) in enumerate(rows):
            if i == j and (kind == other or score.exclude_own_text):
                continue
            found.append((max(1e-12, math.sqrt(((point_D - row_D) ** 2).sum())), place))
        return sorted(found)[: score.k]

    def lid(distances: list[float]) -> float:
        return -score.k / sum(math.log(d / distances[-1]) for d in distances)

    own = [[d for d, _ in near(*row)] for row in rows]
    out = []
    for i, point_D in enumerate(image_ND):
        found = near("image", i, point_D)
        far = found[-1][0]
        if isinstance(score, KDistance):
            out.append(far)
        elif isinstance(score, SLOF):
            out.append(sum(far / own[r][-1] for _, r in found) / score.k)
        elif isinstance(score, LID):
            out.append(lid([d for d, _ in found]))
        else:
            out.append(sum(lid(own[r]) * math.log(far / own[r][-1]) for _, r in found) / score.k)
    return np.array(out)


@pytest.mark.parametrize("rows", ["unit", "raw"])
@pytest.mark.parametrize("exclude", [False, True])
def test_neighbour_scores_equal_the_formulas_in_float64(rows, exclude):
    pairs = features(90)
    scores = tuple(kind(k=k, m=40, seed=3, rows=rows, exclude_own_text=exclude) for kind in NEIGHBOURS for k in (4, 9))
    found = scored(scores, pairs)
    for score in scores:
        assert_allclose(found[score], brute(pairs, score), rtol=1e-9, err_msg=score.name)


def test_scores_do_not_depend_on_the_order_of_pairs_or_on_batches():
    pairs = features(150)
    scores = (*(kind(k=5, m=60) for kind in NEIGHBOURS), IsolationForest(m=60, trees=20), EarlyLoss(m=60), LoREx(m=60, trusted=20),
              CosineByModel(), CosineByReference())  # fmt: skip
    whole = scored(scores, pairs, batch=150)
    order = np.random.default_rng(0).permutation(150)
    for batch in (1, 37):
        shuffled = scored(scores, pairs.take(order), batch=batch)
        for score in scores:
            assert_allclose(shuffled[score], whole[score][order], rtol=1e-12, atol=1e-12, err_msg=score.name)


def test_a_smaller_reference_is_part_of_a_larger_one_and_scores_share_the_search(monkeypatch):
    pairs, searches = features(80), []

    def counted(*arguments):
        searches.append(arguments[-1])
        return nearest(*arguments)

    monkeypatch.setattr("trainers.detect.neighbours.nearest", counted)
    scored((SLOF(k=3, m=40), DAO(k=7, m=40), KDistance(k=5, m=40), LID(k=9, m=40)), pairs, batch=40)
    assert searches == [9, 9, 9], "one for the reference itself, one a batch"


def test_distances_are_exact_where_float32_cannot_tell_rows_apart():
    draw = np.random.default_rng(1)
    row_RD = (1 + 1e-5 * draw.standard_normal((300, 16))).astype(np.float32)
    query_BD = (1 + 1e-5 * draw.standard_normal((20, 16))).astype(np.float32)
    near = nearest(torch.from_numpy(query_BD), Rows(torch.from_numpy(row_RD)), np.full((20, 1), -1), 10)
    distance_BR = np.sqrt(((query_BD[:, None].astype(float) - row_RD.astype(float)) ** 2).sum(axis=2))
    assert_allclose(near.distance_BK, np.sort(distance_BR, axis=1)[:, :10], rtol=1e-9)
    assert (near.row_BK == np.argsort(distance_BR, axis=1, kind="stable")[:, :10]).all()


def test_equal_features_are_clamped_and_counted_and_give_finite_scores():
    pairs = features(60)
    image_BD = pairs.image_BD.clone()
    image_BD[:20] = image_BD[0]
    pairs = replace(pairs, image_BD=image_BD)
    scores = tuple(kind(k=4, m=59) for kind in NEIGHBOURS)
    scorer = Scorer(scores, pairs, np.zeros(60, bool))
    found = scorer.of(pairs)
    assert all(np.isfinite(values).all() for values in found.values())
    assert set(scorer.clamped.values()) == {80} and (found[scores[0]][:20] == 1e-12).all()


def test_scikit_learn_gives_the_same_distances_and_forest():
    from sklearn.ensemble import IsolationForest as Forest
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    pairs = features(400, width=32)
    reference = pairs.take(np.array(sorted(range(400), key=lambda i: hash64(0, "reference", pairs.keys[i]))[:100]))
    rows = np.concatenate([reference.image("unit").numpy(), reference.text("unit").numpy()])
    outside = np.array([i for i in range(400) if pairs.keys[i] not in set(reference.keys)])
    query = pairs.image("unit").numpy()[outside]
    found = scored((KDistance(k=8, m=100), SLOF(k=8, m=100), IsolationForest(m=100, trees=30)), pairs)
    search = NearestNeighbors(n_neighbors=8).fit(rows.astype(float))
    distance_BK, row_BK = search.kneighbors(query.astype(float))
    kdistance, slof, forest = (values[outside] for values in found.values())
    assert_allclose(kdistance, distance_BK[:, -1], rtol=1e-9)
    own_R = LocalOutlierFactor(n_neighbors=8).fit(rows).kneighbors()[0][:, -1]
    assert_allclose(slof, (distance_BK[:, -1:] / own_R[row_BK]).mean(axis=1), rtol=1e-9)
    assert_allclose(forest, Forest(n_estimators=30, random_state=0).fit(rows).score_samples(query), rtol=1e-12)


def test_cosines_are_those_of_the_pairs_with_opposite_signs():
    pairs = features(30)
    image, text = pairs.image_BD.double().numpy(), pairs.text_BD.double().numpy()
    expected = (image * text).sum(axis=1) / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1)
    found = Scorer((CosineByModel(), CosineByReference()), pairs, np.zeros(30, bool)).of(pairs)
    assert_allclose(found[CosineByModel()], expected, rtol=1e-12)
    assert_allclose(found[CosineByReference()], -expected, rtol=1e-12)


def test_the_early_loss_is_the_contrastive_loss_among_the_reference():
    pairs, score = features(40), EarlyLoss(m=15, seed=2)
    image, text = (side.double().numpy() for side in (pairs.image("unit"), pairs.text("unit")))
    chosen = sorted(range(40), key=lambda i: hash64(2, "reference", pairs.keys[i]))[:15]
    expected = []
    for i in range(40):
        others = [i, *(j for j in chosen if j != i)]
        rows = [math.log(sum(math.exp(20 * float(a[i] @ b[j])) for j in others)) for a, b in ((image, text), (text, image))]
        expected.append(sum(rows) / 2 - 20 * float(image[i] @ text[i]))
    assert_allclose(scored((score,), pairs)[score], expected, rtol=1e-9)
    assert score.checkpoints([1, 2, 5, 20]) == [1, 2, 5] and SLOF().checkpoints([1, 2, 5]) == [5]
    with pytest.raises(InputError, match="EarlyLoss needs the checkpoints"):
        score.checkpoints([0])


def test_lorex_is_the_whitened_picture_along_its_strongest_direction():
    pairs = features(80, width=6)
    victim_N = np.arange(80) % 10 == 0
    score = LoREx(m=50, trusted=30, seed=1)
    unit = pairs.image_BD.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    clean = [i for i in range(80) if not victim_N[i]]
    trusted = unit[sorted(clean, key=lambda i: hash64(1, "trusted", pairs.keys[i]))[:30]]
    mixed = unit[sorted(range(80), key=lambda i: hash64(1, "reference", pairs.keys[i]))[:50]]
    centred = trusted - trusted.mean(axis=0)
    sigma = centred.T @ centred / 30
    sigma += 1e-3 * np.trace(sigma) / 6 * np.eye(6)
    whiten = np.linalg.inv(np.linalg.cholesky(sigma))
    white = (mixed - trusted.mean(axis=0)) @ whiten.T
    values, vectors = np.linalg.eigh(white.T @ white)
    expected = np.abs((unit - trusted.mean(axis=0)) @ whiten.T @ vectors[:, values.argmax()])
    assert_allclose(scored((score,), pairs, victim_N=victim_N)[score], expected, rtol=1e-8)
    named = replace(score, trusted=tuple(pairs.keys[sorted(clean, key=lambda i: hash64(1, "trusted", pairs.keys[i]))[:30]]))
    assert_allclose(scored((named,), pairs, victim_N=victim_N)[named], expected, rtol=1e-8)


def toy(n: int, seed: int, m: int = 1024) -> tuple[Features, np.ndarray]:
    """Clean pairs in 50 clusters and n poisons of one compact one in a reference of m; beside it 64 more poisons and 400 clean pairs."""
    draw = np.random.default_rng(seed)
    centre_CD = draw.standard_normal((50, 64))

    def points(count: int) -> np.ndarray:
        return centre_CD[draw.integers(50, size=count)] + 0.3 * draw.standard_normal((count, 64))

    poison_D = draw.standard_normal(64)
    keys = sorted((f"k{number}" for number in range(4 * m)), key=lambda key: hash64(0, "reference", key))
    chosen, beside = keys[:m], keys[m : m + 464]
    victim_N = np.zeros(m + 464, bool)
    victim_N[draw.choice(m, n, replace=False)] = True
    victim_N[m : m + 64] = True
    image_ND, text_ND = points(m + 464), points(m + 464)
    image_ND[victim_N] = poison_D + 0.1 * draw.standard_normal((int(victim_N.sum()), 64))
    return of(image_ND, text_ND, chosen + beside), victim_N


@pytest.mark.parametrize(("share", "least", "most"), [
    (0.25, (1, 1, 0.99), (1, 1, 1)), (0.5, (1, 1, 0.99), (1, 1, 1)), (0.75, (1, 0.99, 0.98), (1, 1, 1)),
    (1.0, (0, 0, 0), (0, 0.01, 0.1)), (1.25, (0, 0.2, 0.2), (0, 0.5, 0.5)), (2.0, (0, 0.4, 0.4), (0, 0.7, 0.7)),
])  # fmt: skip
def test_the_scores_turn_round_once_the_reference_holds_k_poisons(share, least, most):
    """Below k poisons their neighbours are far; from k on they are one another's, and poison looks denser than clean data."""
    scores = (KDistance(k=16, m=1024), SLOF(k=16, m=1024), DAO(k=16, m=1024))
    for seed in range(2):
        pairs, victim_N = toy(int(16 * share), seed)
        scorer = Scorer(scores, pairs, victim_N)
        assert scorer.poisons[scores[0]] == 16 * share
        looked_at = pairs.take(np.arange(1024, len(pairs)))
        for score, low, high in zip(scores, least, most):
            auroc = figures(scorer.of(looked_at)[score], victim_N[1024:])["auroc"]
            assert low <= auroc <= high, (score.name, auroc)


def test_the_rule_warns_of_it():
    assert not crowded([SLOF(k=16, m=2048)], 1_000_000, 100)
    told = crowded([SLOF(k=16, m=2048), SLOF(k=16, m=256), DAO(k=64, m=2048)], 4000, 120)
    assert told.startswith("120 of 4000 pairs are poisoned")
    assert told.endswith("smaller m: SLOF with k = 16, m = 2048 (n / k = 3.8), DAO with k = 64, m = 2048 (n / k = 0.96).")
    assert crowded([SLOF(k=16, m=256)], 4000, 125) and not crowded([SLOF(k=17, m=256)], 4000, 125)
    assert not crowded([CosineByModel(), IsolationForest()], 4000, 3000)


def refusals():
    return [
        (lambda: SLOF(k=16, m=16), "SLOF.k is 16, but the reference has only m = 16 pairs"),
        (lambda: KDistance(k=0), "KDistance.k is 0; accepted"),
        (lambda: SLOF(rows="long"), "unit, raw"),
        (lambda: LoREx(), "LoREx.trusted gives 0 pairs; it needs at least two"),
        (lambda: LoREx(trusted=("a", "a")), "LoREx.trusted gives 1 pairs"),
        (lambda: DAO(m=100).check(99, "keep.score"), "keep.score.m is 100, but there are only 99 pairs"),
    ]  # fmt: skip


@pytest.mark.parametrize(("make", "said"), refusals())
def test_what_cannot_be_scored_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_names_tell_scores_apart():
    scores = [SLOF(), SLOF(k=8), SLOF(m=512), SLOF(rows="raw"), SLOF(exclude_own_text=True), SLOF(seed=1), LID(), LoREx(trusted=("a", "b"))]
    names = [score.name for score in scores]
    assert len(set(names)) == len(names) and names[0] == "slof_m2048_k16" and names[3] == "slof_m2048_k16_raw"
