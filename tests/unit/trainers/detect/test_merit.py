"""Figures of merit against scikit-learn, by hand where it differs, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.detect.merit import figures


def drawn(n: int, victims: int, shift: float, seed: int, digits: int = 9) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    victim_N = np.arange(n) < victims
    return np.round(draw.standard_normal(n) + shift * victim_N, digits), victim_N


@pytest.mark.parametrize("digits", [9, 0])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.5])
def test_auroc_and_average_precision_are_scikit_learns(shift, digits):
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    suspicion_N, victim_N = drawn(400, 30, shift, 1, digits)
    found = figures(suspicion_N, victim_N)
    assert found["auroc"] == pytest.approx(roc_auc_score(victim_N, suspicion_N), abs=1e-12)
    assert found["ap"] == pytest.approx(average_precision_score(victim_N, suspicion_N), abs=1e-12)
    false, true, _ = roc_curve(victim_N, suspicion_N, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(100 * false[true >= 0.95].min(), abs=1e-9)


def test_the_false_positive_rate_is_not_interpolated():
    suspicion_N = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    victim_N = np.isin(np.arange(10), [0, 1, 4])
    found = figures(suspicion_N, victim_N, shares=(10.0, 20.0, 50.0, 100.0))
    assert found["fpr95"] == pytest.approx(100 * 2 / 7), "two clean pairs lie above the last victim"
    caught = [found[f"caught_at_{share}"] for share in (10, 20, 50, 100)]
    assert caught == pytest.approx([100 / 3, 200 / 3, 100, 100])


def test_equal_scores_at_the_edge_count_in_proportion():
    found = figures(np.array([1.0, 0, 0, 0, 0]), np.array([False, True, False, False, False]), shares=(20.0, 40.0))
    assert found["caught_at_20"] == 0 and found["caught_at_40"] == pytest.approx(25)


def test_intervals_cover_the_truth_as_often_as_they_say():
    from scipy.stats import norm

    truth, covered = norm.cdf(1 / np.sqrt(2)), []
    for seed in range(60):
        suspicion_N, victim_N = drawn(300, 60, 1.0, seed)
        found = figures(suspicion_N, victim_N, seed=seed)
        assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
        covered.append(found["auroc_low"] <= truth <= found["auroc_high"])
    assert np.mean(covered) > 0.88


def test_the_interval_of_what_is_caught_is_exact():
    from scipy.stats import binomtest

    suspicion_N, victim_N = drawn(1000, 40, 2.0, 3)
    found = figures(suspicion_N, victim_N, shares=(5.0,))
    top = np.sort(suspicion_N)[-50]
    hits = int((suspicion_N[victim_N] >= top).sum())
    exact = binomtest(hits, 40).proportion_ci(0.95, "exact")
    assert found["caught_at_5"] == pytest.approx(100 * hits / 40)
    assert (found["caught_at_5_low"], found["caught_at_5_high"]) == pytest.approx((100 * exact.low, 100 * exact.high))


def test_without_victims_or_without_others_there_is_nothing_to_find():
    assert figures(np.arange(4.0), np.zeros(4, bool)) == {} == figures(np.arange(4.0), np.ones(4, bool))
